"""Which precision a run imitates, as a value: where each client rounds, and where it keeps float32.

A checkpoint says how weights are stored, not how a runtime computes with them. Three runtimes compute Wan three ways:

`official` runs linears, attention and the patch embedding in bf16 and everything between them in float32: the residual
stream, the time embedding, modulation, norms and the head (Wan-Video/Wan2.2 wan/modules/model.py: autocast in
text2video.py around the loop, float32 autocast inside). `diffusers` stores the residual stream in the compute dtype and
widens it for each norm, modulation and gate; its time projection and head run in the compute dtype
(models/transformers/transformer_wan.py, `_keep_in_fp32_modules`). `comfyui-fp16` keeps nothing but the patch embedding
in float32 (comfy/ldm/wan/model.py); no clamp anywhere. `fp16` stands for runtimes that widen nothing, not even inside
the RMS norms: the strictest reading of "runs in fp16".

Layer norms take their statistics in float32 in every runtime known. Matrix products accumulate in float32 here, as on
tensor cores; kernels that accumulate in fp16 are what `ranges.accumulator_overflow` is for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Numerics:
    """The dtype of everything in which the runtimes differ.

    linear      the blocks' projections with their weights, attention, text embedding
    patch       the patch embedding
    residual    the stream between the operations
    modulation  layer norms, their scale and shift, gates
    time        the two linears on the timestep's sinusoid
    condition   their result, and the projection that makes modulations of it
    qk_norm     what the RMS norms of q and k return
    rms         the squares inside of them
    angles      rotations by position, and the timestep's sinusoid
    head        the last projection
    """

    name: str
    linear: torch.dtype
    patch: torch.dtype
    residual: torch.dtype
    modulation: torch.dtype
    time: torch.dtype
    condition: torch.dtype
    qk_norm: torch.dtype
    rms: torch.dtype
    angles: torch.dtype
    head: torch.dtype


_64, _32, _BF, _16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# fmt: off
_OFFICIAL = (
    #         name              linear  patch  residual  modulation  time  condition  qk_norm  rms  angles  head
    Numerics("official",        _BF,    _BF,   _32,      _32,        _32,  _32,       _32,     _32, _64,    _32),
    Numerics("diffusers",       _BF,    _BF,   _BF,      _32,        _32,  _BF,       _BF,     _32, _32,    _BF),
    Numerics("comfyui-fp16",    _16,    _32,   _16,      _16,        _16,  _16,       _16,     _32, _32,    _16),
    Numerics("fp16",            _16,    _16,   _16,      _16,        _16,  _16,       _16,     _16, _32,    _16),
    Numerics("fp32",            _32,    _32,   _32,      _32,        _32,  _32,       _32,     _32, _64,    _32),
)
# fmt: on


def _in_fp16(numerics: Numerics) -> Numerics:
    """Returns the same policy with fp16 wherever it had bf16."""
    dtypes = {name: getattr(numerics, name) for name in Numerics.__slots__ if name != "name"}
    return replace(
        numerics,
        name=f"{numerics.name}-fp16",
        **{name: _16 if dtype == _BF else dtype for name, dtype in dtypes.items()},
    )


PRESETS: Mapping[str, Numerics] = {numerics.name: numerics for numerics in (*_OFFICIAL, *map(_in_fp16, _OFFICIAL[:2]))}
FP32 = PRESETS["fp32"]
