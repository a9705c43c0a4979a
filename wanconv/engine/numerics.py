"""The precision that a run imitates, as a value: where each client rounds, and where it keeps float32.

A checkpoint says how weights are stored, not how a runtime computes with them. Three runtimes compute Wan three ways:

`official` runs linears, attention and the patch embedding in bf16 and everything between them in float32: the residual
stream, the time embedding, modulation, norms and the head (Wan-Video/Wan2.2 wan/modules/model.py: autocast in
text2video.py around the loop, float32 autocast inside). `diffusers` stores the residual stream in the compute dtype and
widens it for each norm, modulation and gate; its time projection and head run in the compute dtype
(models/transformers/transformer_wan.py, `_keep_in_fp32_modules`). `comfyui-fp16` keeps only the patch embedding
in float32 (comfy/ldm/wan/model.py); no clamp anywhere. `fp16` stands for runtimes that widen nothing, not even inside
the RMS norms: the strictest reading of "runs in fp16".

Layer norms compute their statistics in float32 in every known runtime. Matrix products accumulate in float32 here, as
on tensor cores; kernels that accumulate in fp16 are what `ranges.accumulator` is for.

On a CPU, torch's fp16 matrix products run at a tenth of float32's speed, so `Imitation` computes them in float32 and
rounds their result: exact products, float32 sums, one rounding, as a tensor core does. Everything else runs in torch's
own fp16 kernels, which compute in float32 and round to nearest even after every operation: |x| >= 65520 becomes
infinity, subnormals stay. Tensors are real fp16 throughout, so that promotion, islands of float32 and the behaviour of
libraries' modules are the same as on a GPU, where nothing is imitated. bf16 is native on both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, slots=True)
class Numerics:
    """The dtype of each part in which the runtimes differ.

    linear      the blocks' projections with their weights, attention, text embedding
    patch       the patch embedding
    residual    the stream between the operations
    modulation  layer norms, their scale and shift, gates
    time        the two linears on the timestep's sinusoid
    condition   their result, and the projection that makes modulations of it
    qk_norm     the results of the RMS norms of q and k
    rms         the squares inside them
    angles      rotations by position, and the timestep's sinusoid
    head        the last projection
    text        the text encoder: ComfyUI computes it in float32 (comfy/text_encoders/t5.py)
    image       CLIP: fp16 officially (wan/configs/wan_i2v_14B.py); diffusers' examples load it in fp32, and ComfyUI
                computes in the dtype of the pixels (comfy/clip_vision.py)
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
    text: torch.dtype
    image: torch.dtype


_64, _32, _BF, _16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# fmt: off
_OFFICIAL = (
    #         name            linear patch residual modulation time condition qk_norm rms  angles head text image
    Numerics("official",     _BF,   _BF,  _32,     _32,       _32, _32,      _32,    _32, _64,   _32, _BF, _16),
    Numerics("diffusers",    _BF,   _BF,  _BF,     _32,       _32, _BF,      _BF,    _32, _32,   _BF, _BF, _32),
    Numerics("comfyui-fp16", _16,   _32,  _16,     _16,       _16, _16,      _16,    _32, _32,   _16, _32, _32),
    Numerics("fp16",         _16,   _16,  _16,     _16,       _16, _16,      _16,    _16, _32,   _16, _16, _16),
    Numerics("fp32",         _32,   _32,  _32,     _32,       _32, _32,      _32,    _32, _64,   _32, _32, _32),
)
# fmt: on


def _in_fp16(numerics: Numerics) -> Numerics:
    """Returns the same policy with fp16 wherever it had bf16, and for CLIP."""
    dtypes = {name: getattr(numerics, name) for name in Numerics.__slots__ if name != "name"} | {"image": _16}
    return replace(
        numerics,
        name=f"{numerics.name}-fp16",
        **{name: _16 if dtype == _BF else dtype for name, dtype in dtypes.items()},
    )


PRESETS: Mapping[str, Numerics] = {numerics.name: numerics for numerics in (*_OFFICIAL, *map(_in_fp16, _OFFICIAL[:2]))}
FP32 = PRESETS["fp32"]

# aten operations whose fp16 kernels are slow on CPUs; composite ones arrive whole in inference mode, else in parts
# fmt: off
_PRODUCTS = frozenset((
    "linear", "matmul", "einsum", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "dot", "convolution", "conv1d",
    "conv2d", "conv3d", "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
))
# fmt: on


class Imitation(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's modes are untyped
    """Within its block, CPU matrix products of fp16 tensors are computed in float32 and rounded to fp16.

    Covers functional operations and libraries' modules. A Recorder does the same by itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's guard would import the compiler, which takes two seconds

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns func(*args, **kwargs); a CPU's fp16 product is rounded once from float32."""
    if func.overloadpacket.__name__ not in _PRODUCTS or not in_fp16(args):
        return func(*args, **kwargs)
    result = widened(func, args, kwargs)
    return result.half() if isinstance(result, Tensor) else (result[0].half(), *result[1:])


def widened(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns func's result for the same values in float32."""
    return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})


def in_fp16(arg: object) -> bool:
    """True for an fp16 tensor on a CPU, and for a list that holds one."""
    if isinstance(arg, Tensor):
        return arg.dtype == torch.float16 and arg.device.type == "cpu"
    return isinstance(arg, list | tuple) and any(map(in_fp16, arg))


def _wide(arg: Any) -> Any:
    if isinstance(arg, list | tuple):
        return [_wide(each) for each in arg]
    return arg.float() if in_fp16(arg) else arg
