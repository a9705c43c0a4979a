"""Files that say of their scales what no single tensor does: in the header alone, twice, or one thing and another."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import comfyui
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wanconv.commands.convert import convert
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, Unrecognised
from wanconv.layouts import source_layout
from wanconv.models import identify
from wanconv.weights.model import ModelWeights

Tiny = Callable[..., Path]
T2V = "wan2.1-t2v-1.3b"
FILE = "diffusion_models/wan2.1-t2v.safetensors"
KNOWN = {"format": "int8_tensorwise"}
ROTATED = {**KNOWN, "convrot": True, "convrot_groupsize": 256}
LAYER = "blocks.1.ffn.0"


@pytest.fixture(scope="module")
def ours(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a file of ComfyUI with scales of rows, not to be changed."""
    out = tmp_path_factory.mktemp("ours") / "out"
    convert(tiny(T2V), ConvertOptions("int8-row", layout="comfyui", out=out, exclude=("*.pth",)))
    return out / FILE


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".comfy_quant")}


def layers(tensors: Mapping[str, Tensor], says: object = KNOWN, **more: object) -> str:
    """Returns a header that says the same of every layer that has scales, or something else of some."""
    names = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    return json.dumps({"format_version": "1.0", "layers": dict.fromkeys(names, says) | more})


def saved(file: Path, tensors: Mapping[str, Tensor], header: str) -> Path:
    save_file(dict(tensors), file, {"_quantization_metadata": header})
    return file


def decoded(file: Path) -> dict[str, Tensor]:
    model = identify(open_checkpoint(file))
    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        return {name: weights.tensors("dit", path)[path] for name in model.tensors for path in [name.partition("/")[2]]}


def refused(file: Path) -> tuple[str, ...]:
    with pytest.raises(Unrecognised) as raised:
        identify(open_checkpoint(file))
    return raised.value.details


def test_layers_that_the_header_alone_speaks_of_are_read_as_comfyui_reads_them(ours: Path, tmp_path: Path) -> None:
    tensors = bare(comfyui.contents(ours))
    file = saved(tmp_path / "model.safetensors", tensors, layers(tensors))
    assert source_layout(identify(open_checkpoint(file))).name == "comfyui"
    before, after = decoded(ours), decoded(file)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert verify(file, VerifyOptions(client="comfyui")).exit_code == 0
    convert(file, ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))
    again = comfyui.contents(tmp_path / "out" / FILE)
    assert again.keys() == comfyui.contents(ours).keys()
    assert verify(tmp_path / "out", VerifyOptions(against=ours, client="comfyui")).exit_code == 0


@pytest.mark.parametrize("where", ["header", "tensors", "both"])
def test_rotated_weights_are_no_plain_ones(where: str, ours: Path, tmp_path: Path) -> None:
    tensors = comfyui.contents(ours)
    rotated = torch.tensor(list(json.dumps(ROTATED).encode()), dtype=torch.uint8)
    told = {name: rotated.clone() if name.endswith(".comfy_quant") else tensor for name, tensor in tensors.items()}
    made = {"header": bare(tensors), "tensors": told, "both": told}[where]
    file = tmp_path / "model.safetensors"
    save_file(made, file, {} if where == "tensors" else {"_quantization_metadata": layers(tensors, ROTATED)})
    *lines, more = refused(file)
    why = f"(comfy_quant is {json.dumps(ROTATED)}, which wanconv does not read)"
    assert all(line.startswith("unknown: blocks.") and line.endswith(why) for line in lines)
    assert more == "… and 50 more"


def test_a_header_and_a_tensor_that_differ_are_refused_as_the_header_counts_for_comfyui(
    ours: Path, tmp_path: Path
) -> None:
    tensors = comfyui.contents(ours)
    file = saved(tmp_path / "model.safetensors", tensors, layers(tensors, **{LAYER: {"format": "float8_e4m3fn"}}))
    why = "the header and the tensor comfy_quant say different things"
    assert set(refused(file)) == {f"unknown: {LAYER}.{leaf} ({why})" for leaf in ("comfy_quant", "weight_scale")}


def test_how_to_multiply_may_differ_between_header_and_tensor(ours: Path, tmp_path: Path) -> None:
    tensors = comfyui.contents(ours)
    file = saved(tmp_path / "model.safetensors", tensors, layers(tensors))
    assert source_layout(identify(open_checkpoint(file))).name == "comfyui"


def test_a_scaled_layer_that_the_header_leaves_out_is_not_taken_for_another_clients(ours: Path, tmp_path: Path) -> None:
    tensors = bare(comfyui.contents(ours))
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(LAYER)}
    file = saved(tmp_path / "model.safetensors", tensors, layers(others))
    assert [line.partition(" (")[0] for line in refused(file)] == [f"unknown: {LAYER}.weight_scale"]


@pytest.mark.parametrize("layer", ["blocks.0.self_attn.norm_q", "blocks.9.ffn.0"])
def test_a_layer_that_the_header_speaks_of_and_that_has_no_scale_is_refused(
    layer: str, ours: Path, tmp_path: Path
) -> None:
    tensors = bare(comfyui.contents(ours))
    file = saved(tmp_path / "model.safetensors", tensors, layers(tensors, **{layer: KNOWN}))
    line = f"unknown: {layer}.comfy_quant (the header speaks of it, and its scale is missing)"
    assert refused(file) == (line,)


@pytest.mark.parametrize("said", [None, 1, "convrot", [], {"format": "int8_tensorwise", "x": {"y": []}}])
def test_what_is_said_of_a_layer_may_be_anything_and_is_shown(said: object, ours: Path, tmp_path: Path) -> None:
    tensors = bare(comfyui.contents(ours))
    file = saved(tmp_path / "model.safetensors", tensors, layers(tensors, **{LAYER: said}))
    shown = "not valid JSON" if said is None else json.dumps(said)
    assert f"unknown: {LAYER}.weight_scale (comfy_quant is {shown}, which wanconv does not read)" in refused(file)


def test_what_is_nested_too_deeply_to_be_shown_is_refused(ours: Path, tmp_path: Path) -> None:
    tensors = bare(comfyui.contents(ours))
    for depth in range(900, 1000, 10):
        header = layers(tensors, **{LAYER: "DEEP"}).replace('"DEEP"', "[" * depth + "]" * depth)
        with pytest.raises(InputError):
            identify(open_checkpoint(saved(tmp_path / "model.safetensors", tensors, header)))


@pytest.mark.parametrize(
    "header", ["", "{", "[" * 99_999, "[]", "{}", '{"layers": []}', '{"layers": null}', r'{"layers": {"a\ud800": {}}}',
               r'{"layers": {"a\u001b[2J": {}}}'],
)  # fmt: skip
def test_a_header_that_lists_no_layers_is_one_sentence(header: str, ours: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "model.safetensors", bare(comfyui.contents(ours)), header)
    with pytest.raises(InputError) as raised:
        identify(open_checkpoint(file))
    said = "model.safetensors: _quantization_metadata in its header is not a list of layers"
    assert (raised.value.message, raised.value.details) == (said, ())


def test_a_weight_that_stands_there_plain_as_well_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    options = ConvertOptions("int8-row", layout="diffusers", out=tmp_path / "out", exclude=("*.pth",))
    convert(tiny(T2V), options)
    (file,) = (tmp_path / "out" / "transformer").glob("*.safetensors")
    tensors = comfyui.contents(file)
    layer = "blocks.0.attn1.to_q"
    plain = torch.zeros(tensors[f"{layer}._weight_qdata"].shape, dtype=torch.bfloat16)
    save_file({**tensors, f"{layer}.weight": plain}, file)
    why = "its weight stands there twice, plain and quantized"
    assert set(refused(file)) == {f"unknown: {layer}.{leaf} ({why})" for leaf in ("_weight_qdata", "_weight_scale")}
