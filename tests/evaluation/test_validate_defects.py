"""What validate finds: planted defects are detected and named, clean conversions pass, and overflow has its class."""

import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
import torch
from covering import covering, some
from planted import Change, Defect, defects, edit, image_defects
from tiny import copy

from wanconv import recipe
from wanconv.commands.convert import convert
from wanconv.commands.validate import ValidateOptions, validate
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.engine.numerics import FP32
from wanconv.errors import UsageError
from wanconv.generation.sampling import vae_of
from wanconv.generation.tasks import denoiser
from wanconv.layouts import LAYOUTS
from wanconv.metrics.tensors import Agreement, compare
from wanconv.models import identify
from wanconv.verdict import Check, judge, load_profile
from wanconv.weights.model import ModelWeights

SIZE = (64, 64)
FAMILIES = (
    "wan2.2-t2v-a14b",
    "wan2.2-i2v-a14b",
    "wan2.2-ti2v-5b",
    "wan2.1-t2v-1.3b",
    "wan2.1-i2v-14b",
    "wan2.1-flf2v-14b",
)
COGVIDEOX = ("cogvideox-2b", "cogvideox-5b", "cogvideox-5b-i2v", "cogvideox1.5-5b", "cogvideox1.5-5b-i2v")
BAD = ("FAIL", "NOT FINITE")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tiny: Callable[..., Path]) -> Path:
    return tiny("wan2.2-t2v-a14b")


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(source, "experts-bf16-rest-fp16", tmp_path_factory.mktemp("defects") / "out", "diffusers")


@pytest.fixture(scope="module")
def looking(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns a source that looks at images, and its conversion."""
    source = tiny("wan2.1-flf2v-14b")
    return source, made(source, "experts-bf16-rest-fp16", tmp_path_factory.mktemp("looking") / "out", "diffusers")


def made(source: Path, name: str, out: Path, layout: str | None = None) -> Path:
    convert(source, ConvertOptions(name, layout=layout, out=out, jobs=1))
    return out


def checks_of(candidate: Path, against: Path | None, **options: object) -> tuple[str, Sequence[Check]]:
    """Returns the outcome and the checks of a quick validation."""
    settings = {"against": against, "profile": "quick", "size": SIZE, **options}
    report = validate(candidate, ValidateOptions(**settings))  # type: ignore[arg-type]  # options by name
    results = report.details["results"]
    assert isinstance(results, dict)
    verdict = judge(results, load_profile(str(settings["profile"])))
    assert verdict.exit_code == report.exit_code
    return verdict.outcome, verdict.checks


def seen(defect: Defect, source: Path, converted: Path, folder: Path) -> tuple[str, bool, tuple[str, ...]]:
    """Returns the verdict on a spoilt copy, whether every place is named, and all places that are."""
    defect.plant(copy(converted, folder))
    outcome, checks = checks_of(folder, source)
    where = tuple(check.where for check in checks if check.outcome in BAD)
    return outcome, all(any(name.startswith(place) for name in where) for place in defect.named), where


SAMPLE = [defect for number, defect in enumerate(defects()) if number % 9 == 0]


@pytest.mark.parametrize("defect", some(SAMPLE, 4), ids=str)
def test_a_planted_defect_is_detected_and_named(defect: Defect, source: Path, converted: Path, tmp_path: Path) -> None:
    outcome, named, _ = seen(defect, source, converted, tmp_path / "spoilt")
    assert (outcome in BAD, named) == (True, True)


# --- the same in trained weights, whose numbers differ from tensor to tensor as made-up ones do not

TRAINED_SAMPLE = [defect for number, defect in enumerate(defects()) if number % 27 == 5]


@pytest.fixture(scope="module")
def trained_and_converted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return trained, made(trained, "experts-bf16-rest-fp16", tmp_path_factory.mktemp("trained") / "out", "diffusers")


@pytest.mark.parametrize("defect", some(TRAINED_SAMPLE, 3), ids=str)
def test_a_defect_planted_in_the_trained_model_is_detected_and_named(
    defect: Defect, trained_and_converted: tuple[Path, Path], tmp_path: Path
) -> None:
    outcome, named, _ = seen(defect, *trained_and_converted, tmp_path / "spoilt")
    assert (outcome in BAD, named) == (True, True)


@pytest.mark.parametrize(
    "case", some([("fp8-scaled", "comfyui"), ("int8-row", "lightx2v"), ("fp16", "official")], 3), ids="-".join
)
def test_a_clean_conversion_of_the_trained_model_passes(case: tuple[str, str], trained: Path, tmp_path: Path) -> None:
    name, layout = case
    assert checks_of(made(trained, name, tmp_path / "out", layout), trained)[0] == "PASS"


IMAGE_SAMPLE = [defect for number, defect in enumerate(image_defects()) if number % 12 == 0]


@pytest.mark.parametrize("defect", some(IMAGE_SAMPLE, 3), ids=str)
def test_a_defect_in_what_looks_at_images_is_detected_and_named(
    defect: Defect, looking: tuple[Path, Path], tmp_path: Path
) -> None:
    outcome, named, _ = seen(defect, *looking, tmp_path / "spoilt")
    assert (outcome in BAD, named) == (True, True)


@pytest.mark.slow
def test_99_of_100_defects_are_detected_and_9_of_10_named(
    source: Path,
    converted: Path,
    looking: tuple[Path, Path],
    trained_and_converted: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    for name, reference, clean, planted in (
        ("made up", source, converted, defects()),
        ("trained", *trained_and_converted, defects()),
        ("images", *looking, image_defects()),
    ):
        rows = []
        for number, defect in enumerate(planted):
            outcome, named, where = seen(defect, reference, clean, tmp_path / f"{name} {number}")
            rows.append((outcome in BAD, named))
            sys.stdout.write(
                f"| {name} | {defect.kind} | {defect.place} | {outcome} | {named} | {len(where)} |\n"
            )  # -s
        assert len(rows) >= 60
        assert sum(detected for detected, _ in rows) >= 0.99 * len(rows), name
        assert sum(named for _, named in rows) >= 0.9 * len(rows), name


CLEAN = [
    case
    for case in itertools.product((*FAMILIES, *COGVIDEOX), recipe.names(), LAYOUTS)
    if case[::2] != ("cogvideox-2b", "comfyui")  # by shapes alone, as there, a miniature is a 5B
]
_WAN = [case for case in CLEAN if case[0] in FAMILIES]
SHOWN = [_WAN[number] for number in range(0, len(_WAN), len(_WAN) // 6)]


def verdict_on_clean(tiny: Callable[..., Path], family: str, name: str, layout: str, out: Path) -> str | None:
    """Returns the outcome; None where the family, the recipe and the layout do not go together."""
    source = tiny(family)
    try:
        made(source, name, out, layout)
    except UsageError:
        return None
    outcome, checks = checks_of(out, source)
    return outcome if outcome == "PASS" else f"{outcome}: {[check for check in checks if check.outcome in BAD]}"


@pytest.mark.parametrize("case", some(SHOWN, 2), ids="-".join)
def test_a_clean_conversion_passes(case: tuple[str, str, str], tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert verdict_on_clean(tiny, *case, tmp_path / "out") in ("PASS", None)


@pytest.mark.slow
def test_no_clean_conversion_is_suspected(tiny: Callable[..., Path], tmp_path: Path) -> None:
    found = {case: verdict_on_clean(tiny, *case, tmp_path / str(number)) for number, case in enumerate(CLEAN)}
    judged = {case: outcome for case, outcome in found.items() if outcome is not None}
    sys.stdout.write(f"{len(judged)} clean conversions judged\n")
    assert len(judged) >= 30
    assert {case: outcome for case, outcome in judged.items() if outcome != "PASS"} == {}


# --- without a reference


@covering(
    ("place", "value"),
    [
        "expert.high/blocks.1.ffn.up.weight",
        "expert.low/head.proj.bias",
        "text_encoder/token_embedding.weight",  # in a row that no prompt of the run uses
        "text_encoder/blocks.0.attn.o.weight",
        "vae/encoder.conv_in.weight",  # which text-to-video never runs
    ],
    [float("nan"), float("inf"), float("-inf")],
    strength=1,
)
def test_a_number_that_is_not_finite_is_found_without_a_reference(
    place: str, value: float, converted: Path, tmp_path: Path
) -> None:
    folder = copy(converted, tmp_path / "spoilt")
    edit(folder, {place: last(value)})
    outcome, checks = checks_of(folder, None)
    assert outcome == "NOT FINITE"
    assert place in {check.where for check in checks if check.name == "storage"}


# --- overflow that is in no weight: fine as stored, fine in bf16, lost in fp16


def last(value: float) -> Change:
    """Returns what sets a tensor's last element."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


@pytest.fixture(scope="module")
def massive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a source with one massive channel: 40 000 twice over, as released models have, only larger."""
    folder = copy(source, tmp_path_factory.mktemp("massive") / "source")
    edit(folder, {f"expert.high/blocks.{block}.cross_attn.o.bias": last(4e4) for block in (0, 2)})
    return folder


@pytest.mark.parametrize("name", some(["fp16", "bf16"], 2))
def test_a_massive_channel_passes_as_it_is_stored_and_is_lost_where_fp16_computes(
    name: str, massive: Path, tmp_path: Path
) -> None:
    folder = made(massive, name, tmp_path / "out")
    outcome, checks = checks_of(folder, massive, numerics="official")
    assert outcome == "PASS"
    (warned,) = [check for check in checks if check.outcome == "WARNING"]
    assert (warned.name, "too large for clients that run in fp16" in warned.message) == ("activations", True)
    for numerics in ("fp16", "comfyui-fp16"):
        outcome, checks = checks_of(folder, massive, numerics=numerics)
        (bad,) = [check for check in checks if check.outcome in BAD]
        assert (outcome, bad.name, bad.where) == ("NOT FINITE", "activations", "expert.high/blocks.2")


def test_the_page_of_an_overflow_shows_its_last_operations(massive: Path, tmp_path: Path) -> None:
    report = validate(massive, ValidateOptions(profile="quick", size=SIZE, numerics="fp16", out=tmp_path))
    results = json.loads((tmp_path / "results.json").read_bytes())
    (row,) = [row for row in results["safety"] if row["first_bad"]]
    assert (report.exit_code, row["first_bad"]["path"], row["first_bad"]["cause"]) == (5, "blocks.2", "overflow")
    assert len(row["last_operations"]) == 20
    page = re.sub("<[^>]+>", "", (tmp_path / "validation.html").read_text())
    assert all(operation["path"] in page for operation in row["last_operations"])


def flat(value: float) -> Change:
    return lambda tensor: torch.full_like(tensor, value)


def alternating(value: float) -> Change:
    """Returns what cancels in a sum: columns of value and -value."""
    return lambda tensor: torch.full_like(tensor, value) * (1 - 2 * (torch.arange(tensor.shape[-1]) % 2)).to(tensor)


def times(factor: float) -> Change:
    return lambda tensor: tensor * factor


# what is planted -> the changes, the numerics under which it fails, and who is to be named
OVERFLOWS: dict[str, tuple[dict[str, Change], str, str]] = {
    "squares in an RMS norm": (
        {"expert.low/blocks.1.self_attn.q.bias": flat(300)},
        "fp16",
        "expert.low/blocks.1.self_attn.norm_q",
    ),
    "a linear's result": (
        {"expert.high/blocks.0.ffn.down.weight": times(2e6)},
        "comfyui-fp16",
        "expert.high/blocks.0.ffn.down",
    ),
    "the head": ({"expert.low/head.proj.weight": times(5e5)}, "comfyui-fp16", "expert.low/head.proj"),
    "time embedding": (
        {"expert.high/time_projection.bias": last(1e5)},
        "comfyui-fp16",
        "expert.high/time_projection",
    ),
    "T5's last linear of a block": (
        {
            "text_encoder/blocks.0.ffn.up.weight": times(20),
            "text_encoder/blocks.0.ffn.gate.weight": times(20),
            "text_encoder/blocks.0.ffn.down.weight": times(1e5),
        },
        "fp16",
        "text_encoder/blocks.0.ffn.down",
    ),
}


@pytest.mark.parametrize("what", some(list(OVERFLOWS), 2))
def test_an_overflow_of_fp16_arithmetic_is_named(what: str, source: Path, tmp_path: Path) -> None:
    changes, numerics, named = OVERFLOWS[what]
    folder = made(source, "bf16", tmp_path / "out", "diffusers")
    edit(folder, changes)
    outcome, checks = checks_of(folder, None, numerics="official")
    assert outcome == "PASS"
    outcome, checks = checks_of(folder, None, numerics=numerics)
    assert outcome == "NOT FINITE"
    assert named in {check.where for check in checks if check.outcome in BAD}


def test_a_sum_that_only_overflows_on_its_way_is_named_by_a_profile_that_bounds_accumulators(
    source: Path, tmp_path: Path
) -> None:
    folder = made(source, "bf16", tmp_path / "out", "diffusers")
    place = "expert.high/blocks.1.ffn"
    changes = {"up.weight": flat(0), "up.bias": flat(100), "down.weight": alternating(30)}
    edit(folder, {f"{place}.{name}": change for name, change in changes.items()})
    profile = tmp_path / "sums.toml"
    text = (resources.files("wanconv.verdict") / "profiles" / "quick.toml").read_text()
    profile.write_text(text.replace("accumulators = false", "accumulators = true"))
    assert checks_of(folder, None, numerics="fp16")[0] == "PASS"
    outcome, checks = checks_of(folder, None, numerics="fp16", profile=str(profile))
    (bad,) = [check for check in checks if check.outcome in BAD]
    assert (outcome, bad.name, bad.where) == ("NOT FINITE", "accumulator", f"{place}.down:linear")
    assert bad.value is not None
    assert bad.limit is not None
    assert bad.value > bad.limit


# --- defects of an engine, which no file shows


def test_a_vae_that_encodes_in_bf16_is_above_its_gate(source: Path) -> None:
    gate = load_profile("quick").component_relative_l2["fp16"]
    with ModelWeights(identify(open_checkpoint(source)), 1 << 30, torch.device("cpu")) as weights:
        image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 1, 64, 64)
        exact, rounded = (vae_of(weights, dtype).encode(image) for dtype in (torch.float32, torch.bfloat16))
    agreement = compare(exact, rounded)
    assert isinstance(agreement, Agreement)
    assert agreement.relative_l2 is not None
    assert agreement.relative_l2 > gate


def test_a_timestep_that_was_rounded_to_bf16_is_above_the_gate_of_a_faithful_copy(source: Path) -> None:
    model = identify(open_checkpoint(source))
    timestep = torch.tensor([999])
    with ModelWeights(model, 1 << 30, torch.device("cpu")) as weights:
        wan, fetch = denoiser(model, "expert.high", FP32), partial(weights.tensors, "expert.high")
        latents, context = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 64, 64)
        exact, rounded = (
            wan.denoise(fetch, latents, time, context) for time in (timestep, timestep.bfloat16().to(torch.int64))
        )
    agreement = compare(exact, rounded)
    assert isinstance(agreement, Agreement)
    assert agreement.relative_l2 is not None
    assert agreement.relative_l2 > load_profile("quick").noise_relative_l2["exact"]
