"""Videos to latents and back: diffusers' AutoencoderKLWan (2.1 and 2.2), in fp32 as officially.

Encoder and decoder get their weights when they are first needed, and keep them: text-to-video never reads the encoder.
Latents are normalised per channel with the mean and deviation that the configuration states. A decoded video is float
in 0 … 1, before any rounding to bytes.

Definitions: Wan-Video/Wan2.2 wan/modules/vae2_1.py, vae2_2.py; huggingface/diffusers pipelines/wan/pipeline_wan.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wanconv.engine.libraries import assign, quiet, release
from wanconv.engine.weights import WeightSource

_COMPONENT = "vae"


class Vae:
    """The VAE of one model. `names`: canonical name -> diffusers' name, of every tensor (the table's hub column).

    `tiled` works through frames in blended tiles of 256 pixels: less memory, other numbers than the clients' own.
    `module` is for a recorder to watch.
    """

    def __init__(
        self,
        source: WeightSource,
        names: Mapping[str, str],
        config: Mapping[str, object],
        dtype: torch.dtype = torch.float32,
        tiled: bool = False,
    ) -> None:
        self._source, self._names, self._dtype = source, names, dtype
        with quiet(), torch.device("meta"):
            from diffusers import AutoencoderKLWan

            self._vae: Any = AutoencoderKLWan.from_config(dict(config))
        if tiled:
            self._vae.enable_tiling()
        self.module: nn.Module = self._vae.eval().requires_grad_(False)
        self._parts = {
            "encoder": nn.ModuleDict({"encoder": self._vae.encoder, "quant_conv": self._vae.quant_conv}),
            "decoder": nn.ModuleDict({"decoder": self._vae.decoder, "post_quant_conv": self._vae.post_quant_conv}),
        }
        self._loaded: set[str] = set()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Returns the video of normalised latents, float32 in 0 … 1, or NaN.  # (1, C, F, h, w) -> (frames, H, W, 3)"""
        self._load("decoder")
        mean, inverse = self._statistics(latents.device)
        video = self._vae.decode(latents.to(self._dtype) / inverse + mean, return_dict=False)[0]
        pixels: Tensor = video.float() * 0.5 + 0.5
        pixels = pixels.clamp(0, 1).masked_fill(~pixels.isfinite(), torch.nan)  # infinity is no white
        return pixels[0].permute(1, 2, 3, 0).contiguous()

    @torch.inference_mode()
    def encode(self, video: Tensor) -> Tensor:
        """Returns normalised latents, the distribution's mode, float32, of a video in -1 … 1.

        # (B, 3, frames, H, W) -> (B, C, F, h, w); an image is a video of one frame
        """
        self._load("encoder")
        mean, inverse = self._statistics(video.device)
        mode = self._vae.encode(video.to(self._dtype), return_dict=False)[0].mode()
        latents: Tensor = (mode.float() - mean.float()) * inverse.float()
        return latents

    def release(self) -> None:
        """Gives the memory of the weights back; the next use reads them again."""
        release(self.module)
        self._loaded.clear()

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the channels' mean and one over their deviation, (1, C, 1, 1, 1), as diffusers' pipelines reckon."""
        mean, deviation = (
            torch.tensor(values, dtype=self._dtype, device=device).view(1, -1, 1, 1, 1)
            for values in (self._vae.config.latents_mean, self._vae.config.latents_std)
        )
        return mean, 1.0 / deviation

    def _load(self, part: str) -> None:
        """Reads one half: the canonical names below `encoder` are diffusers' encoder and quant_conv."""
        if part not in self._loaded:
            tensors = self._source.tensors(_COMPONENT, part)
            weights = {self._names[name]: tensor.to(self._dtype) for name, tensor in tensors.items()}
            assign(self._parts[part], weights, "VAE")
            self._loaded.add(part)
