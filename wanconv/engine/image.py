"""Images to tokens: CLIP's vision tower (ViT-H/14) with one block in memory at a time.

The encoder is transformers' own, built on the meta device; each block gets its weights just before it runs and loses
them after. Wan 2.1 I2V and FLF2V use the input of the last block: 257 tokens per image, one for the whole and one for
each patch of 14 x 14 pixels. The last block, the norm after it and the projection are never run.

As in the official code, an image of any proportions is resized to 224 x 224 pixels, bicubically and without
antialiasing. Clients that use transformers' own processor antialias it and crop the middle.

Definitions: Wan-Video/Wan2.1 wan/modules/clip.py; huggingface/transformers models/clip/modeling_clip.py.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanconv.engine.libraries import assigned, quiet
from wanconv.engine.weights import WeightSource

SIDE = 224
TOKENS = 257
_COMPONENT = "image_encoder"
_PREFIX = "vision_model"  # prefix of the hub's names; transformers' class no longer has it
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def prepared(image: Tensor) -> Tensor:
    """Returns CLIP's input for images in -1 … 1.  # (B, 3, H, W) -> (B, 3, 224, 224), float32"""
    resized = F.interpolate(image.float(), (SIDE, SIDE), mode="bicubic", align_corners=False)
    mean, deviation = (image.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))
    return (resized * 0.5 + 0.5 - mean) / deviation


def synthetic_tokens(width: int, images: int, seed: int) -> tuple[Tensor, str]:
    """Returns made-up tokens (1, 257 · images, width), float32, for a model without CLIP, and a note about it."""
    generator = torch.Generator().manual_seed(seed)
    note = f"synthetic image tokens instead of CLIP's: normal numbers (seed {seed})"
    return torch.randn(1, TOKENS * images, width, generator=generator), note


class ImageEncoder:
    """CLIP's vision tower on streamed weights.

    `names`: canonical name -> transformers' name, of every tensor (the table's hub column). `module` is for a recorder
    to watch; its parameters are loaded and dropped.
    """

    def __init__(
        self,
        source: WeightSource,
        names: Mapping[str, str],
        config: Mapping[str, object],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._source, self._names, self._dtype = source, names, dtype
        with quiet(), torch.device("meta"):
            from transformers import CLIPVisionConfig, CLIPVisionModel

            clip: Any = CLIPVisionModel(CLIPVisionConfig(**dict(config)))
        self._clip = clip.eval().requires_grad_(False)
        self.module: nn.Module = nn.ModuleDict({_PREFIX: self._clip})

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Returns the tokens (B, 257, d), in the encoder's dtype, of prepared images (B, 3, 224, 224)."""
        embeddings, blocks = self._clip.embeddings, self._clip.encoder.layers
        # not persistent, so files do not have it
        embeddings.position_ids = torch.arange(TOKENS, device=pixels.device).unsqueeze(0)
        roots = ("class_embedding", "position_embedding.weight", "patch_embedding")
        with self._held(embeddings, "embeddings.", *(f"visual.{root}" for root in roots)):
            hidden: Tensor = embeddings(pixels.to(self._dtype))
        with self._held(self._clip.pre_layrnorm, "pre_layrnorm.", "visual.norm_in"):  # sic
            hidden = self._clip.pre_layrnorm(hidden)
        for number, block in enumerate(blocks[:-1]):
            with self._held(block, f"encoder.layers.{number}.", f"visual.blocks.{number}"):
                hidden = block(hidden, attention_mask=None)
        return hidden

    def _held(self, module: nn.Module, theirs: str, *prefixes: str) -> AbstractContextManager[nn.Module]:
        """Lets a part of the tower, at the path `theirs`, hold the weights below canonical prefixes within the
        block."""
        weights = {
            self._names[name].removeprefix(f"{_PREFIX}.{theirs}"): tensor.to(self._dtype)
            for prefix in prefixes
            for name, tensor in self._source.tensors(_COMPONENT, prefix).items()
        }
        return assigned(module, weights, "image encoder")
