"""The layout of ComfyUI with ComfyUI-GGUF: denoisers in GGUF, everything else as ComfyUI reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import get_args

from wanconv.layouts.comfyui import COMFYUI
from wanconv.layouts.types import Layout, Override, Stored
from wanconv.models import DENOISERS
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX
from wanconv.types.architecture import Kind
from wanconv.types.dtypes import DTYPES

# What most matrices are, in the order of the numbers, of which the first wins a tie.
_FILE_TYPES = dict(sorted(((each.name, each.gguf[1]) for each in DTYPES.values() if each.gguf), key=itemgetter(1)))
_QUANTIZATION_VERSION = "2"  # gguf-py GGML_QUANT_VERSION
_NOT_LINEAR: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "linear")


def _metadata(component: str, tensors: Sequence[Stored]) -> Mapping[str, str]:
    """Returns the key that ComfyUI-GGUF needs, the architecture, and those that GGUF's own tools need."""
    if component not in DENOISERS:
        return COMFYUI.metadata(component, tensors)
    counts = dict.fromkeys(_FILE_TYPES, 0)
    for tensor in tensors:
        if len(tensor.shape) == 2 and tensor.dtype in counts:
            counts[tensor.dtype] += 1
    return {
        "general.architecture": "wan",
        "general.file_type": str(_FILE_TYPES[max(counts, key=lambda dtype: counts[dtype])]),
        "general.quantization_version": _QUANTIZATION_VERSION,
    }


GGUF: Layout = replace(
    COMFYUI,
    name="gguf",
    summary="ComfyUI with ComfyUI-GGUF: denoisers in GGUF, the rest as ComfyUI reads it",
    loader="city96/ComfyUI-GGUF loader.py, dequant.py, ops.py; tools/convert.py for what stays F32",
    places={
        name: replace(place, container="gguf") if name in DENOISERS else place for name, place in COMFYUI.places.items()
    },
    coarse=None,
    refused=dict.fromkeys(COGVIDEOX, "its list of architectures knows no CogVideoX"),
    overrides=(
        Override(
            "{dit,expert.*}/**",
            ("fp32", "fp16"),
            "fp32",
            "ComfyUI-GGUF decodes other types in linear layers only",
            kinds=_NOT_LINEAR,
            kept=True,
        ),
    ),
    scaled=("text_encoder",),
    metadata=_metadata,
)
