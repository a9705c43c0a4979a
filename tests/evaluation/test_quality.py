"""scripts/quality: its clips are the engine's, equal numbers share them, and its page says what was measured."""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import digests

from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions
from wanconv.engine.sampling import official_grid, task_of
from wanconv.evaluation.captions import captions
from wanconv.generation import sampling
from wanconv.generation.tasks import setting
from wanconv.samples import shipped
from wanconv.weights.model import ModelWeights

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
calibration, conversions, measured, paired, tables = (
    importlib.import_module(f"tiny_model.{name}")
    for name in ("calibration", "conversions", "measured", "paired", "tables")
)

pytestmark = pytest.mark.usefixtures("one_thread")
PART = measured.PART


def test_its_clips_are_those_of_the_engine(trained: Path) -> None:
    model, cpu = paired.opened(trained), torch.device("cpu")
    task, grid = task_of(model.family.name), official_grid(3, 12.0)
    chosen = setting(model, task, grid, shipped.SIZE, shipped.FRAMES, 5, "cpu")
    with ModelWeights(model, 1 << 30, cpu) as weights:
        tokens = sampling.tokens_of([model], str(captions()[40]))
        assert tokens is not None
        contexts = sampling.text_encoder(weights, torch.float32).encode(tokens)
        wanted = sampling.generate(weights, chosen, contexts, sampling.noise(chosen)).latents
        frames = sampling.vae_of(weights).decode(wanted)
    made = paired.loaded(model, model, cpu)
    found = paired.latents(made, [40, 3], paired.noise([5, 6]), grid)
    assert torch.allclose(found[:1], wanted, atol=2e-4)
    assert torch.allclose(next(paired.decoded(made, found)), frames, atol=2e-3)


def test_a_conversion_that_says_no_heads_has_those_of_its_source(trained: Path, tmp_path: Path) -> None:
    conversions.convert_again(trained, tmp_path / "out", "fp32+comfyui")
    source, model = (paired.opened(folder) for folder in (trained, tmp_path / "out"))
    both = [paired.loaded(one, source, torch.device("cpu")) for one in (source, model)]
    clips = [paired.latents(one, [0], paired.noise([0]), official_grid(2, 12.0)) for one in both]
    assert torch.equal(*clips)


def test_equal_numbers_have_one_digest_and_scales_that_moved_another(trained: Path, tmp_path: Path) -> None:
    convert(trained, ConvertOptions("keep", layout="comfyui", out=tmp_path / "keep", jobs=1))
    one, other = (conversions.digest_of(paired.opened(folder)) for folder in (trained, tmp_path / "keep"))
    assert one == other
    conversions.convert_again(trained, tmp_path / "whole", "fp8-scaled+comfyui")
    conversions.convert_again(trained, tmp_path / "spoilt", "fp8-scaled+comfyui+0.1")
    whole, spoilt = (paired.opened(tmp_path / name).tensors for name in ("whole", "spoilt"))
    moved = {
        name for name, tensor in whole.items() if tensor.scales and spoilt[name].scales.read() != tensor.scales.read()
    }
    assert len(moved) == 100  # ten linears in each of five blocks of two experts
    assert all(spoilt[name].pieces[0].ref.read() == whole[name].pieces[0].ref.read() for name in whole)
    again = conversions.convert_again(trained, tmp_path / "again", "fp8-scaled+comfyui+0.1")
    assert again is None
    assert digests(tmp_path / "again") == digests(tmp_path / "spoilt")


def row(verdict: str, error: float, spoilt: float = 0.0) -> Any:
    return conversions.Row(
        "fp8-scaled", "comfyui", f"{error}", 5_000_000, "fp8_e4m3fn", error, error, verdict, "", spoilt
    )


def clips(hits: Sequence[bool], psnr_db: float) -> Any:
    """Returns figures of two rounds, in each of which the same captions are shown."""
    seen = [str(caption) if hit else "" for caption, hit in zip(captions(), hits, strict=True)] * 2
    return measured.Clips(tuple(seen), (psnr_db,) * len(seen), (0.9,) * PART)


ALL, FEWER = [True] * PART, [True] * (PART - 5) + [False] * 5


@pytest.mark.parametrize(
    ("verdict", "hits", "psnr_db", "wrong"),
    [
        ("PASS", ALL, 30.0, ""),
        ("PASS", FEWER, 30.0, "passed, and captions were lost"),
        ("FAIL", FEWER, 30.0, ""),
        ("FAIL", ALL, 30.0, ""),
        ("FAIL", ALL, 99.5, "failed, and nothing moved"),
    ],
)
def test_a_verdict_is_wrong_where_clips_say_the_opposite(
    verdict: str, hits: list[bool], psnr_db: float, wrong: str
) -> None:
    one = calibration.Measured(row(verdict, 0.03), clips(hits, psnr_db))
    (found,) = calibration.judged([one], clips(ALL, float("inf")), clips(ALL, 100.0))
    assert found.wrong == wrong


HARMLESS = calibration.Measured(row("PASS", 0.03), clips(ALL, 30.0))
DAMAGED = calibration.Measured(row("FAIL", 0.3, 0.4), clips(FEWER, 20.0))
HARMFUL = calibration.Measured(row("FAIL", 0.2), clips(FEWER, 25.0))


@pytest.mark.parametrize(
    ("found", "between"),
    [([HARMLESS, DAMAGED], (0.03, 0.3)), ([HARMLESS, HARMFUL, DAMAGED], (0.03, 0.2)), ([HARMFUL], (None, 0.2))],
)
def test_a_limit_fits_between_harmless_conversions_and_the_first_harmful_one(
    found: list[Any], between: tuple[float | None, float]
) -> None:
    (limit,) = calibration.limits(found, clips(ALL, float("inf")), {"fp8_e4m3fn": 0.08})
    assert (limit.harmless, limit.harmful, limit.fits) == (*between, True)
    assert not replace(limit, limit=0.4).fits
    assert limit.lost == pytest.approx((100 * 5 / PART, 100 * 5**0.5 / PART))
    assert not limit.near
    assert replace(limit, lost=(2.5, 1.0)).near


@pytest.mark.exhaustive
def test_the_verdict_of_a_kept_row_is_that_of_the_limits_which_hold_now(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversions, "LAYOUTS", ("official", "diffsynth"))
    names = {"names": lambda: ("bf16", "int8-row")}
    monkeypatch.setattr(conversions, "recipe", SimpleNamespace(**vars(conversions.recipe) | names))
    rows = list(conversions.every(trained, tmp_path))
    assert [(one.name, one.verdict) for one in rows] == [("bf16+official", "PASS"), ("bf16+diffsynth", "PASS")]
    monkeypatch.setattr(conversions.validate, "judged", None)  # nothing is measured again
    strict = replace(conversions.load_profile("standard"), noise_relative_l2={"bf16": 1e-6})
    monkeypatch.setattr(conversions, "load_profile", lambda name: strict)
    assert [one.verdict for one in conversions.every(trained, tmp_path)] == ["FAIL", "FAIL"]


def test_a_folder_that_does_not_hold_its_rows_numbers_is_made_again(trained: Path, tmp_path: Path) -> None:
    conversions.convert_again(trained, tmp_path / "converted" / "bf16+official", "bf16+official")
    digest = conversions.digest_of(paired.opened(trained))
    measured = {"digest": digest, "nbytes": 0, "results": {}}
    conversions.keep(
        json.dumps({"recipe": "", "measured": measured}).encode(), tmp_path / "rows" / "keep+official.json"
    )
    (tmp_path / "converted" / "bf16+official").rename(tmp_path / "converted" / "keep+official")
    assert conversions.digest_of(paired.opened(conversions.folder_of(trained, tmp_path, digest))) == digest


def test_the_page_has_a_row_for_each_recipe_and_what_its_layouts_make_of_it() -> None:
    other = replace(row("PASS", 0.03), layout="comfyui-legacy")
    all_clips = {"reference": clips(ALL, float("inf")), "control": clips(ALL, 100.0), "0.03": clips(FEWER, 31.0)}
    damaged = [calibration.Measured(row("FAIL", 0.3, 0.4), clips(FEWER, 20.0))]
    found = tables.Found([row("PASS", 0.03), other], all_clips, damaged, 10_000_000, "d6df5745")
    page = tables.page(found, "scripts/quality --steps 8", 8)
    assert "`scripts/quality --steps 8`" in page
    assert f"{2 * PART} clips" in page
    assert "numbers d6df5745" in page
    cells = ("`fp8-scaled`", "`comfyui`, `comfyui-legacy`", "50%", "0.03", "0.03", "PASS", "31.0", "0.9000")
    line = f"| {' | '.join(cells)} | 96.0 % (-4.0; −10 +0) |"
    assert line in page
    assert "**fp8-scaled+comfyui passed, and captions were lost" in page
    assert "scales off by 40% | FAIL" in page


def test_a_page_after_one_round_judges_no_verdict() -> None:
    few = measured.Clips(tuple(map(str, captions())), (100.0,) * PART, (1.0,) * PART)
    found = tables.Found(
        [row("PASS", 0.03)], {"reference": few, "control": few, "0.03": few}, [], 10_000_000, "d6df5745"
    )
    page = tables.page(found, "scripts/quality", 8)
    assert "this page was written after one" in page
    assert "Wrong would be" not in page
