"""A denoiser that fp16 breaks is stored in it for those who say so, or who prove that this one survives."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny as tools
from hub.server import files_below, leading
from validation_samples import alone

from wanconv.commands.convert import convert, convert_remote, preview, preview_remote
from wanconv.commands.validate import ValidateOptions, validate
from wanconv.containers import open_checkpoint
from wanconv.conversion.fp16_gate import sample
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, Refused, UsageError
from wanconv.models import identify
from wanconv.report import Report

Tiny = Callable[..., Path]
BROKEN = ("cogvideox-5b", "cogvideox-5b-i2v", "cogvideox1.5-5b", "cogvideox1.5-5b-i2v")


def saved(folder: Path, source: Path, **changes: Any) -> Path:
    """Writes a passing report of a source's denoiser, probed in fp16, with some of it changed."""
    results, _ = alone()
    results["candidate"]["sample"] = sample(identify(open_checkpoint(source)))
    results["safety"] = [results["safety"][0] | {"component": "dit", "numerics": "fp16"}]
    results["experts_wanted"] = results["experts_exercised"] = ["dit"]
    for key, value in changes.items():
        results[key] = results[key] | value if isinstance(value, dict) and key in ("candidate", "settings") else value
    file = folder / "results.json"
    file.write_text(json.dumps(results))
    return file


@pytest.mark.parametrize("family", BROKEN)
def test_fp16_is_refused_where_it_is_known_to_break(family: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Refused) as raised:
        preview(tiny(family), ConvertOptions("fp16", out=tmp_path / "out"))
    assert raised.value.exit_code == 2
    assert raised.value.message == (
        f"recipe fp16 stores the denoiser of {family} in fp16, and every CogVideoX but 2B gives NaN or black frames "
        "when computed in it (zai-org/CogVideo issues 593 and 637)"
    )
    assert raised.value.hint == (
        "choose bf16; or prove it safe with `report`, the results.json of "
        '`validate(SRC, numerics="fp16").write_report(DIR)`; '
        "or say `allow_unsafe_fp16=True`"
    )


@pytest.mark.parametrize("recipe", ["fp16", "int8-experts", "blocks-bf16-rest-fp16"])
def test_a_part_in_fp16_is_refused_as_well_and_nothing_written(recipe: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=rf"^recipe {recipe} stores the denoiser of cogvideox-5b in fp16, and "):
        convert(tiny("cogvideox-5b"), ConvertOptions(recipe, out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_fp16_as_the_fallback_of_an_overflow_is_refused_as_well(tiny: Tiny, tmp_path: Path) -> None:
    source, recipe = tools.copy(tiny("cogvideox-5b"), tmp_path / "source"), tmp_path / "mine.toml"
    rule = '[[rule]]\nmatch = "dit/**"\nkind = "linear"\nformat = "fp8_e4m3fn"\nfallback = "fp16"\n'
    recipe.write_text(f'schema = 1\nsummary = "mine"\n{rule}[[rule]]\nmatch = "**"\nformat = "bf16"\n')
    file, weight = (
        source / "transformer" / "diffusion_pytorch_model.safetensors",
        "transformer_blocks.0.attn1.to_q.weight",
    )
    tools.poke(file, weight, 5, 500.0)
    options = ConvertOptions(str(recipe), layout="diffusers", out=tmp_path / "out")
    with pytest.raises(Refused, match=r"^recipe mine stores the denoiser of cogvideox-5b in fp16, and "):
        convert(source, options)
    assert not (tmp_path / "out").exists()
    convert(source, replace(options, allow_unsafe_fp16=True))
    written = tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert str(tools.dtype_of(written, weight)) == "torch.float16"


@pytest.mark.parametrize(
    ("release", "recipe"),
    [
        ("cogvideox-2b", "fp16"),  # trained in it
        ("cogvideox-5b", "bf16"),
        ("cogvideox-5b", "experts-bf16-rest-fp16"),
        ("cogvideox-5b", "cogvideox-int8"),
        ("wan2.1-t2v-1.3b", "fp16"),
    ],
)
def test_what_fp16_does_not_break_is_planned(release: str, recipe: str, tiny: Tiny, tmp_path: Path) -> None:
    assert preview(tiny(release), ConvertOptions(recipe, out=tmp_path / "out")).exit_code == 0


def test_who_says_so_gets_fp16(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny("cogvideox-5b"), ConvertOptions("fp16", out=out, allow_unsafe_fp16=True))
    weight = "transformer_blocks.0.attn1.to_q.weight"
    assert str(tools.dtype_of(out / "transformer" / "diffusion_pytorch_model.safetensors", weight)) == "torch.float16"


def test_a_report_that_passed_lets_its_source_be_stored_in_fp16(tiny: Tiny, tmp_path: Path) -> None:
    source, out = tiny("cogvideox-5b"), tmp_path / "out"
    convert(source, ConvertOptions("fp16", out=out, report=saved(tmp_path, source)))
    assert out.exists()


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"candidate": {"sample": "0" * 64, "path": "elsewhere"}}, "it is about other numbers, those of elsewhere"),
        ({"reference": {"path": "other"}}, "it compares with another model instead of probing the source itself"),
        ({"safety": [], "settings": {"numerics": "official"}}, "its numerics are official"),
        ({"cannot_judge": ["the engine was asleep"]}, "its verdict is CANNOT JUDGE"),
    ],
)
def test_a_report_that_proves_nothing_is_refused_with_the_reason(
    changes: dict[str, Any], doubt: str, tiny: Tiny, tmp_path: Path
) -> None:
    source = tiny("cogvideox-5b")
    report = saved(tmp_path, source, **changes)
    with pytest.raises(Refused) as raised:
        convert(source, ConvertOptions("fp16", out=tmp_path / "out", report=report))
    assert raised.value.message == f"{report} does not prove that {source} survives fp16: {doubt}"
    assert raised.value.hint.startswith('run wanconv `validate(SRC, numerics="fp16").write_report(DIR)` on this source')
    assert not (tmp_path / "out").exists()


def test_a_report_that_was_not_finite_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny("cogvideox-5b")
    rows = json.loads(saved(tmp_path, source).read_text())["safety"]
    bad = {"path": "blocks.1.ffn.up", "op": "linear", "step": 0, "timestep": 999, "expert": "dit"}
    report = saved(tmp_path, source, safety=[rows[0] | {"first_bad": bad}])
    with pytest.raises(Refused, match=r"its verdict is NOT FINITE$"):
        convert(source, ConvertOptions("fp16", out=tmp_path / "out", report=report))


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "wanconv.validation/1"}'])
def test_a_file_that_is_no_report_is_unreadable(content: str, tiny: Tiny, tmp_path: Path) -> None:
    report = tmp_path / "results.json"
    report.write_text(content)
    with pytest.raises(InputError, match=r"results\.json (cannot be read as results|holds no results)"):
        convert(tiny("cogvideox-5b"), ConvertOptions("fp16", out=tmp_path / "out", report=report))


def test_a_report_of_a_source_says_nothing_of_what_a_lora_makes_of_it(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny("cogvideox-5b")
    options = ConvertOptions("fp16", out=tmp_path / "out", report=saved(tmp_path, source), loras=("lora.safetensors",))
    with pytest.raises(UsageError, match=r"^`report` is of the source as it is, and `loras` changes it$"):
        preview(source, options)


@pytest.mark.parametrize("verb", [preview_remote, convert_remote])
def test_a_report_is_not_held_against_numbers_that_are_not_here(
    verb: Callable[..., Report], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny("cogvideox-5b")
    options = ConvertOptions("fp16", out=tmp_path / "out", report=saved(tmp_path, source))
    with leading(files_below(source), monkeypatch, tmp_path / "modelscope") as hub:
        with pytest.raises(UsageError) as raised:
            verb("hf://owner/name", options)
        assert hub.log == []
    assert raised.value.message == "`report` is held against the source's numbers, and hf://owner/name is not here"
    assert raised.value.hint == "wanconv download it first; or say `allow_unsafe_fp16=True`"


def test_one_other_number_is_another_source(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny("cogvideox-5b")
    other = tools.copy(source, tmp_path / "other")
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    tools.poke(file, "transformer_blocks.1.attn1.to_k.bias", 3, 0.5)
    assert sample(identify(open_checkpoint(other))) != sample(identify(open_checkpoint(source)))
    assert sample(identify(open_checkpoint(tools.copy(source, tmp_path / "same")))) == sample(
        identify(open_checkpoint(source))
    )


def test_a_validation_says_which_numbers_it_is_about(tiny: Tiny) -> None:
    source = tiny("wan2.1-vace-14b")  # no engine runs it, and the results are saved all the same
    report = validate(source, ValidateOptions(profile="quick"))
    results = report.details["results"]
    assert isinstance(results, dict)
    assert results["candidate"]["sample"] == sample(identify(open_checkpoint(source)))
