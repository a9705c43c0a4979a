"""Sampling as CogVideoX does it: v-prediction on a noise schedule of 1000 steps, DDIM or DPM, by diffusers' schedulers.

A sample at timestep t is `x = √a · x0 + √(1 - a) · noise`, with a share a of signal that falls from nearly 1 to 0 at
t = 999, and the denoiser predicts `v = √a · noise - √(1 - a) · x0`. The scheduler is the one that a checkpoint's
scheduler_config.json names: CogVideoXDDIMScheduler in the released ones. CogVideoXDPMScheduler adds noise at
every step; with it, CogVideoX's own demo varies the guidance from step to step, and so does this module.

Definitions: huggingface/diffusers schedulers/scheduling_ddim_cogvideox.py, scheduling_dpm_cogvideox.py,
pipelines/cogvideo/pipeline_cogvideox.py; zai-org/CogVideo inference/cli_demo.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wanconv.engine.libraries import quiet
from wanconv.errors import InputError

_DDIM, _DPM = "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"


class NoiseSchedule:
    """The timesteps of a run, int64, noisiest first, and the values that depend on them (sampling.Schedule).

    Raises InputError for the configuration of another scheduler.
    """

    def __init__(self, config: Mapping[str, object], steps: int) -> None:
        self._config = dict(config)
        self._name = str(config.get("_class_name"))
        if self._name not in (_DDIM, _DPM):
            raise InputError(
                f"the checkpoint's scheduler is {self._name}, which CogVideoX does not use",
                f"put the scheduler_config.json of {_DDIM} or {_DPM} into its scheduler folder",
            )
        self._steps = steps
        self.timesteps: Tensor = self._scheduler().timesteps

    def __len__(self) -> int:
        return len(self.timesteps)

    def noised(self, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Returns the sample at a timestep, for teacher forcing."""
        noisy: Tensor = self._scheduler().add_noise(clean, noise, torch.tensor([timestep]))
        return noisy

    def guidance(self, strength: float, timestep: int) -> float:
        """Returns the guidance at a timestep for the requested `strength`."""
        if self._name == _DDIM:
            return strength
        # sic: steps minus a timestep
        angle = math.pi * ((self._steps - timestep) / self._steps) ** 5.0
        return 1 + strength * (1 - math.cos(angle)) / 2

    def solver(self, seed: int) -> "Walk":
        """Returns the solver over the timesteps; `seed` is for the noise that DPM adds."""
        return Walk(self._scheduler(), self._name == _DPM, seed)

    def _scheduler(self) -> Any:
        with quiet():
            import diffusers

            scheduler: Any = getattr(diffusers, self._name).from_config(self._config)
        scheduler.set_timesteps(self._steps)
        return scheduler


class Walk:
    """A sampling.Solver on diffusers' scheduler."""

    def __init__(self, scheduler: Any, adds_noise: bool, seed: int) -> None:
        self._scheduler, self._adds_noise = scheduler, adds_noise
        self._timesteps = iter(scheduler.timesteps)
        self._generator = torch.Generator().manual_seed(seed)
        self._before: tuple[Tensor | None, Tensor | None] = None, None  # x0 and timestep

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        timestep, velocity = next(self._timesteps), velocity.float()
        following: Tensor
        if not self._adds_noise:
            following = self._scheduler.step(velocity, timestep, sample, return_dict=False)[0]
            return following
        # noise is drawn with frames before channels, as the pipelines have them
        velocity, sample = velocity.transpose(1, 2), sample.transpose(1, 2)
        x0, previous = self._before
        following, x0 = self._scheduler.step(
            velocity, x0, timestep, previous, sample, generator=self._generator, return_dict=False
        )
        self._before = x0, timestep
        return following.transpose(1, 2)
