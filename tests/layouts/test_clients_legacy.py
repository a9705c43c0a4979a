"""ComfyUI's legacy files: what it makes of ours, what we make of others', and the way to native ones and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfyui
import command
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from wanconv.commands.convert import convert, preview
from wanconv.commands.inspect import inspect
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Refused, Unrecognised, UsageError
from wanconv.layouts import source_layout
from wanconv.models import identify
from wanconv.weights.model import ModelWeights

Tiny = Callable[..., Path]
T2V = "wan2.1-t2v-1.3b"
DIT = "diffusion_models/wan2.1-t2v.safetensors"
NATIVE = ConvertOptions("fp8-scaled", layout="comfyui")
LEGACY = replace(NATIVE, comfyui_generation="legacy")
T5 = """schema = 1
summary = "a test"
[[rule]]
match = "text_encoder/**"
kind = "linear"
format = "fp8_e4m3fn"
scale = "auto"
[[rule]]
match = "**"
format = "bf16"
"""


def decoded(file: Path) -> dict[str, Tensor]:
    """Returns what wanconv reads of the weights with scales in a lone file, by the names of the file."""
    model = identify(open_checkpoint(file))
    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        return {
            tensor.pieces[0].ref.name: weights.tensors(component, path)[path]
            for name, tensor in model.tensors.items()
            if tensor.packing
            for component, _, path in [name.partition("/")]
        }


@pytest.fixture(scope="module")
def legacy(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("legacy") / "out"
    report = convert(tiny(T2V), replace(LEGACY, out=out))
    assert "casts every tensor without a scale" in {one.where: one.message for one in report.findings}["comfyui-legacy"]
    return out


def failures(folder: Path, client: str) -> list[str]:
    return [one.where for one in verify(folder, VerifyOptions(client=client)).findings if one.severity == "failure"]


def test_comfyui_decodes_a_legacy_file_as_we_do(legacy: Path, tiny: Tiny) -> None:
    tensors, ours = comfyui.contents(legacy / DIT), decoded(legacy / DIT)
    assert (tensors["scaled_fp8"].dtype, tensors["scaled_fp8"].shape) == (torch.float8_e4m3fn, (2,))
    theirs = list(comfyui.read(tensors))
    assert {name for name, _, _ in theirs} == ours.keys()
    assert len(theirs) == 10 * 3
    for name, values, says in theirs:
        scale = tensors[name.removesuffix("weight") + "scale_weight"]
        assert (scale.dtype, scale.ndim) == (torch.float32, 0)
        assert says == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
        assert torch.equal(values, ours[name])
    assert {name.rpartition(".")[2] for name in tensors} == {
        "weight",
        "bias",
        "modulation",
        "scale_weight",
        "scaled_fp8",
    }
    with safe_open(legacy / DIT, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert verify(legacy, VerifyOptions(against=tiny(T2V), client="comfyui-legacy")).exit_code == 0


def test_a_legacy_folder_is_known_for_what_it_is(legacy: Path) -> None:
    model = identify(open_checkpoint(legacy))
    assert source_layout(model).name == json.loads((legacy / "wanconv.json").read_bytes())["layout"] == "comfyui-legacy"
    assert "fp8_e4m3fn tensor 30" in inspect(legacy).text("dtypes")
    assert "scaled_fp8" not in comfyui.contents(legacy / "vae" / "wan_2.1_vae.safetensors")
    assert "blocks.0.self_attn.q.comfy_quant" in failures(legacy, "comfyui")


@pytest.mark.parametrize("order", [("native", "legacy"), ("legacy", "native")])
def test_from_one_generation_to_the_other_nothing_is_rounded_twice(
    order: tuple[str, str], tiny: Tiny, tmp_path: Path
) -> None:
    first, second = (LEGACY if generation == "legacy" else NATIVE for generation in order)
    convert(tiny(T2V), replace(first, out=tmp_path / "one", exclude=("*.pth",)))
    report = convert(tmp_path / "one", replace(second, out=tmp_path / "two"))
    assert [one.message for one in report.findings if "carried over" in one.message]
    assert not [one.message for one in report.findings if "lost already" in one.message]
    one, two = decoded(tmp_path / "one" / DIT), decoded(tmp_path / "two" / DIT)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    back = convert(tmp_path / "two", replace(first, recipe="keep", out=tmp_path / "three"))
    assert back.exit_code == 0
    assert (tmp_path / "three" / DIT).read_bytes() == (tmp_path / "one" / DIT).read_bytes()


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("int8-row", "int8 with a scale of each row"),
        (T5.replace("text_encoder/**", "dit/blocks.**").replace("e4m3fn", "e5m2"), "fp8_e5m2 with scales"),
        (T5.replace("text_encoder/**", "dit/blocks.**").replace("auto", "row"), "fp8_e4m3fn with a scale of each row"),
    ],
    ids=["int8", "e5m2", "rows"],
)
def test_what_the_marker_cannot_say_is_refused(recipe: str, what: str, tiny: Tiny, tmp_path: Path) -> None:
    if recipe.startswith("schema"):
        (tmp_path / "mine.toml").write_text(recipe)
        recipe = str(tmp_path / "mine.toml")
    with pytest.raises(Refused) as raised:
        convert(tiny(T2V), replace(LEGACY, recipe=recipe, out=tmp_path / "out"))
    assert raised.value.exit_code == 2
    assert raised.value.message == (
        f"the comfyui-legacy layout does not take this recipe: comfyui-legacy does not read {what}: "
        "to ComfyUI every weight of a file marked scaled_fp8 is fp8_e4m3fn with one scale"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", [None, "diffusers", "comfyui-legacy"])
def test_the_generation_is_one_of_comfyui(layout: str | None, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'^`comfyui_generation` is about `layout="comfyui"`, and ') as raised:
        convert(tiny(T2V), replace(LEGACY, layout=layout, out=tmp_path / "out"))
    assert raised.value.exit_code == 2


def test_the_commands_know_the_generations(tiny: Tiny, tmp_path: Path) -> None:
    legacy = ("--layout", "comfyui", "--comfyui-generation", "legacy", "--json")
    convert_, recipes, wrong = command.run_all(
        [
            ("convert", str(tiny(T2V)), "-r", "fp8-scaled", *legacy, "--dry-run"),
            ("recipes", "fp8-scaled", "--on", str(tiny(T2V)), *legacy),
            ("convert", str(tiny(T2V)), "-r", "fp8-scaled", "--comfyui-generation", "old", "-n"),
        ],
        cwd=tmp_path,
    )
    planned = json.loads(convert_.output)
    assert (planned["figures"]["layout"], planned["details"]["source_layout"]) == ("comfyui-legacy", "official")
    assert json.loads(recipes.output)["figures"]["layout"] == "comfyui-legacy"
    assert (wrong.exit_code, "'old'" in wrong.errors) == (2, True)


# files of others


def others(source: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    target.mkdir()
    save_file(change(comfyui.contents(source)), target / "model.safetensors", {"format": "pt"})
    return target / "model.safetensors"


def with_input_scales(leaf: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Returns what makes a file of one that ComfyUI multiplies in fp8, as calibrated ones are."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made = {name: value for name, value in tensors.items() if name != "scaled_fp8"}
        for name in tensors:
            if name.endswith((".scale_weight", ".weight_scale")):
                made[f"{name.rpartition('.')[0]}.{leaf}"] = torch.tensor(0.5)
            if name.endswith(".comfy_quant"):
                made[name] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        return made if leaf == "input_scale" else {**made, "scaled_fp8": torch.zeros(0)}

    return change


@pytest.mark.parametrize(
    ("options", "leaf", "client"), [(LEGACY, "scale_input", "comfyui-legacy"), (NATIVE, "input_scale", "comfyui")]
)
def test_calibrated_files_of_others_are_read_and_their_input_scales_left_out(
    options: ConvertOptions, leaf: str, client: str, tiny: Tiny, tmp_path: Path
) -> None:
    convert(tiny(T2V), replace(options, out=tmp_path / "ours", exclude=("*.pth",)))
    file = others(tmp_path / "ours" / DIT, tmp_path / "theirs", with_input_scales(leaf))
    assert source_layout(identify(open_checkpoint(file))).name == client
    ours, theirs = decoded(tmp_path / "ours" / DIT), decoded(file)
    assert len(theirs) == 30
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert failures(file, client) == []
    report = convert(file, replace(NATIVE, out=tmp_path / "out"))
    assert [one.message for one in report.findings if "input scale" in one.message] == [
        "its calibrated input scale is left out: its client multiplies in full precision without"
    ]
    again = decoded(tmp_path / "out" / DIT)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert not [name for name in comfyui.contents(tmp_path / "out" / DIT) if name.endswith(".input_scale")]
    report = preview(file, ConvertOptions("bf16", layout="diffusers"))
    assert [one.message for one in report.findings if "input scale" in one.message] == [
        "its calibrated input scale is left out: diffusers does not read one with bf16"
    ]


def test_a_legacy_file_of_another_format_is_not_guessed_at(legacy: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value.to(torch.float8_e5m2) if value.dtype == torch.float8_e4m3fn else value
            for name, value in tensors.items()
        }

    file = others(legacy / DIT, tmp_path / "theirs", change)
    with pytest.raises(Unrecognised, match="0 missing, 31 unknown, 0 wrongly shaped"):
        identify(open_checkpoint(file))


# text encoders


@pytest.mark.parametrize("options", [NATIVE, LEGACY], ids=["native", "legacy"])
def test_comfyui_decodes_a_scaled_text_encoder_as_we_do(options: ConvertOptions, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(T5)
    convert(tiny(T2V), replace(options, recipe=str(tmp_path / "mine.toml"), out=tmp_path / "out"))
    file = tmp_path / "out" / "text_encoders" / "umt5_xxl.safetensors"
    tensors, ours = comfyui.contents(file), decoded(file)
    theirs = list(comfyui.read(tensors))
    blocks = len([name for name in tensors if name.endswith("DenseReluDense.wo.weight")])
    assert len(theirs) == len(ours) == 7 * blocks
    assert all(torch.equal(values, ours[name]) for name, values, _ in theirs)
    if options is LEGACY:  # its parameter of this name has no elements
        assert (tensors["scaled_fp8"].dtype, tensors["scaled_fp8"].shape) == (torch.float8_e4m3fn, (0,))
    client = "comfyui-legacy" if options is LEGACY else "comfyui"
    assert verify(tmp_path / "out", VerifyOptions(against=tiny(T2V), client=client)).exit_code == 0


def test_a_weight_that_lost_its_scale_is_told_by_inspect_and_verify(legacy: Path, tmp_path: Path) -> None:
    """Such a weight is a plain cast by its names: only what its like have, or the source, says otherwise."""
    whole, file = comfyui.contents(legacy / DIT), tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in whole.items() if name != "blocks.1.ffn.0.scale_weight"}, file)
    told = "1 of 30 weights in fp8_e4m3fn has no scales: plain casts, or theirs were lost"
    for path, expected in ((file, [("dit/blocks.1.ffn.up.weight", told)]), (legacy / DIT, [])):
        for report in (inspect(path), verify(path, VerifyOptions())):
            found = [(each.where, each.message) for each in report.findings if "no scales" in each.message]
            assert found == expected
