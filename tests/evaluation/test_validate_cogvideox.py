"""validate on CogVideoX: every release and recipe through the command line, planted defects, overflow in fp16."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call
from covering import some
from planted import COGVIDEOX_DEFECTS, Change, Defect, edit, spiked
from tiny import copy
from training_checkpoint import training_checkpoint

from wanconv.commands.convert import convert
from wanconv.commands.validate import ValidateOptions, validate
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, Refused, UsageError
from wanconv.models import FAMILIES

# release -> recipes: bf16 is in house/test_readme_commands.py, and all are in test_validate_defects.py, marked slow
RECIPES = {
    "cogvideox-2b": ("keep", "fp16"),
    "cogvideox-5b": ("fp8-scaled",),
    "cogvideox-5b-i2v": ("int8-row",),
    "cogvideox1.5-5b": ("fp8-plain",),
    "cogvideox1.5-5b-i2v": ("int8-row",),
}
CLEAN = [(release, name) for release, names in RECIPES.items() for name in names]
SPOILT = ("cogvideox-2b", "cogvideox1.5-5b-i2v")

pytestmark = pytest.mark.usefixtures("one_thread")


def made(source: Path, name: str, out: Path) -> Path:
    convert(source, ConvertOptions(name, layout="diffusers", out=out, jobs=1))
    return out


def measured(candidate: Path, against: Path | None = None, **options: Any) -> tuple[str, dict[str, Any], list[str]]:
    """Returns the verdict of a quick validation, its results, and the places of the checks that failed."""
    report = validate(candidate, ValidateOptions(against=against, **{"profile": "quick", "size": (32, 32), **options}))
    results = report.details["results"]
    assert isinstance(results, dict)
    bad = [str(row[2]) for row in report.tables[0].rows if row[0] in ("FAIL", "NOT FINITE")]
    return str(report.figures["verdict"]), results, bad


@pytest.fixture(scope="module")
def source(tiny: Callable[..., Path]) -> Path:
    return tiny("cogvideox-5b")


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(source, "bf16", tmp_path_factory.mktemp("cogvideox") / "out")


# --- the command line


def validated(name: str, against: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    return call("validate", name, "--against", against, "--profile", "quick", "--size", "32x32", cwd=folder)


@pytest.mark.parametrize("case", some(CLEAN, 2), ids="-".join)
def test_a_clean_conversion_passes(case: tuple[str, str], tiny: Callable[..., Path], tmp_path: Path) -> None:
    release, name = case
    made(tiny(release), name, tmp_path / name)
    result = validated(name, tiny(release), tmp_path)
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, f"PASS: {name}"), result.stderr
    assert ("diffusers-fp16" in result.stdout) == (name == "fp16")


@pytest.mark.parametrize("release", some(SPOILT, 2))
def test_a_spoilt_one_fails(release: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    spoilt = made(tiny(release), RECIPES[release][0], tmp_path / "spoilt")
    edit(spoilt, {"dit/time_embedding.out.weight": lambda tensor: tensor.flip(0)})
    result = validated("spoilt", tiny(release), tmp_path)
    assert (result.returncode, result.stdout.splitlines()[0]) == (6, "FAIL: spoilt")
    assert "dit/time_embedding.out.weight" in result.stdout


# --- defects


@pytest.mark.parametrize("defect", some(COGVIDEOX_DEFECTS, 3), ids=str)
def test_a_planted_defect_is_detected_and_named(defect: Defect, source: Path, converted: Path, tmp_path: Path) -> None:
    folder = copy(converted, tmp_path / "spoilt")
    defect.plant(folder)
    outcome, _, bad = measured(folder, source)
    assert outcome in ("FAIL", "NOT FINITE")
    assert all(any(where.startswith(place) for where in bad) for place in defect.named), bad


def last(value: float) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


def opened(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a modulation's bias with the gates of the last channel at 1: shift, scale and gate, of video and text."""
    tensor = tensor.clone().view(6, -1)
    tensor[[2, 5], -1] = 1
    return tensor.view(-1)


@pytest.fixture(scope="module")
def massive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a 5B with one massive channel, which its first block raises to 40 000, and its third to twice that."""
    folder = copy(source, tmp_path_factory.mktemp("massive") / "source")
    for block in (0, 2):
        place = f"dit/blocks.{block}.ffn"
        edit(folder, {f"{place}.down.bias": last(4e4), f"{place}.modulation_projection.bias": opened})
    return folder


def test_a_massive_channel_is_fine_as_released_and_lost_where_fp16_computes(massive: Path, tmp_path: Path) -> None:
    folder = made(massive, "bf16", tmp_path / "out")
    assert measured(folder, massive, numerics="official")[0] == "PASS"
    for candidate, numerics in ((folder, "fp16"), (folder, "comfyui-fp16"), (massive, "diffusers-fp16")):
        outcome, results, bad = measured(candidate, numerics=numerics)
        assert (outcome, bad) == ("NOT FINITE", ["dit/blocks.2"])
        (row,) = [row for row in results["safety"] if row["first_bad"]]
        assert (row["component"], row["first_bad"]["op"], row["first_bad"]["cause"]) == ("dit", "add#3", "overflow")


def test_2b_is_released_in_fp16_and_the_others_in_bf16(source: Path, tiny: Callable[..., Path]) -> None:
    told = [measured(folder, numerics="official")[1] for folder in (tiny("cogvideox-2b"), source)]
    assert [results["settings"]["numerics"] for results in told] == ["official-fp16", "official"]


# --- other clients' files


def test_comfyui_s_files_are_judged_by_the_sizes_of_their_source(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("cogvideox-5b-i2v")
    convert(source, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "out", jobs=1))
    outcome, results, _ = measured(tmp_path / "out", source)
    assert (outcome, results["settings"]["numerics"]) == ("PASS", "diffusers")  # bf16, as ComfyUI prefers here


def test_a_conversion_is_compared_with_its_training_checkpoint(tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "cogvideox-2b")
    source = training_checkpoint(tmp_path / "source", family)
    folder = made(source, "bf16", tmp_path / "out")
    outcome, results, _ = measured(folder, source)
    assert (outcome, [row["format"] for row in results["steps"]]) == ("PASS", ["exact", "exact"])
    assert "dit: 1 tensor that is never used is in the reference alone" in results["notes"]  # 2B's sines
    edit(folder, {"dit/blocks.1.self_attn.k.weight": lambda tensor: tensor.flip(0)})
    outcome, _, bad = measured(folder, source)
    assert (outcome, "dit/blocks.1.self_attn.k.weight" in bad) == ("FAIL", True)


@pytest.mark.parametrize("survives", [True, False])
def test_what_survives_fp16_may_be_stored_in_it(survives: bool, source: Path, massive: Path, tmp_path: Path) -> None:
    folder = source if survives else massive
    measured(folder, numerics="fp16", out=tmp_path / "report")
    job = ConvertOptions(
        "fp16", layout="diffusers", out=tmp_path / "out", jobs=1, report=tmp_path / "report" / "results.json"
    )
    if survives:
        assert convert(folder, job).exit_code == 0
        return
    with pytest.raises(Refused, match=r"does not prove that .* survives fp16: its verdict is NOT FINITE$"):
        convert(folder, job)


# --- what is run


def test_the_standard_profile_generates_nine_frames_with_both_models(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("cogvideox1.5-5b-i2v")
    folder = made(source, "bf16", tmp_path / "out")
    outcome, results, _ = measured(folder, source, profile="standard", out=tmp_path / "report")
    video = results["video"]
    decibels = video["control"]["psnr"]["psnr_db"]
    assert decibels is None or decibels > 40
    assert (outcome, video["frames"], video["fps"], video["size"]) == ("PASS", 9, 16, [32, 32])
    assert results["settings"]["timesteps"] == [999, 749, 499, 249]
    assert {path.name for path in (tmp_path / "report").glob("*.mp4")} == {
        "candidate.mp4", "control.mp4", "reference.mp4",
    }  # fmt: skip
    assert {row["component"] for row in results["components"]} == {"text_encoder", "vae"}


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ("tokenizer", "the text encoder was not run: there is no tokenizer"),
        ("vae", "no VAE at hand: the image is grey latents"),
        ("scheduler", None),
    ],
)
def test_what_is_absent_is_a_note_and_no_reason_not_to_judge(
    missing: str, note: str | None, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(tiny("cogvideox-5b-i2v"), tmp_path / "partial")
    shutil.rmtree(folder / missing)
    outcome, results, _ = measured(folder)
    assert (outcome, note in (*results["notes"], None)) == ("PASS", True)


@pytest.mark.parametrize(
    ("release", "options", "message"),
    [
        ("cogvideox-5b", {"frames": 5}, "5 frames cannot be generated: the number has to be 8 n + 1"),
        ("cogvideox-5b", {"size": (40, 32)}, "40x32 cannot be generated: width and height have to be multiples of 16"),
        (
            "cogvideox-5b-i2v",
            {"frames": 17},
            "17 frames of 32x32 cannot be generated: the model's positions end at 96x64 and 9 frames",
        ),
        (
            "cogvideox1.5-5b",
            {"size": (96, 80)},
            "9 frames of 96x80 cannot be generated: the model's positions end at 96x64",
        ),
        ("cogvideox-5b", {"image": Path("a.png")}, "cogvideox-5b is not given `image`: it takes a prompt alone"),
    ],
)
def test_what_cannot_be_run_is_refused(
    release: str, options: dict[str, Any], message: str, tiny: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        measured(tiny(release), **options)


def test_a_profiles_clip_shrinks_to_where_positions_end(tiny: Callable[..., Path]) -> None:
    settings = measured(tiny("cogvideox1.5-5b"), size=None)[1]["settings"]
    assert (settings["size"], settings["frames"]) == ([96, 64], 9)


def test_a_scheduler_that_cannot_be_read_is_told(source: Path, tmp_path: Path) -> None:
    folder = copy(source, tmp_path / "broken")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text("{")
    with pytest.raises(InputError, match=r"scheduler_config\.json cannot be read"):
        measured(folder)
    config.write_text(json.dumps({"_class_name": "PNDMScheduler"}))
    with pytest.raises(InputError, match="the checkpoint's scheduler is PNDMScheduler"):
        measured(folder)


def test_a_number_that_is_not_finite_is_found_without_a_reference(source: Path, tmp_path: Path) -> None:
    folder = copy(source, tmp_path / "spoilt")
    edit(folder, {"dit/norm_out.weight": spiked(float("inf"))})
    outcome, _, bad = measured(folder)
    assert (outcome, "dit/norm_out.weight" in bad) == ("NOT FINITE", True)
