"""S2V in a validation: clips follow one another as the official loop has it, and a tiny model is judged end to end."""

import json
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny as tools
import torch
from command import call_all
from covering import some
from planted import Defect, edit, speech_defects
from torch import Tensor

from wanconv import recipe
from wanconv.commands.convert import convert
from wanconv.commands.validate import ValidateOptions, validate
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.engine.sampling import official_grid, task_of
from wanconv.engine.wan_s2v import Speech
from wanconv.errors import InputError, UsageError
from wanconv.generation import pictures, sampling, speech, tasks
from wanconv.generation.types import Material
from wanconv.layouts import LAYOUTS
from wanconv.models import identify
from wanconv.report import Report
from wanconv.weights.model import ModelWeights

S2V = "wan2.2-s2v-14b"
SIZE = (64, 64)
SPEECH = Path(speech.__file__).with_name("speech.wav")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tiny: Callable[..., Path]) -> Path:
    return tiny(S2V)


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("speech") / "out"
    convert(source, ConvertOptions("bf16", layout="official", out=out))
    return out


def quick(candidate: Path, against: Path | None, **options: object) -> Report:
    settings = {"against": against, "profile": "quick", "size": SIZE, **options}
    return validate(candidate, ValidateOptions(**settings))  # type: ignore[arg-type]  # options by name


# --- clips


@pytest.mark.exhaustive
def test_clips_follow_one_another_as_in_the_official_loop(source: Path) -> None:
    """wan/speech2video.py, generate: its loop over clips, with a made-up result in place of each sampling."""
    frames, model = 4, identify(open_checkpoint(source))
    setting = tasks.setting(model, task_of(S2V), official_grid(2, 3.0), SIZE, frames, 5, "cpu")
    assert setting.latents == (16, 1, 8, 8)
    made = torch.randn(2, 1, *setting.latents, generator=torch.Generator().manual_seed(0)) / 2
    asked: list[tuple[Tensor, Speech]] = []

    def sample(noise: Tensor, given: Speech) -> Tensor:
        asked.append((noise, given))
        return made[len(asked) - 1]

    with ModelWeights(model, 1 << 30, torch.device("cpu")) as weights:
        vae = sampling.vae_of(weights)
        states = sampling.audio_encoder(weights).encode(speech.samples(None, setting))
        material = Material(setting, {"image": pictures.drawn("image", SIZE)}, None, vae, states)
        given = speech.condition(material)
        start = sampling.noise(setting)
        video = speech.film(sample, start, given, material)

        shown: list[Tensor] = []
        before = torch.zeros(1, 3, 73, 64, 64)
        motion = before  # of no use to a first clip
        for clip in range(2):
            decoded = vae.decode(torch.cat((motion if clip else given.reference, made[clip]), dim=2))
            image = decoded.permute(3, 0, 1, 2)[None][:, :, -frames:] * 2 - 1
            image = image if clip else image[:, :, 3:]
            overlap = min(73, image.shape[2])
            before = torch.cat((before[:, :, overlap:], image[:, :, -overlap:]), dim=2)
            (noise, told), sound = asked[clip], speech.heard(material)[clip]
            assert torch.equal(told.audio, torch.stack((sound, 0 * sound)))  # guidance steers away from silence, too
            assert (told.motion is None) == (clip == 0)
            assert told.motion is None or torch.equal(told.motion, motion)
            assert torch.equal(noise, sampling.noise(replace(setting, seed=5 + clip)))
            motion = vae.encode(before) if clip == 0 else motion
            shown.append(((image[0] + 1) / 2).permute(1, 2, 3, 0))
    assert len(asked) == 2
    assert video.shape == (2 * frames - 3, 64, 64, 3)
    torch.testing.assert_close(video, torch.cat(shown), rtol=0, atol=1e-5)


def test_the_released_size_is_a_condition_like_any_other(source: Path) -> None:
    model, task = identify(open_checkpoint(source)), task_of(S2V)
    long = tasks.setting(model, task, official_grid(2, 3.0), task.size, task.frames, 0, "cpu")
    states = torch.zeros(3, 99, 64)
    given = speech.condition(Material(long, {"image": pictures.drawn("image", SIZE)}, None, None, states))
    assert given.motion is not None
    shapes = [tuple(one.shape) for one in (given.reference, given.motion, given.pose, given.audio)]
    assert shapes == [(1, 16, 1, 88, 128), (1, 16, 19, 88, 128), (1, 16, 20, 88, 128), (2, 3, 64, 80)]


# --- the verdict


@pytest.mark.exhaustive
def test_a_conversion_is_judged_through_the_command_line_with_its_clips(
    source: Path, converted: Path, tmp_path: Path
) -> None:
    common = ("validate", str(converted), "--against", str(source), "--size", "64x64")
    given = ("--audio", str(SPEECH), "--image", str(tmp_path / "face.png"))
    pictures.drawn("last_image", (80, 60)).save(tmp_path / "face.png")
    film, probe = call_all(
        [
            [*common, "--profile", "standard", "--steps", "1", "--frames", "4", "-o", str(tmp_path / "report"), *given],
            [*common, "--profile", "quick", "--json"],
        ],
        cwd=tmp_path,
    )
    assert (film.exit_code, probe.exit_code) == (0, 0), film.errors + probe.errors
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["video"]["frames"] == 5  # 4 - 3, then 4
    assert len(list((tmp_path / "report" / "candidate").glob("*.png"))) == 5
    assert {row["component"] for row in results["safety"]} == {"dit", "text_encoder", "audio_encoder", "vae"}
    assert {row["component"] for row in results["components"]} == {"text_encoder", "audio_encoder", "vae"}
    parts = [block["block"] for block in results["steps"][0]["blocks"]]
    assert parts == [
        "blocks.0", "audio_injector.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "audio_injector.1",
    ]  # fmt: skip
    assert results["settings"]["given"] == {"image": str(tmp_path / "face.png"), "audio": str(SPEECH)}


CLEAN = (
    ("fp16", "official"),
    ("experts-bf16-rest-fp16", "diffsynth"),
    ("fp8-scaled", "lightx2v"),
    ("fp8-scaled", "comfyui"),
)


def verdict_on(source: Path, name: str, layout: str, out: Path) -> str | None:
    """Returns the verdict on a conversion; None where recipe and layout do not go together."""
    try:
        convert(source, ConvertOptions(name, layout=layout, out=out))
    except UsageError:
        return None
    return quick(out, source).title.partition(":")[0]


@pytest.mark.parametrize("case", some(CLEAN, 2), ids="-".join)
def test_a_clean_conversion_passes(case: tuple[str, str], source: Path, tmp_path: Path) -> None:
    name, layout = case
    assert verdict_on(source, name, layout, tmp_path / "out") == "PASS"


@pytest.mark.slow
def test_no_clean_conversion_is_suspected(source: Path, tmp_path: Path) -> None:
    cases = [(name, layout) for name in recipe.names() for layout in LAYOUTS]
    found = {case: verdict_on(source, *case, tmp_path / "-".join(case)) for case in cases}
    assert len([outcome for outcome in found.values() if outcome is not None]) >= 10
    assert {case: outcome for case, outcome in found.items() if outcome not in (None, "PASS")} == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("defect", some(speech_defects(), 3), ids=str)
def test_a_planted_defect_is_detected_and_named(defect: Defect, source: Path, converted: Path, tmp_path: Path) -> None:
    folder = tools.copy(converted, tmp_path / "spoilt")
    defect.plant(folder)
    report = quick(folder, source)
    bad = [str(row[2]) for row in report.tables[0].rows if row[0] in ("FAIL", "NOT FINITE")]
    assert report.exit_code in (5, 6)
    assert all(any(where.startswith(name) for where in bad) for name in defect.named), bad


def test_a_fault_inside_an_injector_names_it_among_the_parts_of_the_stack(
    source: Path, converted: Path, tmp_path: Path
) -> None:
    folder = tools.copy(converted, tmp_path / "spoilt")
    edit(folder, {"dit/audio_injector.1.cross_attn.o.weight": torch.neg})
    rows = quick(folder, source).tables[0].rows
    assert [row[2] for row in rows if row[:2] == ("FAIL", "block")] == ["dit/audio_injector.1"]


# --- what is handed over


def test_without_encoders_of_its_own_a_denoiser_is_judged_with_made_up_sound(source: Path, tmp_path: Path) -> None:
    (tmp_path / "dit").mkdir()
    for file in source.glob("diffusion_pytorch_model*"):
        (tmp_path / "dit" / file.name).write_bytes(file.read_bytes())
    report = quick(tmp_path / "dit", None)
    notes = [finding.message for finding in report.findings]
    assert report.exit_code == 0
    assert any(note.startswith("synthetic sound instead of a voice") for note in notes)
    assert "no VAE at hand: the image is grey latents" in notes


@pytest.mark.exhaustive
def test_another_sound_changes_what_is_measured(source: Path, converted: Path, tmp_path: Path) -> None:
    beep = torch.sin(torch.arange(16000) * 0.2) * 20000
    with wave.open(str(tmp_path / "beep.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(beep.to(torch.int16).numpy().tobytes())
    files = (None, SPEECH, tmp_path / "beep.wav")
    unsaid, shipped, other = (quick(converted, source, audio=file).details["results"] for file in files)
    assert isinstance(unsaid, dict)
    assert isinstance(shipped, dict)
    assert isinstance(other, dict)
    assert unsaid["steps"] == shipped["steps"] != other["steps"]
    with pytest.raises(InputError, match=r"planted\.py cannot be read as sound"):
        quick(converted, source, audio=Path(__file__).with_name("planted.py"))


@pytest.mark.parametrize(
    ("release", "options", "message"),
    [
        (S2V, {"frames": 5}, "5 frames cannot be generated: the number has to be 4 n"),
        (S2V, {"size": (64, 80)}, "multiples of 64"),
        (S2V, {"last_image": SPEECH}, "wan2.2-s2v-14b is not given `last_image`: it takes `image` and `audio`"),
        ("wan2.1-t2v-1.3b", {"audio": SPEECH}, "wan2.1-t2v is not given `audio`: it takes a prompt alone"),
    ],
)
def test_what_does_not_fit_is_refused(
    release: str, options: dict[str, object], message: str, tiny: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=message):
        quick(tiny(release), None, **options)
