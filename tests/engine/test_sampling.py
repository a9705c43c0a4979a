"""Sampling: the official grid, solvers against independent transcriptions, experts, sizes, conditioning."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from wanconv import errors
from wanconv.engine.sampling import (
    TASKS,
    Grid,
    Solver,
    UniPC,
    exercised,
    expert_at,
    given_video,
    guided,
    image_condition,
    latent_size,
    noised,
    official_grid,
    task_of,
)
from wanconv.engine.wan import WanCondition, first_frame_clean
from wanconv.evaluation.results import timesteps
from wanconv.models import FAMILIES
from wanconv.verdict import load_profile

# VACE and Animate are not sampled, and CogVideoX is no flow: diffusers' own scheduler samples it
FLOWING = [
    family for family in FAMILIES if family.model_type not in ("vace", "animate") and "cogvideox" not in family.name
]

T2V, I2V, TI2V, S2V = (TASKS[f"wan2.2-{name}"] for name in ("t2v-a14b", "i2v-a14b", "ti2v-5b", "s2v-14b"))
Field = Callable[[Tensor, float], Tensor]


def curved(sample: Tensor, sigma: float) -> Tensor:
    """A velocity that is neither linear in the sample nor smooth in time alone."""
    return torch.tanh(1.7 * sample) * (0.5 + sigma) - 0.8 * torch.cos(3 * sigma + sample.roll(1, -1)) + 0.3 * sigma**2


def walk(solver: Solver, grid: Grid, field: Field, sample: Tensor) -> Tensor:
    for sigma in grid.sigmas[:-1].tolist():
        sample = solver.step(field(sample, sigma), sample)
    return sample


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


# --- grid


@pytest.mark.parametrize(
    ("steps", "shift", "first", "last"), [(40, 12.0, 999, 235), (50, 5.0, 999, 92), (40, 5.0, 999, 113)]
)
def test_the_grid_is_the_official_one(steps: int, shift: float, first: int, last: int) -> None:
    grid = official_grid(steps, shift)
    expected = [  # literally: equal parts of 0.999, bent, times 1000, cut
        shift * s / (1 + (shift - 1) * s) for s in (0.999 * (steps - step) / steps for step in range(steps))
    ]
    assert grid.sigmas[:-1].tolist() == pytest.approx(expected, abs=1e-7)
    assert grid.sigmas[-1] == 0
    assert grid.timesteps.tolist() == [int(1000 * sigma) for sigma in expected]
    assert grid.timesteps[[0, -1]].tolist() == [first, last]
    assert (grid.sigmas.dtype, grid.timesteps.dtype, len(grid)) == (torch.float32, torch.int64, steps)


def test_without_shift_timesteps_are_equal_parts_and_none_is_rounded_up() -> None:
    assert official_grid(4, 1.0).timesteps.tolist() == [999, 749, 499, 249]


def test_every_familys_shift_and_boundary_are_those_of_its_task() -> None:
    rows = {family.name: (family.shift, family.boundary) for family in FLOWING}
    assert {name: (TASKS[name].shift, TASKS[name].boundary) for name in rows} == rows


def test_every_release_has_a_task_and_its_default_size_and_frames_fit() -> None:
    for family in FLOWING:
        for release in (None, *(release.name for release in family.releases)):
            task = task_of(family.name, release)
            width, height = task.size
            assert latent_size(task, task.size, task.frames)[1:] == (
                height // task.space_stride,
                width // task.space_stride,
            )


def test_a_small_release_has_defaults_of_its_own_and_others_their_familys() -> None:
    assert task_of("wan2.1-t2v", "wan2.1-t2v-1.3b").size == (832, 480)
    assert task_of("wan2.1-t2v", "wan2.1-t2v-14b") is task_of("wan2.1-t2v") is task_of("wan2.1-t2v", None)


def test_a_family_that_is_not_sampled_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="cogvideox is not a family that the engine samples"):
        task_of("cogvideox")


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (-1, 5.0), (4, 0.0), (4, math.nan), (4, math.inf)])
def test_a_grid_without_steps_or_with_a_strange_shift_is_refused(steps: int, shift: float) -> None:
    with pytest.raises(errors.UsageError, match="no grid of"):
        official_grid(steps, shift)


# --- experts


@pytest.mark.parametrize(
    ("task", "steps", "high"), [(T2V, 40, 26), (T2V, 8, 6), (T2V, 4, 3), (I2V, 40, 15), (I2V, 8, 3), (I2V, 4, 2)]
)
def test_the_high_noise_expert_gets_as_many_steps_as_officially(task: object, steps: int, high: int) -> None:
    assert isinstance(task, type(T2V))
    counts = exercised(official_grid(steps, task.shift).timesteps, task.boundary)
    assert counts == {"expert.high": high, "expert.low": steps - high}


def test_the_expert_changes_at_the_boundary_itself() -> None:
    assert [expert_at(t, 0.875) for t in (875, 874)] == ["expert.high", "expert.low"]
    assert [expert_at(t, 0.9) for t in (900, 899)] == ["expert.high", "expert.low"]
    assert {expert_at(t, None) for t in (999, 0)} == {"dit"}
    assert [T2V.guidance_at(t) for t in (875, 874)] == [4.0, 3.0]


def test_a_starved_expert_counts_zero() -> None:
    assert exercised(official_grid(2, 1.0).timesteps[:1], 0.875) == {"expert.high": 1, "expert.low": 0}
    assert exercised([], None) == {"dit": 0}


def test_the_probes_exercise_both_experts_and_both_sides_of_the_boundary() -> None:
    standard = load_profile("standard")
    assert timesteps(standard, 0.875) == [999, 875, 874, 500, 100]
    assert timesteps(standard, 0.9) == [999, 900, 899, 500, 100]
    assert timesteps(standard, None) == [999, 500, 100]
    assert exercised(timesteps(standard, 0.9), 0.9) == {"expert.high": 2, "expert.low": 3}


# --- solvers


def transcribed_unipc(grid: Grid, field: Field, start: list[float]) -> list[float]:
    """UniPC on x0, B(h) = e^-h - 1, order 2, first order at both ends: arXiv 2302.04867, algorithms 5 to 8.

    Python floats and loops only; the corrector's two weights by Cramer's rule.
    """
    sigmas: list[float] = grid.sigmas.tolist()

    def half_log_snr(sigma: float) -> float:
        return math.log(1 - sigma) - math.log(sigma) if sigma else math.inf

    def first_order(s: float, t: float, x: list[float], m: list[float]) -> list[float]:
        growth = math.expm1(half_log_snr(s) - half_log_snr(t))  # e^-h - 1
        return [t / s * x[i] - (1 - t) * growth * m[i] for i in range(len(x))]

    x, steps = start, len(sigmas) - 1
    predictions: list[list[float]] = []
    before, order = start, 0
    for step in range(steps):
        s = sigmas[step]
        velocity = field(torch.tensor([x], dtype=torch.float64), s)[0].tolist()
        m = [x[i] - s * velocity[i] for i in range(len(x))]
        if step:  # correct the sample with the prediction made at it
            r = sigmas[step - 1]
            h = half_log_snr(s) - half_log_snr(r)
            growth = math.expm1(-h)
            base = first_order(r, s, before, predictions[-1])
            if order == 1:
                change = [0.5 * (m[i] - predictions[-1][i]) for i in range(len(x))]
            else:
                ratio = (half_log_snr(sigmas[step - 2]) - half_log_snr(r)) / h
                phi_2 = growth / -h - 1
                phi_3 = phi_2 / -h - 1 / 2
                b_1, b_2 = phi_2 / growth, 2 * phi_3 / growth
                older = (b_1 - b_2) / (1 - ratio)  # older + newer = b_1, ratio * older + newer = b_2
                newer = b_1 - older
                change = [
                    older * (predictions[-2][i] - predictions[-1][i]) / ratio + newer * (m[i] - predictions[-1][i])
                    for i in range(len(x))
                ]
            x = [base[i] - (1 - s) * growth * change[i] for i in range(len(x))]
        predictions.append(m)
        order = min(2, step + 1, steps - step)
        t = sigmas[step + 1]
        following = first_order(s, t, x, m)
        if order == 2:
            h = half_log_snr(t) - half_log_snr(s)
            ratio = (half_log_snr(sigmas[step - 1]) - half_log_snr(s)) / h
            following = [
                following[i] - (1 - t) * math.expm1(-h) * 0.5 * (predictions[-2][i] - m[i]) / ratio
                for i in range(len(x))
            ]
        before, x = x, following
    return x


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (2, 5.0), (3, 3.0), (4, 12.0), (8, 5.0), (40, 12.0), (50, 5.0)])
def test_unipc_ends_where_a_literal_transcription_ends(steps: int, shift: float) -> None:
    grid, start = official_grid(steps, shift), noise(1, 24)
    expected = transcribed_unipc(grid, curved, start[0].tolist())
    assert walk(UniPC(grid), grid, curved, start)[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("steps", "shift"), [(4, 12.0), (8, 5.0), (40, 12.0)])
def test_unipc_is_diffusers_solver_on_the_official_noise_levels(steps: int, shift: float) -> None:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(float(np.float32(0.999)), 0, steps + 1)[:-1])
    grid = official_grid(steps, shift)
    assert torch.equal(grid.sigmas, scheduler.sigmas)
    assert torch.equal(grid.timesteps, scheduler.timesteps)
    theirs = ours = noise(1, 16, 2, 4, 4)
    solver = UniPC(grid)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        theirs = scheduler.step(curved(theirs, sigma), timestep, theirs, return_dict=False)[0]
        ours = solver.step(curved(ours, sigma), ours)
        assert torch.equal(ours, theirs)


class Euler:
    """First order, along the predicted velocity: what every better solver tends to."""

    def __init__(self, grid: Grid) -> None:
        self._lengths = iter(grid.sigmas.diff().tolist())

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        following: Tensor = sample + next(self._lengths) * velocity
        return following


def test_euler_is_exact_where_the_velocity_is_constant() -> None:
    clean, eps = noise(2, 8).double(), noise(1, 8).double()
    grid = official_grid(7, 5.0)
    start = (1 - grid.sigmas[0].double()) * clean + grid.sigmas[0].double() * eps
    end = walk(Euler(grid), grid, lambda sample, sigma: eps - clean, start)
    assert torch.allclose(end, clean, rtol=0, atol=1e-12)


def test_both_solvers_tend_to_the_same_end() -> None:
    start = noise(1, 24)
    few, many = official_grid(50, 3.0), official_grid(4000, 3.0)
    assert torch.allclose(
        walk(UniPC(few), few, curved, start), walk(Euler(many), many, curved, start), rtol=0, atol=5e-3
    )


def test_latents_in_half_precision_are_our_own_bug() -> None:
    grid = official_grid(2, 5.0)
    with pytest.raises(AssertionError, match="float32"):
        UniPC(grid).step(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bfloat16))


def test_guidance_of_one_is_the_conditional_velocity_and_more_goes_beyond_it() -> None:
    u, c = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert guided(u, c, 1.0).tolist() == [3.0, 1.0]
    assert guided(u, c, 4.0).tolist() == [9.0, -2.0]


def test_a_noised_sample_is_noise_at_the_top_and_clean_at_zero() -> None:
    clean, eps = noise(4), noise(8)[4:]
    assert torch.equal(noised(clean, eps, 0), clean)
    assert torch.allclose(noised(clean, eps, 875), 0.125 * clean + 0.875 * eps)


# --- sizes


def test_latents_are_a_quarter_in_time_and_an_eighth_or_sixteenth_in_space() -> None:
    assert latent_size(T2V, (832, 480), 81) == (21, 60, 104)
    assert latent_size(TI2V, (1280, 704), 121) == (31, 44, 80)
    assert latent_size(T2V, (16, 32), 1) == (1, 4, 2)
    assert latent_size(S2V, (1024, 704), 80) == (20, 88, 128)  # after 73 frames, 20 of 39 latent ones


@pytest.mark.parametrize(
    ("task", "size", "frames", "message", "hint"),
    [
        (T2V, (832, 480), 16, "16 frames cannot be generated: the number has to be 4 n + 1", "ask for 13 or 17"),
        (T2V, (832, 480), 0, "0 frames", "ask for 1"),
        (T2V, (840, 480), 17, "840x480 cannot be generated: width and height have to be multiples of 16", "832 or 848"),
        (TI2V, (1280, 720), 17, "multiples of 32 (16 pixels per latent", "ask for 1280 by 704 or 736"),
        (T2V, (0, 8), 17, "0x8 cannot be generated", "ask for 16 by 16"),
        (S2V, (64, 64), 17, "17 frames cannot be generated: the number has to be 4 n", "ask for 16 or 20"),
        (S2V, (64, 64), 1, "the number has to be 4 n", "ask for 4"),
        (S2V, (64, 80), 16, "multiples of 64 (8 pixels per latent, 8 latents per token)", "64 by 64 or 128"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(
    task: object, size: tuple[int, int], frames: int, message: str, hint: str
) -> None:
    assert isinstance(task, type(T2V))
    with pytest.raises(errors.UsageError) as refusal:
        latent_size(task, size, frames)
    assert message in refusal.value.message
    assert hint in refusal.value.hint


# --- conditioning


@pytest.mark.parametrize("last", [False, True])
def test_image_to_video_is_told_the_given_frames_by_four_mask_channels(last: bool) -> None:
    frames, encoded = 9, noise(1, 16, 3, 2, 2)
    given = torch.zeros(frames)
    given[0] = 1  # per pixel frame; the first one counts for the four of its latent frame
    given[-1] = float(last)
    expected = torch.cat([given[:1].repeat(4), given[1:]]).view(3, 4).T  # (latent frame, 4) -> (4, latent frame)
    condition = image_condition(encoded, last)
    assert condition.shape == (1, 20, 3, 2, 2)
    assert torch.equal(condition[0, :4, :, 1, 1], expected)
    assert torch.equal(condition[:, 4:], encoded)


def test_what_image_to_video_encodes_is_the_images_and_grey_between_them() -> None:
    first, last = noise(1, 3, 4, 4), noise(1, 3, 4, 4) + 1
    video = given_video(first, 9)
    assert video.shape == (1, 3, 9, 4, 4)
    assert torch.equal(video[:, :, 0], first)
    assert not video[:, :, 1:].any()
    both = given_video(first, 9, last)
    assert torch.equal(both[:, :, -1], last)
    assert torch.equal(both[:, :, :-1], video[:, :, :-1])


def test_a_given_frame_stays_put_and_its_tokens_are_at_time_zero() -> None:
    latents, given = noise(2, 48, 3, 4, 6), noise(1, 48, 1, 4, 6) + 5
    kept = WanCondition(first=given).of(2).pinned(latents)
    assert torch.equal(kept[:, :, :1], given.expand(2, -1, -1, -1, -1))
    assert torch.equal(kept[:, :, 1:], latents[:, :, 1:])
    mask = torch.ones(3, 4, 6)
    mask[0] = 0
    official = (mask[:, ::2, ::2] * 957).flatten()
    assert official.tolist() == [0.0] * 6 + [957.0] * 12
    assert first_frame_clean(torch.tensor([957]), (3, 2, 3)).tolist() == [official.tolist()]
