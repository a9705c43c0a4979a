"""validate on the command line: its exit codes, streams and files; and what it says of models that are not whole."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Done, call, call_all
from covering import some
from planted import edit, spiked
from tiny import copy, poke

import wanconv
from wanconv.commands.convert import convert
from wanconv.commands.validate import ValidateOptions, recheck, validate
from wanconv.conversion.options import ConvertOptions
from wanconv.engine import sampling
from wanconv.errors import InputError, OutputError, UsageError
from wanconv.generation.pictures import drawn
from wanconv.report import Report
from wanconv.types.progress import ProgressStep
from wanconv.verdict.saved import SCHEMA

SMALL = ("--profile", "quick", "--size", "64x64")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tiny: Callable[..., Path]) -> Path:
    return tiny("wan2.2-t2v-a14b")


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("validate") / "out"
    convert(source, ConvertOptions("experts-bf16-rest-fp16", layout="diffusers", out=out, jobs=1))
    return out


READING = "reading the stored numbers"


def quick(candidate: Path, against: Path | None = None, **options: Any) -> Report:
    return validate(candidate, small(against, **options))


def small(against: Path | None = None, **options: Any) -> ValidateOptions:
    return ValidateOptions(against=against, **{"profile": "quick", "size": (64, 64), **options})


def results(report: Report) -> Mapping[str, Any]:
    found = report.details["results"]
    assert isinstance(found, dict)
    return found


# --- the command line


@pytest.fixture(scope="module")
def done(source: Path, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """Returns the folder and what became of one command per exit code, loaded once."""
    folder = tmp_path_factory.mktemp("codes")
    edit(copy(converted, folder / "broken"), {"expert.low/head.proj.weight": spiked(float("nan"))})
    edit(copy(converted, folder / "worse"), {"expert.high/blocks.1.ffn.up.weight": torch.neg})
    shutil.rmtree(copy(converted, folder / "lone") / "transformer_2")
    against = ("--against", str(source), *SMALL)
    commands = {
        "0": ("validate", str(converted), *against, "-o", "report"),
        "0 --json": ("validate", str(converted), *against, "--json"),
        "1": ("validate", "lone", *against),
        "2": ("validate", str(converted), "--size", "65x64"),
        "2 device": ("validate", str(converted), "--device", "tpu"),
        "3": ("validate", "nowhere"),
        "5": ("validate", "broken", *against),
        "6": ("validate", "worse", *against),
        "0 recheck": ("validate", "--recheck", "report/results.json", "--profile", "full"),
    }
    return folder, dict(zip(commands, call_all(list(commands.values()), folder), strict=True))


@pytest.mark.parametrize("case", ["0", "0 --json", "1", "2", "2 device", "3", "5", "6", "0 recheck"])
def test_every_verdict_has_its_exit_code(case: str, done: tuple[Path, dict[str, Done]]) -> None:
    assert done[1][case].exit_code == int(case.split()[0]), done[1][case].errors


def test_a_verdict_is_the_first_line(done: tuple[Path, dict[str, Done]]) -> None:
    cases = done[1]
    assert cases["1"].output.startswith("CANNOT JUDGE: lone\n")
    assert cases["5"].output.startswith("NOT FINITE: broken\n")
    assert "expert.low/head.proj.weight" in cases["5"].output
    assert cases["6"].output.startswith("FAIL: worse\n")
    assert "expert.high/blocks.1.ffn.up.weight" in cases["6"].output
    assert cases["2"].errors.startswith("error[usage]: 65x64 cannot be generated")
    assert cases["2 device"].errors.startswith("error[usage]: there is no device 'tpu'")


def test_the_json_holds_the_results(done: tuple[Path, dict[str, Done]]) -> None:
    document = json.loads(done[1]["0 --json"].output, parse_constant=pytest.fail)
    assert (document["ok"], document["details"]["results"]["schema"]) == (True, SCHEMA)
    assert document["figures"]["verdict"] == "PASS"


def test_the_folder_holds_results_and_page(done: tuple[Path, dict[str, Done]], source: Path, converted: Path) -> None:
    folder, _ = done
    assert sorted(path.name for path in (folder / "report").iterdir()) == ["results.json", "validation.html"]
    saved = json.loads((folder / "report" / "results.json").read_bytes(), parse_constant=pytest.fail)
    command = ["wanconv", "validate", str(converted), "--against", str(source), *SMALL, "-o", "report"]
    assert shlex.split(saved["settings"]["command"]) == command
    assert (saved["experts_wanted"], saved["video"]) == (["expert.high", "expert.low"], None)
    assert {row["component"] for row in saved["safety"]} == {"expert.high", "expert.low", "text_encoder", "vae"}
    assert saved["runs"][-1]["peak_anonymous_nbytes"] > 0


def test_the_standard_profile_leaves_clips(source: Path, converted: Path, tmp_path: Path) -> None:
    path = tmp_path / "report"
    done = call("validate", converted, "--against", source, "--size", "64x64", "-o", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = {"results.json", "validation.html"}
    for name in ("candidate", "control", "reference"):
        files |= {f"{name}.mp4", *(f"{name}/{number:04}.png" for number in range(5))}
    assert {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} == files
    video = json.loads((path / "results.json").read_bytes())["video"]
    assert (video["frames"], video["fps"], video["size"]) == (5, 16, [64, 64])
    assert video["control"]["psnr"]["psnr_db"] is None or video["control"]["psnr"]["psnr_db"] > 40
    assert "data:image" in (path / "validation.html").read_text()


# --- judged again


def test_saved_results_are_judged_under_other_thresholds_without_a_run(
    source: Path, converted: Path, tmp_path: Path
) -> None:
    assert quick(converted, source, out=tmp_path).exit_code == 0
    strict = tmp_path / "strict.toml"
    text = Path(wanconv.__file__).parent.joinpath("verdict", "profiles", "quick.toml").read_text()
    strict.write_text(f"{text}\n[noise_relative_l2]\nbf16 = 1e-6\n")
    shutil.rmtree(copy(converted, tmp_path / "copy"))  # nothing but the results is read
    report = recheck(tmp_path / "results.json", str(strict))
    assert (report.exit_code, report.figures["verdict"]) == (6, "FAIL")
    assert "noise prediction" in {row[1] for row in report.tables[0].rows if row[0] == "FAIL"}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": "wanconv.validation/1"}', b"[" * 100_000])
def test_what_is_no_results_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        recheck(tmp_path / "results.json", "quick")
    assert caught.value.hint == "give the results.json that `Validation.write_report` wrote"


# --- models that are not whole, or not the same


def test_a_lone_expert_is_not_judged_whole(source: Path, converted: Path) -> None:
    report = quick(next((converted / "transformer").glob("*.safetensors")), source, expert="high")
    assert (report.exit_code, report.figures["verdict"]) == (1, "CANNOT JUDGE")
    assert "the candidate has no expert.low" in {finding.message for finding in report.findings}
    assert {row["component"] for row in results(report)["steps"]} == {"expert.high"}


def test_the_flag_names_the_role_of_a_lone_reference_too(tiny: Callable[..., Path], tmp_path: Path) -> None:
    names = ("mine.safetensors", "i2v_low_high_noise.safetensors")
    for name in names:
        shutil.copy(
            tiny("wan2.2-i2v-a14b") / "high_noise_model" / "diffusion_pytorch_model.safetensors", tmp_path / name
        )
    report = quick(tmp_path / names[0], tmp_path / names[1], expert="high")
    assert {row["component"] for row in results(report)["steps"]} == {"expert.high"}


def test_a_file_without_config_has_the_heads_of_its_reference(source: Path, converted: Path, tmp_path: Path) -> None:
    folder = copy(converted, tmp_path / "bare")
    for name in ("transformer", "transformer_2"):
        (folder / name / "config.json").unlink()
    assert quick(folder, source).exit_code == 0
    assert quick(converted, folder).exit_code == 0


def test_an_expert_that_the_reference_lacks_is_not_judged(source: Path, converted: Path, tmp_path: Path) -> None:
    half = copy(source, tmp_path / "half")
    shutil.rmtree(half / "low_noise_model")
    report = quick(converted, half)
    assert (report.exit_code, results(report)["experts_exercised"]) == (1, ["expert.high"])


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ("tokenizer", "the text encoder was not run: there is no tokenizer"),
        ("text_encoder", "the candidate has no text_encoder"),
        ("vae", "the candidate has no vae"),
    ],
)
def test_what_is_absent_is_a_note_and_no_reason_not_to_judge(
    missing: str, note: str, source: Path, converted: Path, tmp_path: Path
) -> None:
    spare = copy(source, tmp_path / "source")
    if missing == "tokenizer":
        shutil.rmtree(spare / "google")
    partial = copy(converted, tmp_path / "partial")
    shutil.rmtree(partial / missing)
    report = quick(partial, spare)
    messages = {finding.message for finding in report.findings}
    assert (report.exit_code, note in messages) == (0, True)
    made_up = any(message.startswith("synthetic context instead of a prompt") for message in messages)
    assert made_up == (missing == "tokenizer")


def test_another_family_is_not_compared(source: Path, tiny: Callable[..., Path]) -> None:
    report = quick(tiny("wan2.1-t2v-1.3b"), source)
    assert report.exit_code == 1
    assert results(report)["cannot_judge"] == ["the candidate is wan2.1-t2v, and the reference wan2.2-t2v-a14b"]


@pytest.mark.parametrize("release", ["wan2.1-vace-14b", "wan2.2-animate-14b"])
def test_a_network_that_the_engine_does_not_compute_is_told_in_a_sentence(
    release: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    report = quick(tiny(release), out=tmp_path)
    (reason,) = results(report)["cannot_judge"]
    assert (report.exit_code, reason.endswith("which the engine does not compute yet")) == (1, True)
    assert reason in (tmp_path / "validation.html").read_text()


def nudged(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor with its first number moved by one part in 128."""
    tensor = tensor.clone()
    tensor[0] *= 1 + 2**-7
    return tensor


def test_a_changed_file_is_a_finding_and_the_bytes_that_are_there_are_judged(
    source: Path, converted: Path, tmp_path: Path
) -> None:
    folder = copy(converted, tmp_path / "changed")
    edit(folder, {"expert.high/head.proj.bias": nudged})
    report = quick(folder, source)
    (stale,) = [finding for finding in report.findings if finding.severity == "warning"]
    assert stale.message.startswith("stale: transformer/diffusion_pytorch_model.safetensors")
    assert report.exit_code == 0


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numerics": "ofical"}, "there are no numerics 'ofical'"),
        ({"profile": "quik"}, "there is no profile 'quik'"),
        ({"device": "cuda:99"}, "there is no device 'cuda:99'"),
        ({"device": "cpu:1"}, "there is no device 'cpu:1'"),
        ({"frames": 4}, "4 frames cannot be generated: the number has to be 4 n + 1"),
        ({"size": (64, 72)}, "64x72 cannot be generated"),
    ],
)
def test_what_cannot_be_run_is_refused(options: dict[str, Any], message: str, converted: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        quick(converted, **options)


def test_a_place_that_cannot_be_written_is_told_before_anything_runs(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        quick(converted, out=tmp_path / "file" / "report")


@pytest.mark.parametrize(
    ("release", "options", "message"),
    [
        ("wan2.1-t2v-1.3b", {"image": Path("a.png")}, "wan2.1-t2v is not given `image`: it takes a prompt alone"),
        ("wan2.2-ti2v-5b", {"last_image": Path("a.png")}, "wan2.2-ti2v-5b is not given `last_image`: it takes `image`"),
    ],
)
def test_a_file_that_the_model_does_not_look_at_is_refused(
    release: str, options: dict[str, Path], message: str, tiny: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        quick(tiny(release), **options)


@pytest.mark.parametrize("release", ["wan2.2-i2v-a14b", "wan2.2-ti2v-5b"])
def test_a_given_image_changes_what_is_measured_and_nothing_else(
    release: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny(release)
    convert(source, ConvertOptions("fp8-plain", layout="diffusers", out=tmp_path / "out", jobs=1))
    drawn("last_image", (96, 80)).save(tmp_path / "image.png")
    without, given = (quick(tmp_path / "out", source, image=path) for path in (None, tmp_path / "image.png"))
    assert without.exit_code == given.exit_code
    assert results(given)["settings"]["given"] == {"image": str(tmp_path / "image.png")}
    assert results(without)["steps"] != results(given)["steps"]
    assert results(without)["storage"] == results(given)["storage"]


@pytest.fixture(scope="module")
def looking(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns a tiny Wan 2.1 FLF2V and its conversion: the largest set of inputs."""
    source, out = tiny("wan2.1-flf2v-14b"), tmp_path_factory.mktemp("flf") / "out"
    convert(source, ConvertOptions("bf16", layout="diffusers", out=out, jobs=1))
    return source, out


def test_what_only_one_layout_of_clip_has_is_a_note(looking: tuple[Path, Path]) -> None:
    source, converted = looking
    steps: list[ProgressStep] = []
    report = validate(converted, small(source), steps.append)
    assert {(step.what, step.total, step.unit) for step in steps if step.done == step.total} == {
        ("encoding the prompt", 3, "runs"),
        ("looking at the image", 3, "runs"),
        ("decoding", 4, "runs"),
        ("probing", 1, "denoisers"),
        *((step.what, step.total, "bytes") for step in steps if step.what in ("checking digests", READING)),
    }
    assert {READING, "checking digests"} <= {step.what for step in steps}
    note = "image_encoder: 41 tensors that are never used are in the reference alone"
    assert (report.exit_code, [finding.message for finding in report.findings]) == (0, [note])
    assert {row["component"] for row in results(report)["components"]} == {"text_encoder", "image_encoder", "vae"}
    rows = {row["component"]: row["numerics"] for row in results(report)["safety"]}
    assert rows == {"text_encoder": "bf16", "image_encoder": "fp32", "vae": "fp32", "dit": "diffusers"}
    assert {row["numerics"] for row in results(quick(source))["safety"]} == {"bf16", "fp16", "fp32", "official"}


def test_what_the_candidate_alone_has_is_looked_through_for_nan(looking: tuple[Path, Path], tmp_path: Path) -> None:
    source, converted = looking
    folder = copy(source, tmp_path / "spoilt")
    poke(next(folder.glob("models_clip*")), "textual.norm.weight", 3, float("nan"))
    report = quick(folder, converted)
    assert report.exit_code == 5
    assert "image_encoder/textual.norm_in.weight" in {row[2] for row in report.tables[0].rows if row[0] == "NOT FINITE"}


def test_made_up_image_tokens_are_a_note(looking: tuple[Path, Path], tmp_path: Path) -> None:
    source, converted = (copy(folder, tmp_path / folder.name) for folder in looking)
    shutil.rmtree(converted / "image_encoder")
    next(source.glob("models_clip*")).unlink()
    report = quick(converted, source)
    messages = [finding.message for finding in report.findings]
    assert report.exit_code == 0
    assert "synthetic image tokens instead of CLIP's: normal numbers (seed 0)" in messages


def test_the_last_image_is_looked_at_and_kept_apart_from_the_first(looking: tuple[Path, Path], tmp_path: Path) -> None:
    _, converted = looking
    drawn("image", (64, 64)).save(tmp_path / "image.png")
    safety = [results(quick(converted, **given))["safety"] for given in ({}, {"last_image": tmp_path / "image.png"})]
    assert safety[0] != safety[1]


def test_two_images_do_not_fit_into_one_frame(looking: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="1 frame cannot begin with one image and end with another"):
        quick(looking[1], frames=1)


def test_a_clip_without_config_has_the_heads_of_its_reference(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("wan2.1-i2v-14b", "diffusers")  # two heads, where the released CLIP has sixteen
    convert(source, ConvertOptions("keep", layout="comfyui", out=tmp_path / "out", jobs=1))
    report = quick(tmp_path / "out", source)
    assert report.exit_code == 0
    (row,) = [row for row in results(report)["components"] if row["component"] == "image_encoder"]
    assert row["relative_l2"] == 0


def test_an_image_that_cannot_be_read_is_told_before_anything_runs(tiny: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png cannot be read as an image"):
        quick(tiny("wan2.2-i2v-a14b"), image=Path("nowhere.png"))


@pytest.mark.parametrize("numerics", some(["official", "comfyui-fp16", "diffusers", "fp16"], 2))
def test_every_numerics_runs_and_is_said(numerics: str, source: Path, converted: Path) -> None:
    report = quick(converted, source, numerics=numerics)
    assert (report.exit_code, report.figures["numerics"]) == (0, numerics)
    rows = {row["component"]: row["numerics"] for row in results(report)["safety"]}
    assert rows["expert.high"] == rows["expert.low"] == numerics


def test_a_candidate_whose_denoisers_are_fp16_in_diffusers_layout_is_probed_as_diffusers_would_run_it(
    source: Path, tmp_path: Path
) -> None:
    convert(source, ConvertOptions("fp16", layout="diffusers", out=tmp_path / "out", jobs=1))
    assert quick(tmp_path / "out").figures["numerics"] == "diffusers-fp16"


def test_the_same_command_gives_the_same_figures_and_another_seed_others(source: Path, converted: Path) -> None:
    first, again, other = (quick(converted, source, seed=seed) for seed in (0, 0, 1))
    for section in ("steps", "safety", "storage", "components"):
        assert results(first)[section] == results(again)[section]
    assert results(first)["steps"] != results(other)["steps"]


@pytest.mark.exhaustive
def test_little_memory_reads_blocks_again_and_changes_no_figure(source: Path, converted: Path) -> None:
    much, little = (quick(converted, source, memory_nbytes=nbytes, profile="standard") for nbytes in (1 << 30, 1 << 20))
    assert results(much)["steps"] == results(little)["steps"]
    reads = [{run["model"]: run.get("read_nbytes") for run in results(each)["runs"]} for each in (much, little)]
    assert reads[0]["reference"] < reads[1]["reference"]


def test_one_step_at_full_length_is_recorded_too(
    source: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(
        sampling.TASKS["wan2.2-t2v-a14b"], size=(96, 64), frames=9
    )  # the real one takes a quarter of an hour
    monkeypatch.setitem(sampling.TASKS, "wan2.2-t2v-a14b", task)
    report = quick(converted, source, full_length=True)
    assert "expert.high, full length" in {row["component"] for row in results(report)["safety"]}
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("release", "denoisers"),
    [
        ("wan2.2-ti2v-5b", 1),
        pytest.param("wan2.2-i2v-a14b", 2, marks=pytest.mark.exhaustive),
        pytest.param("wan2.1-flf2v-14b", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_free_run_of_every_kind_of_family(
    release: str, denoisers: int, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny(release)
    convert(source, ConvertOptions("bf16", layout="diffusers", out=tmp_path / "out", jobs=1))
    report = quick(tmp_path / "out", source, profile="standard", out=tmp_path / "report")
    found = results(report)
    assert (report.exit_code, len(found["experts_exercised"])) == (0, denoisers)
    assert found["video"]["candidate"]["psnr"]["psnr_db"] > 20
    assert not [finding for finding in report.findings if finding.severity != "note"]
