"""Videos to latents and back: diffusers' AutoencoderKLWan (2.1 and 2.2) and AutoencoderKLCogVideoX, in fp32.

Encoder and decoder load their weights at the first use, and keep them: text-to-video never reads the encoder.
A decoded video is float in 0 … 1, before any rounding to bytes.

Wan's latents are normalised per channel with the configuration's mean and deviation; CogVideoX's are
multiplied by one factor. Wan encodes to the distribution's mode; CogVideoX draws from it.

Definitions: Wan-Video/Wan2.2 wan/modules/vae2_1.py, vae2_2.py; huggingface/diffusers pipelines/wan/pipeline_wan.py,
pipelines/cogvideo/pipeline_cogvideox.py, pipeline_cogvideox_image2video.py.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wanconv.engine.libraries import assign, quiet, release
from wanconv.engine.weights import WeightSource

_COMPONENT = "vae"


class VaeCodec(Protocol):
    """A VAE. `module` is for a recorder to watch."""

    @property
    def module(self) -> nn.Module: ...

    def decode(self, latents: Tensor) -> Tensor:
        """Returns the video of normalised latents, float32 in 0 … 1, or NaN.  # (1, C, F, h, w) -> (frames, H, W, 3)"""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """Returns normalised latents, float32, of a video in -1 … 1.

        # (B, 3, frames, H, W) -> (B, C, F, h, w); an image is a video of one frame
        """
        ...

    def release(self) -> None:
        """Frees the memory of the weights; the next use reads them again."""
        ...


class Vae:
    """Wan's VAE. `names`: canonical name -> diffusers' name, of every tensor (the table's hub column).

    `tiled` works through frames in blended tiles of 256 pixels: less memory, but other results than the clients'.
    """

    def __init__(
        self,
        source: WeightSource,
        names: Mapping[str, str],
        config: Mapping[str, object],
        dtype: torch.dtype = torch.float32,
        tiled: bool = False,
    ) -> None:
        self._dtype = dtype
        with quiet(), torch.device("meta"):
            from diffusers import AutoencoderKLWan

            self._vae: Any = AutoencoderKLWan.from_config(dict(config))
        if tiled:
            self._vae.enable_tiling()
        self.module: nn.Module = self._vae.eval().requires_grad_(False)
        parts = {
            "encoder": nn.ModuleDict({"encoder": self._vae.encoder, "quant_conv": self._vae.quant_conv}),
            "decoder": nn.ModuleDict({"decoder": self._vae.decoder, "post_quant_conv": self._vae.post_quant_conv}),
        }
        self._halves = _Halves(source, names, parts, dtype)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """As Codec says."""
        self._halves.load("decoder")
        mean, inverse = self._statistics(latents.device)
        return _pixels(self._vae.decode(latents.to(self._dtype) / inverse + mean, return_dict=False)[0])

    @torch.inference_mode()
    def encode(self, video: Tensor) -> Tensor:
        """As Codec says; the distribution's mode."""
        self._halves.load("encoder")
        mean, inverse = self._statistics(video.device)
        mode = self._vae.encode(video.to(self._dtype), return_dict=False)[0].mode()
        latents: Tensor = (mode.float() - mean.float()) * inverse.float()
        return latents

    def release(self) -> None:
        """As Codec says."""
        self._halves.release()

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the channels' mean and one over their deviation, (1, C, 1, 1, 1), as in diffusers' pipelines."""
        mean, deviation = (
            torch.tensor(values, dtype=self._dtype, device=device).view(1, -1, 1, 1, 1)
            for values in (self._vae.config.latents_mean, self._vae.config.latents_std)
        )
        return mean, 1.0 / deviation


class CogVideoXVae:
    """CogVideoX's VAE; arguments as for Wan's. `encode` draws with a seed.

    It works through two latent frames at a time, the first batch with one more: an odd number of latent frames becomes
    4 (F - 1) + 1 frames, an even one 4 F.
    """

    def __init__(
        self,
        source: WeightSource,
        names: Mapping[str, str],
        config: Mapping[str, object],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        with quiet(), torch.device("meta"):
            from diffusers import AutoencoderKLCogVideoX

            self._vae: Any = AutoencoderKLCogVideoX.from_config(dict(config))
        self.module: nn.Module = self._vae.eval().requires_grad_(False)
        parts = {half: nn.ModuleDict({half: getattr(self._vae, half)}) for half in ("encoder", "decoder")}
        self._halves = _Halves(source, names, parts, dtype)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """As Codec says."""
        self._halves.load("decoder")
        scaled = 1 / self._vae.config.scaling_factor * latents.to(self._dtype)
        return _pixels(self._vae.decode(scaled, return_dict=False)[0])

    @torch.inference_mode()
    def encode(self, video: Tensor, seed: int = 0) -> Tensor:
        """As Codec says; drawn from the distribution. In 1.5 divided by the factor, as in training."""
        self._halves.load("encoder")
        generator = torch.Generator().manual_seed(seed)
        drawn = self._vae.encode(video.to(self._dtype), return_dict=False)[0].sample(generator).float()
        factor = self._vae.config.scaling_factor
        latents: Tensor = drawn * (1 / factor if self._vae.config.invert_scale_latents else factor)
        return latents

    def release(self) -> None:
        """As Codec says."""
        self._halves.release()


class _Halves:
    """Reads encoder and decoder when they are needed. A half has the canonical names below its name."""

    def __init__(
        self, source: WeightSource, names: Mapping[str, str], parts: Mapping[str, nn.Module], dtype: torch.dtype
    ) -> None:
        self._source, self._names, self._parts, self._dtype = source, names, parts, dtype
        self._loaded: set[str] = set()

    def load(self, part: str) -> None:
        if part not in self._loaded:
            tensors = self._source.tensors(_COMPONENT, part)
            weights = {self._names[name]: tensor.to(self._dtype) for name, tensor in tensors.items()}
            assign(self._parts[part], weights, "VAE")
            self._loaded.add(part)

    def release(self) -> None:
        for part in self._parts.values():
            release(part)
        self._loaded.clear()


def _pixels(video: Tensor) -> Tensor:
    """Returns a decoded video, -1 … 1, as float32 in 0 … 1, or NaN.  # (1, 3, F, H, W) -> (F, H, W, 3)"""
    pixels: Tensor = video.float() * 0.5 + 0.5
    pixels = pixels.clamp(0, 1).masked_fill(~pixels.isfinite(), torch.nan)  # infinity must not become white
    return pixels[0].permute(1, 2, 3, 0).contiguous()
