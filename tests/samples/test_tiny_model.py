"""The small model that ships: how its clips are drawn and told apart, how it is trained, and what it is."""

import importlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from wanconv.containers import open_checkpoint
from wanconv.engine.numerics import FP32
from wanconv.engine.sampling import official_grid, task_of
from wanconv.engine.text import NEGATIVE_PROMPT, tokenize
from wanconv.errors import UsageError
from wanconv.evaluation.captions import DIRECTIONS, Caption, captions, classify
from wanconv.evaluation.report.clips import pixels
from wanconv.generation import sampling
from wanconv.generation.tasks import denoiser
from wanconv.models import identify
from wanconv.samples import shipped
from wanconv.weights.model import ModelWeights

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "wanconv" / "samples" / "tiny"


@pytest.fixture(scope="module")
def training() -> Iterator[Any]:
    """The package that trains, beside the scripts; its modules are attributes."""
    sys.path.insert(0, str(ROOT / "scripts"))
    for name in ("clips", "networks", "legs", "export", "paired"):
        importlib.import_module(f"tiny_model.{name}")
    yield sys.modules["tiny_model"]
    sys.path.remove(str(ROOT / "scripts"))


def test_the_same_seed_draws_the_same_clips(training: Any) -> None:
    (first, which), (again, same), (other, _) = (training.clips.drawn(seed, 4) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(which, same)
    assert not torch.equal(first, other)


def test_the_classifier_recovers_the_caption_of_every_drawn_clip(training: Any) -> None:
    video = training.clips.draw(captions(), torch.Generator().manual_seed(3))
    pixels = ((video * 0.5 + 0.5) * 255).round().byte().permute(0, 2, 3, 4, 1).numpy()
    assert [classify(clip) for clip in pixels] == captions()


def test_the_classifier_sees_nothing_in_a_plain_clip() -> None:
    assert classify(torch.full((5, 48, 48, 3), 128, dtype=torch.uint8).numpy()) is None


def test_a_caption_reads_as_its_prompt() -> None:
    assert str(Caption("red", "square", "moves left")) == "a red square moves left"


@pytest.mark.exhaustive
def test_a_leg_that_is_stopped_goes_on_to_the_same_weights(
    training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legs = training.legs
    stages = {
        "vae": replace(legs.STAGES["vae"], steps=2, batch=1),
        "base": replace(legs.STAGES["base"], steps=2, batch=2),
        "high": replace(legs.STAGES["high"], steps=1, batch=2),
    }
    ends, legs_taken = [], []
    for name, minutes in (("at once", 1e6), ("in legs", 4 / 60)):
        taken = 0
        done = False
        while not done:
            # a second passes whenever the time is looked at
            monkeypatch.setattr(legs.time, "monotonic", partial(next, itertools.count()))
            leg = legs.Leg(tmp_path / name, "cpu", 0, 4, stages)
            done, taken = legs.train(leg, minutes), taken + 1
        ends.append(leg.weights)
        legs_taken.append(taken)
    assert legs_taken[0] == 1 < legs_taken[1]
    assert _flat(ends[0]).keys() == _flat(ends[1]).keys()
    assert [key for key, value in _flat(ends[0]).items() if not torch.equal(value, _flat(ends[1])[key])] == []


def test_a_state_of_other_settings_is_refused(training: Any, tmp_path: Path) -> None:
    stages = {"vae": replace(training.legs.STAGES["vae"], steps=1, batch=1)}
    assert training.legs.train(training.legs.Leg(tmp_path, "cpu", 0, 4, stages), 1e6)
    with pytest.raises(UsageError, match="holds another training: seed was 0"):
        training.legs.train(training.legs.Leg(tmp_path, "cpu", 1, 4, stages), 1e6)


def _flat(weights: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{stage}/{name}": value for stage, named in weights.items() for name, value in named.items()}


def test_the_latents_statistics_are_the_official_ones(training: Any) -> None:
    config = AutoencoderKLWan(base_dim=8).config
    assert list(training.networks.LATENTS_MEAN) == list(config.latents_mean)
    assert list(training.networks.LATENTS_STD) == list(config.latents_std)


def test_the_shipped_model_is_whole_and_small() -> None:
    model = identify(open_checkpoint(FOLDER))
    assert model.family.name == "wan2.2-t2v-a14b"
    assert model.release is None
    assert set(model.components) == set(model.family.components)
    assert {tensor.dtype for tensor in model.tensors.values()} == {"fp32"}
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 12_000_000


def test_training_computes_what_the_engine_computes(training: Any) -> None:
    networks, tensors, model = training.networks, training.paired.tensors, identify(open_checkpoint(FOLDER))
    folder = sampling.tokenizer_folder([model])
    assert folder is not None
    prompts = tokenize(folder, ["a red square moves left", NEGATIVE_PROMPT, ""])
    words = torch.tensor([prompt + [0] * (networks.TOKENS - len(prompt)) for prompt in prompts])
    latents, timestep = (
        torch.randn(3, 16, 5, 6, 6, generator=torch.Generator().manual_seed(0)),
        torch.tensor([999, 880, 3]),
    )
    video, _ = training.clips.drawn(4, 1)
    with ModelWeights(model, 1 << 30, torch.device("cpu")) as weights, torch.inference_mode():
        contexts = sampling.text_encoder(weights, torch.float32).encode(prompts)
        theirs = denoiser(model, "expert.low", FP32).denoise(
            partial(weights.tensors, "expert.low"), latents, timestep, contexts
        )
        wan = networks.denoiser("cpu")
        wan.load_state_dict(tensors(weights, "expert.low"))
        context = networks.encode_text(tensors(weights, "text_encoder"), words)
        velocity = networks.velocity(wan, latents, timestep.float(), context, (words != 0).sum(1))
        vae, encoded = tensors(weights, "vae"), sampling.vae_of(weights).encode(video)
        middle, deviation = (
            torch.tensor(values).view(-1, 1, 1, 1) for values in (networks.LATENTS_MEAN, networks.LATENTS_STD)
        )
        decoded = sampling.vae_of(weights).decode(encoded)
        assert (contexts[:, : networks.TOKENS] - context).abs().max() < 1e-4
        assert (theirs - velocity).abs().max() < 1e-4
        assert (encoded * deviation + middle - networks.encode(vae, video)).abs().max() < 1e-4
        shown = (networks.decode(vae, encoded * deviation + middle)[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
        assert (decoded - shown).abs().max() < 1e-4


@pytest.mark.exhaustive
def test_generated_clips_show_the_colour_direction_and_shape_of_their_captions(training: Any) -> None:
    paired, model = training.paired, identify(open_checkpoint(FOLDER))
    which = [number for number, caption in enumerate(captions()) if caption.motion in DIRECTIONS]
    made = paired.loaded(model, model, torch.device("cpu"))
    grid = official_grid(shipped.STEPS, task_of(model.family.name).shift)
    shown = paired.decoded(made, paired.latents(made, which, paired.noise(range(len(which))), grid))
    right = Counter[str]()
    for number, clip in zip(which, shown, strict=True):
        wanted, seen = captions()[number], classify(pixels(clip.numpy()))
        right.update(
            word for word in ("colour", "motion", "shape") if seen and getattr(seen, word) == getattr(wanted, word)
        )
    shares = [right[word] / len(which) for word in ("colour", "motion", "shape")]
    assert all(share >= least for share, least in zip(shares, (0.95, 0.9, 0.8), strict=True)), shares


@pytest.mark.exhaustive
def test_drawn_clips_keep_their_colour_shape_and_motion_through_the_vae(training: Any) -> None:
    paired, networks, model = training.paired, training.networks, identify(open_checkpoint(FOLDER))
    wanted = [caption for caption in captions() if caption.motion == "moves left"]
    vae = paired.loaded(model, model, torch.device("cpu")).vae
    video = training.clips.draw(wanted, torch.Generator().manual_seed(5))
    with torch.inference_mode():
        back = (networks.decode(vae, networks.encode(vae, video)) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)
    seen = [classify(pixels(clip.contiguous().numpy())) for clip in back]
    assert sum(found == caption for found, caption in zip(seen, wanted, strict=True)) >= len(wanted) - 1
