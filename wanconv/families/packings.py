"""How clients store weights with scales: one row per client, format and granularity; and what a file's rows are.

Sources: ComfyUI comfy/quant_ops.py and comfy/utils.py (convert_old_quants); LightX2V tools/convert/quant/quant.py and
lightx2v/common/ops/mm/mm_weight.py; torchao prototype/safetensors/safetensors_support.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wanconv.tensors import Packing, TensorRef

COMFY_QUANT = "comfy_quant"
_OPTIONS = {"full_precision_matrix_mult"}  # of comfy_quant: says how to multiply, not what the numbers are


def comfy_quant(name: str) -> bytes:
    """Returns what ComfyUI reads beside a weight. Without a calibrated input scale it must multiply in full precision:
    it would clamp activations at 448."""
    return json.dumps({"format": name, "full_precision_matrix_mult": True}, separators=(",", ":")).encode()


def _comfyui(storage: str, scale: str, name: str) -> Packing:
    return Packing("comfyui", storage, scale, constants=((COMFY_QUANT, comfy_quant(name)),))


def _torchao(storage: str) -> Packing:
    return Packing("diffusers", storage, "row", "_weight_qdata", "_weight_scale")


# Finest first: `auto` takes the first row of its format. ComfyUI's kernels assert one scale for an fp8 weight.
# fmt: off
PACKINGS: tuple[Packing, ...] = (
    _comfyui("fp8_e4m3fn", "tensor", "float8_e4m3fn"),
    _comfyui("fp8_e5m2",   "tensor", "float8_e5m2"),
    _comfyui("int8",       "row",    "int8_tensorwise"),
    _comfyui("int8",       "tensor", "int8_tensorwise"),
    Packing("lightx2v", "fp8_e4m3fn", "row"),
    Packing("lightx2v", "int8",       "row"),
    _torchao("fp8_e4m3fn"),
    _torchao("int8"),
)
# fmt: on

# Tensors that are no weights: ComfyUI's text encoders carry their sentencepiece model.
ATTACHED = {"spiece_model": "uint8"}


@dataclass(frozen=True, slots=True)
class Packed:
    """The scales that stand beside a weight, and how."""

    packing: Packing
    scales: TensorRef


def of_client(client: str) -> tuple[Packing, ...]:
    return tuple(packing for packing in PACKINGS if packing.client == client)


def leaf_of(name: str) -> tuple[str, str]:
    """Returns a name's module and leaf: what stands before its last dot, and after it."""
    module, _, leaf = name.rpartition(".")
    return module, leaf


def beside(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def unpack(tensors: Mapping[str, TensorRef]) -> tuple[dict[str, TensorRef], dict[str, Packed]]:
    """Returns the weights of a file by the names they have where nothing is scaled, and what stands beside those that
    are. What no row explains keeps its own name."""
    modules: dict[str, dict[str, TensorRef]] = {}
    for name, ref in tensors.items():
        module, leaf = leaf_of(name)
        modules.setdefault(module, {})[leaf] = ref
    weights: dict[str, TensorRef] = {}
    packed: dict[str, Packed] = {}
    for module, leaves in modules.items():
        packing = next((packing for packing in PACKINGS if _fits(packing, leaves)), None)
        if packing is not None:
            name = beside(module, "weight")
            used = {packing.payload, packing.scales, *(leaf for leaf, _ in packing.constants)}
            weights[name] = replace(leaves[packing.payload], name=name)
            packed[name] = Packed(packing, leaves[packing.scales])
            leaves = {leaf: ref for leaf, ref in leaves.items() if leaf not in used}
        for ref in leaves.values():
            if ATTACHED.get(ref.name) != ref.dtype:
                weights[ref.name] = ref
    return weights, packed


def _fits(packing: Packing, leaves: Mapping[str, TensorRef]) -> bool:
    payload, scales = leaves.get(packing.payload), leaves.get(packing.scales)
    if payload is None or scales is None or payload.dtype != packing.format or scales.dtype != "fp32":
        return False
    if scales.shape != packing.scale_shape(payload.shape):
        return False
    if not packing.constants:
        return COMFY_QUANT not in leaves
    return all(leaf in leaves and _means(leaves[leaf], content) for leaf, content in packing.constants)


def _means(ref: TensorRef, content: bytes) -> bool:
    """True where a constant says the same of the numbers, however it is written."""
    if ref.dtype != "uint8" or ref.nbytes > 4096:
        return False
    try:
        found, wanted = json.loads(ref.read()), json.loads(content)
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(found, dict)
        and {**found, **wanted}.keys() == wanted.keys()
        and (
            {key: value for key, value in found.items() if key not in _OPTIONS}
            == {key: value for key, value in wanted.items() if key not in _OPTIONS}
        )
    )
