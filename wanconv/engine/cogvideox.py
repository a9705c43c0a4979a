"""The CogVideoX denoiser: diffusers' own, block by block, with weights loaded and dropped as in wan.py.

    network = CogVideoX(names, config, PRESETS["diffusers"])      # on the meta device: no memory
    velocity = network.denoise(partial(source.tensors, "dit"), latents, timestep, context, condition)

Text and video are one sequence: every block adds self-attention and a feed-forward to both. The network predicts v of
a noised sample (engine/diffusion.py). Positions are sines (2B), rotations of q and k (the others), and for 5B-I2V
also a learned table. diffusers uses the table only at the size that it was trained for. Here, a smaller clip takes its
first frames, rows and columns, so that the model can be judged at a size that a laptop computes.

No runtime widens a part of it to float32: only `linear` and `patch` of the numerics matter.

Definitions: huggingface/diffusers models/transformers/cogvideox_transformer_3d.py,
pipelines/cogvideo/pipeline_cogvideox.py, pipeline_cogvideox_image2video.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from wanconv.engine.libraries import check, quiet, run, watch
from wanconv.engine.numerics import FP32, Numerics
from wanconv.engine.recorder import Recorder
from wanconv.engine.weights import Fetch

_WHAT = "denoiser"
_OFFSET = 2.0  # 1.5 I2V's input about its first frame, a constant (pipeline_cogvideox_image2video.py)


@dataclass(frozen=True, slots=True, eq=False)
class FirstFrame:
    """I2V's further input channels, after the noise's (B, C, F, H, W): an image's latents, then zeros."""

    channels: Tensor

    def of(self, batch: int) -> "FirstFrame":
        return FirstFrame(self.channels.expand(batch, *self.channels.shape[1:]))

    def pinned(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The state between blocks: `x` (B, text + N, d), text tokens first, changes; the rest is the same for all blocks.

    time (B, time); `rotation`: cosines and sines (N, head) each, or None; `size`: the latents' (F, H, W).
    """

    x: Tensor
    text: int
    time: Tensor
    rotation: tuple[Tensor, Tensor] | None
    size: tuple[int, int, int]


class CogVideoX:
    """The denoiser. `names`: canonical name -> diffusers' name, of every tensor (the table's hub column)."""

    def __init__(self, names: Mapping[str, str], config: Mapping[str, object], numerics: Numerics = FP32) -> None:
        self._names, self.numerics = names, numerics
        with quiet(), torch.device("meta"):
            from diffusers import CogVideoXTransformer3DModel

            self._network: Any = CogVideoXTransformer3DModel.from_config(dict(config))
        self._network.eval().requires_grad_(False)
        self._patches = self._network.patch_embed
        self._learned = self._patches.use_learned_positional_embeddings
        self._trained = trained_size(self._network.config)
        self._patches.sample_frames = 0  # sines are computed at each call, and not kept

    @property
    def stack(self) -> tuple[str, ...]:
        """What `block` takes, in turn."""
        return tuple(f"blocks.{n}" for n in range(len(self._network.transformer_blocks)))

    def watch(self, recorder: Recorder) -> None:
        """Gives its modules their canonical names."""
        watch(recorder, self._network, self._names)

    @torch.inference_mode()
    def denoise(
        self, fetch: Fetch, latents: Tensor, timestep: Tensor, context: Tensor, condition: FirstFrame | None = None
    ) -> Tensor:
        """Returns the predicted v (B, 16, F, H, W), float32; arguments as for `embed`."""
        state = self.embed(fetch, latents, timestep, context, condition)
        for name in self.stack:
            state = self.block(name, fetch, state)
        return self.unembed(fetch, state)

    @torch.inference_mode()
    def embed(
        self, fetch: Fetch, latents: Tensor, timestep: Tensor, context: Tensor, condition: FirstFrame | None = None
    ) -> State:
        """Returns the state before the first block.

        latents (B, 16, F, H, W), H and W even, in 1.5 F as well; timestep (B,), int64; context (B, text tokens, text).
        """
        size = (latents.shape[2], latents.shape[3], latents.shape[4])
        if condition is not None:
            latents = torch.cat((latents, condition.channels.to(latents.dtype)), dim=1)
        dtype, network = self.numerics.linear, self._network
        time = self._run("time_embedding", fetch, network.time_proj(timestep).to(dtype))
        if network.ofs_embedding is not None:
            offset = network.ofs_proj(latents.new_full((1,), _OFFSET))
            time = time + self._run("ofs_embedding", fetch, offset.to(dtype))
        return State(
            x=self._embedded(fetch, latents, context).to(dtype),
            text=context.shape[1],
            time=time,
            rotation=self._rotation(size, latents.device),
            size=size,
        )

    @torch.inference_mode()
    def block(self, name: str, fetch: Fetch, state: State) -> State:
        """Returns the state after a block; its weights are fetched here and let go."""
        text, video = state.x[:, : state.text], state.x[:, state.text :]
        path = f"transformer_blocks.{name.rpartition('.')[2]}"
        video, text = self._run(path, fetch, video, text, state.time, state.rotation)
        return replace(state, x=torch.cat((text, video), dim=1))

    @torch.inference_mode()
    def unembed(self, fetch: Fetch, state: State) -> Tensor:
        """Returns v (B, 16, F, H, W) of the state after the last block, float32."""
        video = self._run("norm_final", fetch, state.x[:, state.text :])
        video = self._run("norm_out", fetch, video, None, state.time)
        patches: Tensor = self._run("proj_out", fetch, video).float()
        (frames, height, width), (p, q, r) = state.size, self._patch
        parts = patches.view(len(patches), frames // p, height // q, width // r, -1, p, q, r)
        return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(patches), -1, frames, height, width)

    @property
    def _patch(self) -> tuple[int, int, int]:
        config = self._network.config
        return config.patch_size_t or 1, config.patch_size, config.patch_size

    def _weights(self, path: str, fetch: Fetch, dtype: torch.dtype) -> dict[str, Tensor]:
        """Fetches the tensors of a diffusers module, by diffusers' names."""
        below = f"{path}."
        mine = [canonical for canonical, theirs in self._names.items() if theirs.startswith(below)]
        roots = dict.fromkeys(_root(canonical) for canonical in mine)
        fetched = {name: tensor for root in roots for name, tensor in fetch(root).items()}
        return {self._names[name].removeprefix(below): fetched[name].to(dtype) for name in mine}

    def _run(self, path: str, fetch: Fetch, *arguments: object) -> Any:
        weights = self._weights(path, fetch, self.numerics.linear)
        return run(self._network.get_submodule(path), weights, arguments, _WHAT)

    def _embedded(self, fetch: Fetch, latents: Tensor, context: Tensor) -> Tensor:
        """Returns text and patches with their positions.  # (B, text + N, d)"""
        dtype, module = self.numerics.patch, self._patches
        weights = self._weights("patch_embed", fetch, dtype)
        check(module, weights, _WHAT)
        frames, height, width = latents.shape[2:]
        if self._learned:
            module.sample_frames = (frames - 1) * module.temporal_compression_ratio + 1
            module.sample_height, module.sample_width = height, width
            table = weights["pos_embedding"]
            weights["pos_embedding"] = self._cropped(table, context.shape[1], (frames, height, width))
        arguments = (context.to(dtype), latents.to(dtype).transpose(1, 2))
        embedded: Tensor = functional_call(module, weights, arguments)
        return embedded

    def _cropped(self, table: Tensor, text: int, size: tuple[int, int, int]) -> Tensor:
        """Returns the trained positions of the first frames, rows and columns.  # (1, text + N, d)"""
        frames, rows, columns = (one // part for one, part in zip(size, self._patch, strict=True))
        whole = [one // part for one, part in zip(self._trained, self._patch, strict=True)]
        grid = table[:, text:].view(1, *whole, -1)[:, :frames, :rows, :columns]
        return torch.cat((table[:, :text], grid.flatten(1, 3)), dim=1)

    def _rotation(self, size: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Returns the rotations of q and k, computed as in the pipelines."""
        with quiet():
            from diffusers.models.embeddings import get_3d_rotary_pos_embed
            from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
        config = self._network.config
        if not config.use_rotary_positional_embeddings:
            return None
        frames, rows, columns = (-(-one // part) for one, part in zip(size, self._patch, strict=True))
        trained = config.sample_height // config.patch_size, config.sample_width // config.patch_size
        how: dict[str, Any] = (
            {"crops_coords": get_resize_crop_region_for_grid((rows, columns), trained[1], trained[0])}
            if config.patch_size_t is None
            else {"crops_coords": None, "grid_type": "slice", "max_size": trained}
        )
        rotary: tuple[Tensor, Tensor] = get_3d_rotary_pos_embed(
            config.attention_head_dim, grid_size=(rows, columns), temporal_size=frames, device=device, **how
        )
        return rotary


def trained_size(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the latents' (F, H, W) that a network was trained for, as its config.json says."""
    ratio = config.get("temporal_compression_ratio", 4)
    return (config["sample_frames"] - 1) // ratio + 1, config["sample_height"], config["sample_width"]


def _root(canonical: str) -> str:
    """Returns the prefix by which a tensor is fetched: its block, a part of the head, or its first word."""
    words = canonical.split(".")
    return ".".join(words[: 2 if words[0] in ("blocks", "head") else 1])
