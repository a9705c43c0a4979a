"""How clients store weights with scales: one row per client, format and granularity; and the packing of a file's
weights.

Sources: ComfyUI comfy/quant_ops.py and, of its legacy names, comfy/utils.py (convert_old_quants); LightX2V
tools/convert/quant/quant.py and lightx2v/common/ops/mm/mm_weight.py; torchao
prototype/safetensors/safetensors_support.py; diffusers quantizers/bfl/bfl_quantizer.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wanconv.errors import InputError
from wanconv.storage.reading import parsed_json
from wanconv.types.figures import size
from wanconv.types.packing import Packing
from wanconv.types.tensors import Part, TensorRef

COMFY_QUANT = "comfy_quant"
_HEADER = "_quantization_metadata"  # ComfyUI makes comfy_quant tensors of it when it loads a file
_CONSTANT_NBYTES = 4096  # at most
TOKENIZER = "spiece_model"
TOKENIZER_NBYTES = 16 << 20  # limit: UMT5's has 4.5 MB
_SHOWN = 200  # most characters of a file's own text in a message
_FULL_PRECISION = "full_precision_matrix_mult"
_OPTIONS = {_FULL_PRECISION}  # key of comfy_quant: how to multiply; it does not affect the values


def comfy_quant(name: str) -> bytes:
    """Returns what ComfyUI reads with a weight. Without a calibrated input scale it must multiply in full precision:
    it would clamp activations at 448."""
    return json.dumps({"format": name, _FULL_PRECISION: True}, separators=(",", ":")).encode()


def _comfyui(storage: str, scale: str, name: str, since: str) -> Packing:
    constants = ((COMFY_QUANT, comfy_quant(name)),)
    return Packing("comfyui", storage, scale, constants=constants, inputs="input_scale", since=since)


def _blocks(name: str, storage: str, scale_dtype: str, whole: str | None, since: str) -> Packing:
    """Without `full_precision_matrix_mult`: ComfyUI finds the scales of a layer's inputs itself, block by block."""
    return Packing(
        "comfyui",
        name,
        "block",
        constants=((COMFY_QUANT, json.dumps({"format": name}, separators=(",", ":")).encode()),),
        inputs="input_scale",
        since=since,
        storage=storage,
        scale_dtype=scale_dtype,
        whole=whole,
        caution=f"on cards that multiply in {name} (Blackwell), ComfyUI rounds what a layer is given as well, which "
        "validate does not imitate; on others it decodes the weights",
    )


def _torchao(storage: str) -> Packing:
    return Packing(
        "diffusers", storage, "row", "_weight_qdata", "_weight_scale", since="diffusers 0.42.1, torchao 0.16"
    )


# Finest first: `auto` takes the first row of its format. ComfyUI's kernels assert one scale for an fp8 weight; its
# first versions are those of pull requests 11000 (fp8), 14636 (int8; 0.25.1 is without it), 12907 (mxfp8, which needs
# torch 2.10 by its thread) and 11635 (nvfp4) and of commit e1474150 (legacy files whose marker has two elements).
# fmt: off
PACKINGS: tuple[Packing, ...] = (
    _comfyui("fp8_e4m3fn", "tensor", "float8_e4m3fn",   "ComfyUI of December 2025"),
    _comfyui("fp8_e5m2",   "tensor", "float8_e5m2",     "ComfyUI of December 2025"),
    _comfyui("int8",       "row",    "int8_tensorwise", "ComfyUI 0.27"),
    _comfyui("int8",       "tensor", "int8_tensorwise", "ComfyUI 0.27"),
    _blocks("mxfp8", "fp8_e4m3fn", "uint8",      None,             "ComfyUI of March 2026, torch 2.10"),
    _blocks("nvfp4", "uint8",      "fp8_e4m3fn", "weight_scale_2", "ComfyUI of January 2026"),
    Packing("comfyui-legacy", "fp8_e4m3fn", "tensor", scales="scale_weight", inputs="scale_input",
            since="ComfyUI of March 2025"),
    Packing("lightx2v", "fp8_e4m3fn", "row"),
    Packing("lightx2v", "int8",       "row"),
    _torchao("fp8_e4m3fn"),
    _torchao("int8"),
    Packing("diffusers-single", "fp8_e4m3fn", "row", since="diffusers 0.42.1", flat=True),
)
# fmt: on

# Tensors that are not weights: ComfyUI's text encoders carry their sentencepiece model, its legacy files a marker.
ATTACHED = {TOKENIZER: ("uint8",), "scaled_fp8": ("fp8_e4m3fn", "fp32")}


@dataclass(frozen=True, slots=True)
class Packed:
    """The scales of a weight, and how they are stored."""

    packing: Packing
    scales: TensorRef
    whole: TensorRef | None = None


def of_client(client: str) -> tuple[Packing, ...]:
    return tuple(packing for packing in PACKINGS if packing.client == client)


def leaf_of(name: str) -> tuple[str, str]:
    """Returns a name's module and leaf: the parts before and after its last dot."""
    module, _, leaf = name.rpartition(".")
    return module, leaf


def is_constant(ref: TensorRef) -> bool:
    """True for a tensor whose bytes a plan needs, not only its name and shape."""
    leaf = leaf_of(ref.name)[1]
    known = any(leaf == constant for packing in PACKINGS for constant, _ in packing.constants)
    limit = TOKENIZER_NBYTES if ref.name == TOKENIZER else _CONSTANT_NBYTES if known else -1
    return ref.dtype == "uint8" and ref.nbytes <= limit


def tokenizer_of(part: Part) -> TensorRef | None:
    """Returns the sentencepiece model that ComfyUI's text encoders carry as a tensor."""
    ref = part.tensors.get(TOKENIZER)
    return ref if ref is not None and is_constant(ref) else None


def sibling_name(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def stated(part: Part) -> dict[str, object]:
    """Returns the entries for layers in a file's header, by the names of the equivalent comfy_quant tensors.

    Raises InputError for a header with something else there.
    """
    if _HEADER not in part.metadata:
        return {}
    try:
        said = parsed_json(part.metadata[_HEADER].encode())
    except ValueError:
        said = None
    layers = said.get("layers") if isinstance(said, dict) else None
    if not isinstance(layers, dict) or not all(layer.isprintable() for layer in layers):
        message = f"{part.path}: {_HEADER} in its header is not a list of layers"
        raise InputError(message, "take the file that it was quantized from")
    return {sibling_name(layer, COMFY_QUANT): value for layer, value in layers.items()}


def unpack(part: Part) -> tuple[dict[str, TensorRef], dict[str, Packed]]:
    """Returns the weights of a file by their names without scales, and the scales of those that have some. Tensors that
    no row explains keep their own names, and so do entries that only the header has."""
    said = stated(part)
    rows = of_client("comfyui") if said else PACKINGS
    modules: dict[str, dict[str, TensorRef]] = {}
    for name, ref in _with_header(part, said).items():
        module, leaf = leaf_of(name)
        modules.setdefault(module, {})[leaf] = ref
    weights: dict[str, TensorRef] = {}
    packed: dict[str, Packed] = {}
    for module, leaves in modules.items():
        packing = next((packing for packing in rows if _fits(packing, leaves, said)), None)
        if packing is not None:
            name = sibling_name(module, "weight")
            used = {packing.payload, packing.scales, packing.whole, *(leaf for leaf, _ in packing.constants)}
            payload = leaves[packing.payload]
            weights[name] = replace(payload, name=name, dtype=packing.format, shape=packing.shape_of(payload.shape))
            packed[name] = Packed(packing, leaves[packing.scales], leaves[packing.whole] if packing.whole else None)
            leaves = {
                leaf: ref for leaf, ref in leaves.items() if leaf not in used and not is_input_scale(packing, ref)
            }
        for ref in leaves.values():
            if ref.dtype not in ATTACHED.get(ref.name, ()) or (ref.name == TOKENIZER and not is_constant(ref)):
                weights[ref.name] = ref
    return weights, packed


def _with_header(part: Part, said: Mapping[str, object]) -> dict[str, TensorRef]:
    """Returns a file's tensors, and one without bytes for each entry that only its header has."""
    stand_ins = {name: TensorRef(name, "uint8", (0,), Path(part.path), 0, 0) for name in said}
    return {**part.tensors, **{name: ref for name, ref in stand_ins.items() if name not in part.tensors}}


def unexplained_reason(name: str, part: Part) -> str:
    """Returns why a tensor that no row explains is not the part of a scaled weight, or the tokenizer, that its name
    says; empty for other names."""
    if name == TOKENIZER:
        return f"no tokenizer that wanconv reads: uint8 of at most {size(TOKENIZER_NBYTES)}"
    module, leaf = leaf_of(name)
    pairs = [(packing.payload, packing.scales) for packing in PACKINGS]
    wholes = {packing.whole for packing in PACKINGS if packing.whole}
    if leaf not in {COMFY_QUANT, *wholes, *(part for pair in pairs for part in pair)} - {"weight"}:
        return ""
    said = stated(part)
    tensors = _with_header(part, said)
    payloads, scales = (
        [ref for leaf in dict.fromkeys(leaves) if (ref := tensors.get(sibling_name(module, leaf)))]
        for leaves in zip(*pairs, strict=True)
    )
    if not scales or not payloads:
        missing = f"its {'weight' if scales else 'scale'} is missing"
        return missing if name in part.tensors else f"the header speaks of it, and {missing}"
    if len(payloads) > 1:
        return "its weight stands there twice, plain and quantized"
    constant = tensors.get(sibling_name(module, COMFY_QUANT))
    if constant is not None and (odd := _odd(constant, said)):
        return odd
    if scales[0].name != name:
        return ""
    of = f"{payloads[0].dtype} {list(payloads[0].shape)}"
    return f"{scales[0].dtype} {list(scales[0].shape)} is not a scale of {of} that wanconv knows"


def _odd(ref: TensorRef, said: Mapping[str, object]) -> str:
    """Returns why wanconv does not read a weight with this entry; empty if a row agrees with it."""
    known = [json.loads(content) for packing in PACKINGS for _, content in packing.constants]
    entries = _entries(ref, said)
    for value in entries:
        if not any(same_meaning(value, each) for each in known):
            return f"{COMFY_QUANT} is {_shown(value)}, which wanconv does not read"
    return (
        "the header and the tensor comfy_quant say different things"
        if not same_meaning(entries[0], entries[-1])
        else ""
    )


def _shown(value: object) -> str:
    try:
        return "not valid JSON" if value is None else json.dumps(value)[:_SHOWN]
    except RecursionError:
        return "nested too deeply"


def is_input_scale(packing: Packing, ref: TensorRef) -> bool:
    """True for the single number by which a client scales a layer's inputs."""
    return leaf_of(ref.name)[1] == packing.inputs and ref.dtype == "fp32" and ref.numel == 1


def in_full_precision(packing: Packing) -> bool:
    """True if ComfyUI decodes this weight before it multiplies, and so does not use a scale of the inputs."""
    return all(json.loads(content).get(_FULL_PRECISION) for _, content in packing.constants)


def multiplied_as(packing: Packing, module: str, part: Part) -> Packing:
    """Returns a packing of blocks with the file's fact about the weight: that it is multiplied in full precision."""
    if in_full_precision(packing):
        return packing
    name = sibling_name(module, COMFY_QUANT)
    ref = part.tensors.get(name)
    said = stated(part).get(name) if ref is None else _parsed(ref)
    if not isinstance(said, dict) or not said.get(_FULL_PRECISION):
        return packing
    return replace(packing, constants=((COMFY_QUANT, comfy_quant(packing.format)),), caution="")


def _fits(packing: Packing, leaves: Mapping[str, TensorRef], said: Mapping[str, object]) -> bool:
    if packing.payload != "weight" and "weight" in leaves:  # nothing shows which of the two is meant
        return False
    payload, scales = leaves.get(packing.payload), leaves.get(packing.scales)
    if payload is None or scales is None or payload.dtype != packing.payload_dtype:
        return False
    if packing.scale == "block" and (len(payload.shape) != 2 or not payload.numel):
        return False
    shape = packing.shape_of(payload.shape)
    if packing.payload_shape(shape) != payload.shape:  # its rows are not whole blocks
        return False
    if (scales.dtype, scales.shape) != (packing.scale_dtype, packing.scale_shape(shape)):
        return False
    if packing.whole and ((whole := leaves.get(packing.whole)) is None or (whole.dtype, whole.shape) != ("fp32", ())):
        return False
    if not packing.constants:
        return COMFY_QUANT not in leaves
    return all(
        leaf in leaves and all(same_meaning(each, json.loads(content)) for each in _entries(leaves[leaf], said))
        for leaf, content in packing.constants
    )


def _entries(ref: TensorRef, said: Mapping[str, object]) -> list[object]:
    """Returns the entries of a constant: the header's, and its tensor's. None stands for invalid JSON."""
    entries = [said[ref.name]] if ref.name in said else []
    return entries if entries and not ref.nbytes else [*entries, _parsed(ref)]


def _parsed(ref: TensorRef) -> object:
    """Returns a constant's JSON value, None if it is invalid."""
    if not is_constant(ref):
        return None
    try:
        return parsed_json(ref.read())
    except (OSError, ValueError):
        return None


def same_meaning(found: object, wanted: object) -> bool:
    """True if two JSON values differ only in how to multiply."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return found == wanted
    keys = (found.keys() | wanted.keys()) - _OPTIONS
    return all(key in found and key in wanted and same_meaning(found[key], wanted[key]) for key in keys)
