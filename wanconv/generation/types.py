"""What the modules of a generation hand to each other: setting, material, and what every network and condition can do.

It imports none of them, so that the table of networks (tasks.py) and the networks' own modules can both read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from PIL import Image
from torch import Tensor

from wanconv.engine.recorder import Recorder
from wanconv.engine.sampling import Schedule
from wanconv.engine.sampling import Task as Defaults
from wanconv.engine.vae import VaeCodec
from wanconv.engine.weights import Fetch

Picture = Literal["image", "last_image"]
Input = Picture | Literal["audio"]
Limit = tuple[tuple[int, int], int | None]  # (width, height), and frames, where they have one


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What is generated: the task's grid, the latents' size (C, F, H, W), and where it is computed.

    The first `padding` frames of the latents do not belong to the clip.
    """

    task: Defaults
    grid: Schedule
    latents: tuple[int, int, int, int]
    size: tuple[int, int]
    frames: int
    seed: int
    device: torch.device
    padding: int = 0


class Condition(Protocol):
    """What a denoiser is fed in addition to latents, time and text: of one sample, or of each in a batch."""

    def of(self, batch: int) -> Self:
        """Returns one sample's condition for each of `batch` samples."""
        ...

    def pinned(self, latents: Tensor) -> Tensor:
        """Returns latents with what is given of them put back."""
        ...


class Denoiser(Protocol):
    """A network on the meta device, fed block by block.

    A condition is of the network's own class. A state has the residual stream as `x` (B, N, d), to which each part in
    `stack` adds.
    """

    @property
    def stack(self) -> tuple[str, ...]: ...

    def watch(self, recorder: Recorder) -> None:
        """Gives its modules their canonical names."""
        ...

    def denoise(
        self, fetch: Fetch, latents: Tensor, timestep: Tensor, context: Tensor, condition: Any = None
    ) -> Tensor: ...

    def embed(self, fetch: Fetch, latents: Tensor, timestep: Tensor, context: Tensor, condition: Any = None) -> Any: ...

    def block(self, name: str, fetch: Fetch, state: Any) -> Any: ...

    def unembed(self, fetch: Fetch, state: Any) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a condition is made of: pictures of any size, CLIP's tokens of them, the VAE, where there is one, and the
    hidden states of a voice.
    """

    setting: Setting
    pictures: Mapping[Picture, Image.Image]
    tokens: Tensor | None
    vae: VaeCodec | None
    states: Tensor | None = None
