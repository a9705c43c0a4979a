"""What clients make of scaled weights: diffusers with torchao, comfy-kitchen, the rules of LightX2V and DiffSynth."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path

import comfy_kitchen.tensor as kitchen
import pytest
import tiny as tools
import torch
from covering import covering
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from wanconv.commands.convert import EXISTING, WRITTEN, convert
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, NotFinite, Refused, Unrecognised, UsageError
from wanconv.layouts import LAYOUTS
from wanconv.models import DENOISERS, FAMILIES, fingerprint, identify
from wanconv.quantization.codec import RUN
from wanconv.types.architecture import Family
from wanconv.types.model import Component
from wanconv.types.tensors import Shape
from wanconv.weights.model import ModelWeights

Tiny = Callable[..., Path]
T2V = "wan2.1-t2v-1.3b"
A14B, S2V, I2V = "wan2.2-t2v-a14b", "wan2.2-s2v-14b", "wan2.1-i2v-14b"
VACE = "wan2.1-vace-14b"
RULE = '[[rule]]\nmatch = "{match}"\n{more}\n'
REST = RULE.format(match="**", more='format = "bf16"')


def mine(folder: Path, *rules: tuple[str, str]) -> str:
    """Writes a recipe of (glob, format and scale) for linear weights, the rest in bf16; returns its path."""
    made = [RULE.format(match=match, more=f'kind = "linear"\n{more}') for match, more in rules]
    (folder / "mine.toml").write_text('schema = 1\nsummary = "a test"\n' + "".join(made) + REST)
    return str(folder / "mine.toml")


def mixed(folder: Path) -> str:
    return mine(
        folder,
        ("{dit,expert.*}/blocks.*.ffn.*.weight", 'format = "int8"\nscale = "row"'),
        ("{dit,expert.*}/blocks.**", 'format = "fp8_e4m3fn"\nscale = "auto"'),
    )


def decoded(folder: Path, name: str) -> dict[str, Tensor]:
    """Returns what wanconv reads of a component, by the names of the file where nothing is scaled."""
    model = identify(open_checkpoint(folder))
    component = model.components[name]
    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        return {
            tensor.pieces[0].ref.name: weights.tensors(name, path.partition("/")[2])[path.partition("/")[2]]
            for path, tensor in component.tensors.items()
        }


def contents(files: list[Path]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
    return found


def denoisers(folder: Path) -> Mapping[str, Component]:
    components = identify(open_checkpoint(folder)).components
    return {name: component for name, component in components.items() if name in DENOISERS}


# diffusers


@covering(
    ("recipe", "shard_nbytes"),
    ["mixed", "fp8-scaled", "int8-row", "int8-experts", "fp8-blocks-rest-bf16"],
    [None, 200_000],
    strength=1,
)
def test_diffusers_and_torchao_decode_every_weight_as_we_do(
    recipe: str, shard_nbytes: int | None, tiny: Tiny, tmp_path: Path
) -> None:
    out, name = tmp_path / "out", mixed(tmp_path) if recipe == "mixed" else recipe
    convert(tiny(A14B), ConvertOptions(name, layout="diffusers", out=out, shard_nbytes=shard_nbytes))
    assert (len(list((out / "transformer").glob("*.safetensors"))) > 1) == (shard_nbytes is not None)
    dtype = torch.float16 if recipe == "int8-experts" else torch.bfloat16
    for component, folder in (("expert.high", "transformer"), ("expert.low", "transformer_2")):
        model, info = WanTransformer3DModel.from_pretrained(out / folder, torch_dtype=dtype, output_loading_info=True)
        assert not any(info.values())
        ours, kinds = decoded(out, component), set()
        loaded = dict(model.named_parameters())
        assert loaded.keys() == ours.keys()
        for key, parameter in loaded.items():
            kinds.add(type(parameter.data).__name__)
            data = parameter.data.detach()
            values = data.dequantize(torch.float32) if hasattr(data, "qdata") else data
            assert torch.equal(values.float(), ours[key].to(values.dtype).float()), key
        expected = {"Float8Tensor"} if "fp8" in recipe else {"Int8Tensor"}
        assert kinds - {"Tensor"} == ({"Float8Tensor", "Int8Tensor"} if recipe == "mixed" else expected)
        x = torch.randn(1, 16, 1, 8, 8, dtype=dtype)
        text = torch.randn(1, 12, 64, dtype=dtype)
        assert model(x, torch.tensor([500]), text).sample.isfinite().all()


def test_the_whole_pipeline_loads(tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(A14B), ConvertOptions("fp8-scaled", layout="diffusers", out=tmp_path / "out"))
    pipeline = WanPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert type(pipeline.transformer.blocks[0].attn1.to_q.weight.data).__name__ == "Float8Tensor"


# ComfyUI


def kitchen_decode(payload: Tensor, scales: Tensor, quant: Mapping[str, object]) -> Tensor:
    layout = {
        "float8_e4m3fn": kitchen.TensorCoreFP8Layout,
        "float8_e5m2": kitchen.TensorCoreFP8Layout,
        "int8_tensorwise": kitchen.TensorWiseINT8Layout,
    }[str(quant["format"])]
    params = layout.Params(scale=scales, orig_dtype=torch.float32, orig_shape=tuple(payload.shape))
    values: Tensor = layout.dequantize(payload, params)
    return values


@pytest.mark.parametrize(
    ("rule", "name", "rank"),
    [
        ('format = "fp8_e4m3fn"\nscale = "auto"', "float8_e4m3fn", 0),
        ('format = "fp8_e5m2"\nscale = "tensor"', "float8_e5m2", 0),
        ('format = "int8"\nscale = "auto"', "int8_tensorwise", 2),
        ('format = "int8"\nscale = "tensor"', "int8_tensorwise", 0),
    ],
)
def test_comfy_kitchen_decodes_every_weight_as_we_do(
    rule: str, name: str, rank: int, tiny: Tiny, tmp_path: Path
) -> None:
    recipe, out = mine(tmp_path, ("{dit,expert.*}/blocks.**", rule)), tmp_path / "out"
    convert(tiny(A14B), ConvertOptions(recipe, layout="comfyui", out=out))
    for component, role in (("expert.high", "high_noise"), ("expert.low", "low_noise")):
        file = out / "diffusion_models" / f"{A14B}_{role}.safetensors"
        tensors, ours = contents([file]), decoded(out, component)
        with safe_open(file, "pt") as opened:
            said = json.loads(opened.metadata()["_quantization_metadata"])
        assert said["format_version"] == "1.0"
        layers = {key.removesuffix(".comfy_quant") for key in tensors if key.endswith(".comfy_quant")}
        assert layers == said["layers"].keys()
        assert len(layers) == 10 * 3
        for layer in layers:
            quant = json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))
            assert quant == said["layers"][layer] == {"format": name, "full_precision_matrix_mult": True}
            payload, scales = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"]
            assert (scales.dtype, scales.ndim) == (torch.float32, rank)
            assert torch.equal(kitchen_decode(payload, scales, quant), ours[f"{layer}.weight"])
        plain = {key: value for key, value in tensors.items() if key.rpartition(".")[0] not in layers}
        assert all(value.dtype == torch.bfloat16 for value in plain.values())


def test_comfyui_finds_one_file_per_component_in_its_folders(tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(I2V), ConvertOptions("int8-row", layout="comfyui", out=tmp_path / "out"))
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.safetensors"))
    assert found == [
        "clip_vision/clip_vision_h.safetensors",
        "diffusion_models/wan2.1-i2v.safetensors",
        "text_encoders/umt5_xxl.safetensors",
        "vae/wan_2.1_vae.safetensors",
    ]


def test_comfyui_gets_the_sentencepiece_model_as_a_tensor(tiny: Tiny, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    tools.copy(tiny(A14B), source)
    (source / "google" / "umt5-xxl" / "spiece.model").write_bytes(b"a model of pieces")
    convert(source, ConvertOptions("keep", layout="comfyui", out=out))
    tensors = contents([out / "text_encoders" / "umt5_xxl.safetensors"])
    assert bytes(tensors["spiece_model"].tolist()) == b"a model of pieces"
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in tensors
    assert verify(out, VerifyOptions(against=source)).exit_code == 0


# LightX2V: what mm_weight.py and transformer_weights.py ask of a quantized checkpoint

LINEARS = {f"{part}_attn.{leaf}" for part in ("self", "cross") for leaf in "qkvo"} | {"ffn.0", "ffn.2"}


@pytest.mark.parametrize(("recipe", "dtype", "scheme"), [
    ("fp8-scaled", torch.float8_e4m3fn, "fp8-sgl"), ("int8-row", torch.int8, "int8-sgl"),
])  # fmt: skip
@pytest.mark.parametrize("release", [A14B, S2V, I2V, VACE])
def test_lightx2v_finds_scales_of_rows_for_all_block_weights_and_no_others(
    release: str, recipe: str, dtype: torch.dtype, scheme: str, tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(tiny(release), ConvertOptions(recipe, layout="lightx2v", out=out))
    settings = json.loads((out / "lightx2v.json").read_bytes())
    assert (settings["dit_quantized"], settings["dit_quant_scheme"]) == (True, scheme)
    keys = ("high_noise_quantized_ckpt", "low_noise_quantized_ckpt") if release == A14B else ("dit_quantized_ckpt",)
    linears = LINEARS | ({"cross_attn.k_img", "cross_attn.v_img"} if release == I2V else set())
    for key in keys:
        tensors = contents(sorted((out / settings[key]).glob("*.safetensors")))
        scaled = {name.removesuffix("_scale") for name in tensors if name.endswith(".weight_scale")}
        blocks = {S2V: 5, VACE: 4}.get(release, 3)
        expected = {f"blocks.{n}.{linear}.weight" for n in range(blocks) for linear in linears}
        if release == VACE:
            expected |= {f"vace_blocks.{m}.{linear}.weight" for m in range(2) for linear in {*linears, "after_proj"}}
            expected |= {"vace_blocks.0.before_proj.weight"}
        if release == S2V:
            expected |= {f"audio_injector.injector.{m}.{leaf}.weight" for m in range(2) for leaf in "qkvo"}
            expected |= {f"audio_injector.injector_adain_layers.{m}.linear.weight" for m in range(2)}
        assert scaled == expected
        assert {name for name, value in tensors.items() if value.dtype == dtype} == scaled
        for name in scaled:
            scales = tensors[f"{name}_scale"]
            assert (scales.dtype, tuple(scales.shape)) == (torch.float32, (tensors[name].shape[0], 1))


# DiffSynth

KNOWN = [family for family in FAMILIES if family.name not in (LAYOUTS["diffsynth"].refused or {})]


@covering(("family", "recipe"), KNOWN, ["keep", "bf16", "fp16", "fp8-plain"], strength=1)
def test_diffsynth_knows_plain_outputs_by_the_fingerprint_of_the_source(
    family: Family, recipe: str, tiny: Tiny, tmp_path: Path
) -> None:
    source = tiny(family.releases[-1].name)
    convert(source, ConvertOptions(recipe, layout="diffsynth", out=tmp_path / "out"))
    theirs, ours = denoisers(source), denoisers(tmp_path / "out")
    for name, component in ours.items():
        shapes: dict[str, Shape] = {key: tuple(value.shape) for key, value in _on_disk(tmp_path / "out", component)}
        assert fingerprint(shapes) == component.fingerprint == theirs[name].fingerprint


def _on_disk(out: Path, component: Component) -> list[tuple[str, Tensor]]:
    return list(contents([out / file for file in component.part.files]).items())


# what a client does not read


CPU = torch.device("cpu")
ROW, TENSOR = 'format = "fp8_e4m3fn"\nscale = "row"', 'format = "fp8_e4m3fn"\nscale = "tensor"'
BLOCKS = "{dit,expert.*}/blocks.**"


@pytest.mark.parametrize(("layout", "rules", "reason"), [
    ("comfyui", [(BLOCKS, ROW)], "comfyui does not read fp8_e4m3fn with a scale of each row: its kernels"),
    ("lightx2v", [(BLOCKS, TENSOR)], "lightx2v does not read fp8_e4m3fn with a scale of each tensor: its"),
    ("lightx2v", [("{dit,expert.*}/blocks.*.ffn.*.weight", ROW)], "LightX2V reads all block weights"),
    ("lightx2v", [("**.head.proj.weight", ROW)], "LightX2V reads all block weights"),
    ("diffusers", [(BLOCKS, TENSOR)], "diffusers does not read fp8_e4m3fn with a scale of each tensor: of "),
    ("diffusers", [(BLOCKS, ROW.replace("e4m3fn", "e5m2"))], "diffusers does not read fp8_e5m2 with a scale"),
    ("official", [(BLOCKS, ROW)], "official does not read fp8_e4m3fn with a scale of each row: it wou"),
    ("diffsynth", [(BLOCKS, ROW)], "diffsynth does not read fp8_e4m3fn with a scale of each row: it kno"),
    ("diffusers", [("text_encoder/**", ROW)], "diffusers reads scales in the weights of dit, expert.h"),
])  # fmt: skip
def test_what_a_client_does_not_read_is_refused_with_the_reason(
    layout: str, rules: list[tuple[str, str]], reason: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as raised:
        convert(tiny(A14B), ConvertOptions(mine(tmp_path, *rules), layout=layout, out=tmp_path / "out"))
    assert raised.value.exit_code == 2
    assert raised.value.message.startswith(f"the {layout} layout does not take this recipe: {reason}")
    assert not (tmp_path / "out").exists()


def test_lightx2v_refuses_plain_fp8(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"every fp8 weight that LightX2V reads has scales: use fp8-scaled$"):
        convert(tiny(A14B), ConvertOptions("fp8-plain", layout="lightx2v", out=tmp_path / "out"))


# read back


@pytest.mark.parametrize("layout", ["comfyui", "lightx2v", "diffusers"])
@pytest.mark.parametrize("recipe", ["fp8-scaled", "int8-row"])
def test_a_scaled_folder_is_known_again(layout: str, recipe: str, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny(A14B), ConvertOptions(recipe, layout=layout, out=out))
    model = identify(open_checkpoint(out))
    packings = {tensor.packing for tensor in model.tensors.values()} - {None}
    assert [packing.client for packing in packings if packing] == [layout]
    assert packings <= set(LAYOUTS[layout].packings)


# sources that are quantized already


TO_OTHERS = [
    ("fp8-scaled", "comfyui", "lightx2v"), ("fp8-scaled", "comfyui", "diffusers"),
    ("fp8-scaled", "lightx2v", "diffusers"),
    ("int8-row", "comfyui", "diffusers"), ("int8-row", "diffusers", "lightx2v"), ("int8-row", "lightx2v", "comfyui"),
]  # fmt: skip


@covering(
    ("recipe", "first", "second", "again"),
    ["fp8-scaled", "int8-row"],
    ["comfyui", "lightx2v", "diffusers"],
    ["comfyui", "lightx2v", "diffusers"],
    ["keep", "same"],
    strength=1,
    given=lambda *row: row[:3] in TO_OTHERS,
)
def test_another_client_gets_the_same_numbers(
    recipe: str, first: str, second: str, again: str, tiny: Tiny, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    convert(tiny(A14B), ConvertOptions(recipe, layout=first, out=one))
    report = convert(one, ConvertOptions("keep" if again == "keep" else recipe, layout=second, out=other))
    assert [note.message for note in report.findings if "carried over" in note.message]
    assert not [note.message for note in report.findings if "lost already" in note.message]
    before, after = identify(open_checkpoint(one)), identify(open_checkpoint(other))
    assert {each.packing.client for each in after.tensors.values() if each.packing} == {second}
    with ModelWeights(before, 0, CPU) as theirs, ModelWeights(after, 0, CPU) as ours:
        for name, tensor in after.tensors.items():
            if tensor.packing:
                component, _, path = name.partition("/")
                assert torch.equal(*(each.tensors(component, path)[path] for each in (theirs, ours)))
    assert verify(other, VerifyOptions(against=one)).exit_code == 0
    assert verify(other, VerifyOptions(against=tiny(A14B))).exit_code == 0


@pytest.mark.parametrize(
    ("recipe", "layout"), [("bf16", "official"), ("int8-row", "comfyui"), ("fp8-plain", "diffusers")]
)
def test_a_second_rounding_is_told_and_proven(recipe: str, layout: str, tiny: Tiny, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    convert(tiny(A14B), ConvertOptions("fp8-scaled", layout="diffusers", out=one))
    report = convert(one, ConvertOptions(recipe, layout=layout, out=other))
    told = [note.message for note in report.findings if "lost already" in note.message]
    assert len(told) == 1
    assert told[0].startswith("was fp8_e4m3fn row: that precision is lost already, and ")
    assert verify(other, VerifyOptions(against=one)).exit_code == 0
    configs = [json.loads(path.read_bytes()) for path in other.rglob("config.json")]
    assert not [config for config in configs if "quantization_config" in config]


def test_rows_of_scales_do_not_become_one(tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(A14B), ConvertOptions("fp8-scaled", layout="lightx2v", out=tmp_path / "one"))
    with pytest.raises(Refused, match="comfyui does not read fp8_e4m3fn with a scale of each row: its kernels"):
        convert(tmp_path / "one", ConvertOptions("keep", layout="comfyui", out=tmp_path / "other"))
    report = convert(tmp_path / "one", ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "other"))
    assert [note for note in report.findings if "fp8_e4m3fn tensor adds its own error" in note.message]
    (rules,) = [table for table in report.tables if table.title == "rules"]
    assert rules.rows[0][2:4] == ("fp8_e4m3fn row", "fp8_e4m3fn tensor")


@covering(("layout", "factor"), ["comfyui", "lightx2v", "diffusers"], [2.0, 0.5], strength=1)
def test_one_wrong_scale_fails_the_proof_and_the_digest(layout: str, factor: float, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny(A14B), ConvertOptions("fp8-scaled", layout=layout, out=out))
    tensor = identify(open_checkpoint(out)).tensors["expert.low/blocks.1.ffn.up.weight"]
    assert tensor.scales is not None
    value = torch.frombuffer(bytearray(tensor.scales.read()), dtype=torch.float32)[0].item()
    tools.poke(tensor.scales.file, tensor.scales.name, 0, value * factor)
    report = verify(out, VerifyOptions(against=tiny(A14B)))
    failed = {finding.where: finding.code for finding in report.findings if finding.severity == "failure"}
    assert failed["expert.low/blocks.1.ffn.up.weight"] == "check-failed"
    assert failed["the scales of expert.low/blocks.1.ffn.up.weight"] == "digest"


def test_a_scale_that_is_none_is_named_as_such(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny(T2V), ConvertOptions("fp8-scaled", layout="comfyui", out=out))
    (out / "wanconv.json").unlink()
    for scale, code in ((float("nan"), 5), (0.0, 1), (-1.0, 1)):
        tools.poke(out / "diffusion_models" / "wan2.1-t2v.safetensors", "blocks.1.ffn.0.weight_scale", 0, scale)
        report = verify(out, VerifyOptions(against=tiny(T2V)))
        (failure,) = [finding for finding in report.findings if finding.severity == "failure"]
        assert (report.exit_code, failure.where) == (code, "dit/blocks.1.ffn.up.weight")
        assert failure.message == f"has a scale of {scale:.9g}, and a scale is a positive number"


@covering(
    ("recipe", "layout", "scale"),
    ["keep", "bf16"],
    ["comfyui", "diffusers", "official"],
    [0.0, -1.0, float("nan"), float("inf")],
    strength=1,
    given=lambda recipe, layout, scale: (recipe == "bf16") == (layout == "official"),
)
def test_a_source_with_a_scale_that_is_none_is_refused_whether_carried_or_decoded_and_leaves_nothing(
    recipe: str, layout: str, scale: float, tiny: Tiny, tmp_path: Path
) -> None:
    error = InputError if isfinite(scale) else NotFinite
    convert(tiny(T2V), ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "source"))
    file = tmp_path / "source" / "diffusion_models" / "wan2.1-t2v.safetensors"
    tools.poke(file, "blocks.1.ffn.0.weight_scale", 0, scale)
    said = f"^dit/blocks.1.ffn.up.weight has a scale of {scale:.9g}, and a scale is a positive number$"
    with pytest.raises(error, match=said) as raised:
        convert(tmp_path / "source", ConvertOptions(recipe, layout=layout, out=tmp_path / "out"))
    assert raised.value.exit_code == (5 if error is NotFinite else 3)
    assert raised.value.hint.startswith("get the file again")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = verify(tmp_path / "source", VerifyOptions(against=tmp_path / "source"))
    assert "dit/blocks.1.ffn.up.weight" in {one.where for one in report.findings if one.severity == "failure"}


@pytest.mark.exhaustive
def test_a_row_longer_than_what_is_read_at_a_time_is_decoded_and_compared(tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(T2V), ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "tiny"))
    tensors, layer = contents([tmp_path / "tiny" / "diffusion_models" / "wan2.1-t2v.safetensors"]), "text_embedding.0"
    payload = torch.randn(128, RUN + 100, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    tensors |= {f"{layer}.weight": payload, f"{layer}.weight_scale": torch.tensor(0.5)}
    tensors[f"{layer}.comfy_quant"] = tensors["blocks.0.ffn.0.comfy_quant"].clone()
    source, out = tmp_path / "source.safetensors", tmp_path / "out"
    save_file(tensors, source)
    convert(source, ConvertOptions("bf16", layout="comfyui", out=out))
    (file,) = tools.weight_files(out)
    assert torch.equal(contents([file])[f"{layer}.weight"], (payload.float() * 0.5).bfloat16())
    assert verify(out, VerifyOptions(against=source)).exit_code == 0
    assert verify(source, VerifyOptions(against=source)).exit_code == 0  # payload with payload, in parts of a row
    assert torch.equal(decoded(source, "dit")[f"{layer}.weight"], payload.float() * 0.5)


def test_scales_that_are_none_are_told_with_the_reason(tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(T2V), ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "out"))
    whole = contents([tmp_path / "out" / "diffusion_models" / "wan2.1-t2v.safetensors"])
    weight, scale = "blocks.1.ffn.0.weight", "blocks.1.ffn.0.weight_scale"
    without_scale = {name: tensor for name, tensor in whole.items() if name != scale}
    without_weight = {name: tensor for name, tensor in whole.items() if name != weight}
    for tensors, line in (
        (without_scale, "unknown: blocks.1.ffn.0.comfy_quant (its scale is missing)"),
        (without_weight, f"unknown: {scale} (its weight is missing)"),
        (
            {**whole, scale: whole[scale].bfloat16()},
            f"unknown: {scale} (bf16 [] is not a scale of fp8_e4m3fn {list(whole[weight].shape)} that wanconv knows)",
        ),
    ):
        save_file(tensors, tmp_path / "spoilt.safetensors")
        with pytest.raises(Unrecognised) as raised:
            identify(open_checkpoint(tmp_path / "spoilt.safetensors"))
        assert line in raised.value.details


# plain casts of small numbers


def test_numbers_that_a_plain_cast_makes_zero_are_told_and_scales_keep_them(tiny: Tiny, tmp_path: Path) -> None:
    source, name = tmp_path / "source", "audio_injector.injector.0.o.weight"
    tools.copy(tiny(S2V), source)
    (component,) = denoisers(source).values()
    (file,) = component.part.files
    ref = component.part.tensors[name]
    values = torch.randn(ref.numel, generator=torch.Generator().manual_seed(0)) * 0.001
    with (source / file).open("r+b") as stream:
        stream.seek(ref.offset)
        stream.write(values.numpy().tobytes())
    for scale, told in (("none", True), ("row", False)):
        rule = ("dit/**", f'format = "fp8_e4m3fn"\nscale = "{scale}"')
        blocks = ("dit/blocks.**", f'format = "fp8_e4m3fn"\nscale = "{scale}"')
        recipe = mine(tmp_path, rule if scale == "none" else blocks)
        layout = "diffsynth" if scale == "none" else "lightx2v"
        report = convert(source, ConvertOptions(recipe, layout=layout, out=tmp_path / scale))
        warned = {one.where: one.message for one in report.findings if "became zero" in one.message}
        assert ("dit/audio_injector.0.cross_attn.o.weight" in warned) == told
    assert verify(tmp_path / "row", VerifyOptions(against=source)).exit_code == 0


def test_a_finished_scaled_folder_is_left_and_a_changed_source_is_seen(tiny: Tiny, tmp_path: Path) -> None:
    source, options = tools.copy(tiny(A14B), tmp_path / "source"), ConvertOptions("int8-row", layout="comfyui")
    first = convert(source, replace(options, out=tmp_path / "out"))
    again = convert(source, replace(options, out=tmp_path / "out"))
    assert (first.figures["outcome"], again.figures["outcome"]) == (
        WRITTEN,
        EXISTING,
    )
    tensor = identify(open_checkpoint(source)).tensors["expert.high/blocks.1.ffn.up.weight"].pieces[0].ref
    middle = tensor.numel // 2
    tools.poke(tensor.file, tensor.name, middle, 3.0)
    with pytest.raises(UsageError, match="was made from other numbers, for instance in expert"):
        convert(source, replace(options, out=tmp_path / "out"))
