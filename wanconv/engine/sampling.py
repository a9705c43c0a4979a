"""Flow-match sampling as in Wan's own code: noise levels, timesteps, solvers, guidance, experts, conditioning.

A sample at noise level sigma is `x = (1 - sigma) * x0 + sigma * noise`, and the denoiser predicts the velocity `v =
noise - x0`, so `x0 = x - sigma * v`. A grid of N steps runs from 0.999 down to 0 in equal parts, is shifted towards
noise by the task's shift, and ends with sigma 0; the timestep is `int(1000 * sigma)`. diffusers' own pipelines space
the same solver differently (its last timestep at 40 steps and shift 12 is 242, the official one 235): figures of the
two are not comparable bit by bit, and wanconv follows the official code.

Timesteps are int64, noise levels and latents float32. A timestep in bf16 has 8 bits: 999 would become 1000.

Definitions: Wan-Video/Wan2.2 wan/utils/fm_solvers_unipc.py, wan/text2video.py, wan/image2video.py;
Wan-Video/Wan2.1 wan/first_last_frame2video.py; the solver: Zhao et al., "UniPC", arXiv 2302.04867.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanconv.engine.libraries import quiet
from wanconv.errors import UsageError

TRAIN_STEPS = 1000
TIME_STRIDE = 4  # pixel frames per latent frame, after the first


@dataclass(frozen=True, slots=True)
class Task:
    """A task's default sampling. `guidance` is (low-noise, high-noise); `boundary` the high-noise expert's share.

    `size` is (width, height), `space_stride` the pixels per latent and `token` the latents per token, both ways;
    `token_frames` the latent frames per token. Clips have `lot` n + 1 frames, as the first is a latent frame by itself;
    S2V's have 4 n, as other frames go before them.
    """

    steps: int
    shift: float
    guidance: tuple[float, float]
    boundary: float | None
    frames: int
    fps: int
    size: tuple[int, int]
    space_stride: int = 8
    token: int = 2
    lot: int = TIME_STRIDE
    token_frames: int = 1

    def guidance_at(self, timestep: int) -> float:
        low, high = self.guidance
        return low if expert_at(timestep, self.boundary) == "expert.low" else high


# By family; by release where it differs from its family. Sources: Wan-Video/Wan2.1 generate.py and README.md,
# Wan-Video/Wan2.2 wan/configs/*.py, zai-org/CogVideo README.md and inference/cli_demo.py. At 480p Wan 2.1 I2V takes
# shift 3. CogVideoX's is that of its signal-to-noise ratio, which its scheduler's configuration states, too.
# fmt: off
TASKS: Mapping[str, Task] = {
    #                        steps  shift  (low, high)  boundary  frames  fps  size
    "wan2.1-t2v":      Task(50,    5.0,  (5.0, 5.0),   None,     81,    16,  (1280, 720)),
    "wan2.1-t2v-1.3b": Task(50,    8.0,  (6.0, 6.0),   None,     81,    16,  (832, 480)),  # its README's command
    "wan2.1-i2v":      Task(40,    5.0,  (5.0, 5.0),   None,     81,    16,  (1280, 720)),
    "wan2.1-flf2v":    Task(50,   16.0,  (5.0, 5.0),   None,     81,    16,  (1280, 720)),
    "wan2.2-t2v-a14b": Task(40,   12.0,  (3.0, 4.0),   0.875,    81,    16,  (1280, 720)),
    "wan2.2-i2v-a14b": Task(40,    5.0,  (3.5, 3.5),   0.9,      81,    16,  (1280, 720)),
    "wan2.2-ti2v-5b":  Task(50,    5.0,  (5.0, 5.0),   None,    121,    24,  (1280, 704), space_stride=16),
    "wan2.2-s2v-14b":  Task(40,    3.0,  (4.5, 4.5),   None,     80,    16,  (1024, 704), token=8),  # packed motion
    "cogvideox-2b":    Task(50,    3.0,  (6.0, 6.0),   None,     49,     8,  (720, 480), lot=8),
    "cogvideox-5b":    Task(50,    1.0,  (6.0, 6.0),   None,     49,     8,  (720, 480), lot=8),
    "cogvideox-5b-i2v": Task(50,   1.0,  (6.0, 6.0),   None,     49,     8,  (720, 480), lot=8),
    "cogvideox1.5-5b": Task(50,    1.0,  (6.0, 6.0),   None,     81,    16,  (1360, 768), lot=8, token_frames=2),
    "cogvideox1.5-5b-i2v": Task(50, 1.0, (6.0, 6.0),   None,     81,    16,  (1360, 768), lot=8, token_frames=2),
}
# fmt: on


def task_of(family: str, release: str | None = None) -> Task:
    """Returns the defaults of a release, or of its family; raises UsageError for a family that is not sampled here."""
    task = TASKS.get(release or family) or TASKS.get(family)
    if task is None:
        raise UsageError(f"{family} is not a family that the engine samples", f"known: {', '.join(TASKS)}")
    return task


# --- noise levels and timesteps


class Schedule(Protocol):
    """The timesteps of a run, int64, and a sampler's values at them."""

    @property
    def timesteps(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def noised(self, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Returns the sample at a timestep's noise level, for teacher forcing."""
        ...

    def guidance(self, strength: float, timestep: int) -> float:
        """Returns how strong guidance is at a timestep where `strength` is asked for."""
        ...

    def solver(self, seed: int) -> "Solver":
        """Returns the solver over the timesteps; `seed` is for the noise that some solvers add."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A Schedule of flow matching: noise levels, float32 (N + 1) with a final 0, and timesteps, int64 (N)."""

    sigmas: Tensor
    timesteps: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def noised(self, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        return noised(clean, noise, timestep)

    def guidance(self, strength: float, timestep: int) -> float:
        return strength

    def solver(self, seed: int) -> "UniPC":
        return UniPC(self)


def shifted(sigmas: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Returns noise levels shifted towards noise: `shift * s / (1 + (shift - 1) * s)`."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def official_grid(steps: int, shift: float) -> Grid:
    """Returns the grid of Wan's own UniPC; raises UsageError for less than one step or an invalid shift."""
    if steps < 1 or not 0 < shift < math.inf:
        raise UsageError(
            f"no grid of {steps} steps with shift {shift}", "ask for at least one step and a shift above 0"
        )
    largest = float(np.float32(1 - 1 / TRAIN_STEPS))  # the official scheduler stores its first level as float32
    sigmas = shifted(np.linspace(largest, 0, steps + 1)[:-1], shift)  # float64
    return Grid(
        sigmas=torch.from_numpy(np.append(sigmas, 0).astype(np.float32)),
        timesteps=torch.from_numpy((sigmas * TRAIN_STEPS).astype(np.int64)),  # cut, not rounded
    )


def noised(clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Returns the sample at a timestep's noise level, for teacher forcing."""
    sigma = timestep / TRAIN_STEPS
    return (1 - sigma) * clean + sigma * noise


# --- experts


def expert_at(timestep: int, boundary: float | None) -> str:
    """Returns the component that denoises at a (shifted, integer) timestep; `dit` if there is one denoiser only."""
    if boundary is None:
        return "dit"
    return "expert.high" if timestep >= boundary * TRAIN_STEPS else "expert.low"


def exercised(timesteps: Sequence[int] | Tensor, boundary: float | None) -> dict[str, int]:
    """Returns the number of timesteps of each denoiser: 0 for one that never runs."""
    counts = {"dit": 0} if boundary is None else {"expert.high": 0, "expert.low": 0}
    for timestep in timesteps:
        counts[expert_at(int(timestep), boundary)] += 1
    return counts


# --- solvers


class Solver(Protocol):
    """Walks a grid: each step takes the velocity predicted for the current sample, and returns the next sample."""

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor: ...


class UniPC:
    """The official default: predictor and corrector of order 2 (bh2) on x0, first order at both ends.

    diffusers' scheduler, walked along our grid. Samples have a batch axis and are float32.
    """

    def __init__(self, grid: Grid) -> None:
        with quiet():
            from diffusers import UniPCMultistepScheduler

            self._scheduler = UniPCMultistepScheduler(
                num_train_timesteps=TRAIN_STEPS,
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                solver_order=2,
                solver_type="bh2",
                predict_x0=True,
                lower_order_final=True,
                final_sigmas_type="zero",
            )
            self._scheduler.set_timesteps(len(grid))
        # in place of diffusers' own spacing
        self._scheduler.sigmas, self._scheduler.timesteps = grid.sigmas.clone(), grid.timesteps.clone()
        self._scheduler.set_begin_index(0)
        self._timesteps = iter(grid.timesteps)

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        assert sample.dtype == torch.float32, "the solver's differences of x0 need float32"
        following: Tensor = self._scheduler.step(velocity.float(), next(self._timesteps), sample, return_dict=False)[0]
        return following


def guided(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """Returns the velocity under classifier-free guidance: `u + g * (c - u)`."""
    return unconditional + guidance * (conditional - unconditional)


# --- sizes


def latent_size(task: Task, size: tuple[int, int], frames: int) -> tuple[int, int, int]:
    """Returns the latents' (frames, height, width) of a video of `size` (width, height).

    Padding frames of a token are not counted. Raises UsageError, with values that fit, if frames or size are not a
    whole number of latents or tokens.
    """
    width, height = size
    token, lone, lot = task.space_stride * task.token, task.frames % task.lot, task.lot
    if frames < 1 or (frames - lone) % lot:
        fitting = _around(frames - lone, lot, offset=lone, least=lone or lot)
        number = f"{lot} n + {lone}" if lone else f"{lot} n"
        raise UsageError(f"{frames} frames cannot be generated: the number has to be {number}", f"ask for {fitting}")
    if width < token or height < token or width % token or height % token:
        fitting = f"{_around(width, token, least=token)} by {_around(height, token, least=token)}"
        raise UsageError(
            f"{width}x{height} cannot be generated: width and height have to be multiples of {token} "
            f"({task.space_stride} pixels per latent, {task.token} latents per token)",
            f"ask for {fitting}",
        )
    return -(-frames // TIME_STRIDE), height // task.space_stride, width // task.space_stride


def fitting_frames(task: Task, frames: int) -> int:
    """Returns the length of a task's shortest clip that is as long as 4 n + 1 `frames` of the others."""
    return -(-(frames - 1) // task.lot) * task.lot + task.frames % task.lot


def _around(number: int, step: int, least: int, offset: int = 0) -> str:
    below = max(number // step * step + offset, least)
    above = max(-(-number // step) * step + offset, least)
    return str(below) if below == above else f"{below} or {above}"


# --- conditioning on images


def given_video(first: Tensor, frames: int, last: Tensor | None = None) -> Tensor:
    """Returns the video that I2V encodes: the images at their ends of the clip, grey (0 in -1 … 1) between them.

    # each (B, 3, H, W) -> (B, 3, frames, H, W)
    """
    video = first.new_zeros(*first.shape[:2], frames, *first.shape[2:])
    video[:, :, 0] = first
    if last is not None:
        video[:, :, -1] = last
    return video


def image_condition(encoded: Tensor, last: bool = False) -> Tensor:
    """Returns I2V's further input channels: four of mask, 1 in the given frames, and the encoded video.

    A latent frame is four pixel frames, a mask channel each, but for the first, which is one.

    # (B, 16, F, H, W) -> (B, 20, F, H, W)
    """
    mask = encoded.new_zeros(encoded.shape[0], TIME_STRIDE, *encoded.shape[2:])
    mask[:, :, 0] = 1
    if last:
        mask[:, -1, -1] = 1
    return torch.cat([mask, encoded], dim=1)
