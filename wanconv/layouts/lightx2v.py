"""The layout of LightX2V: official names and folders, scales of rows, and the settings that load them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wanconv.layouts.official import OFFICIAL
from wanconv.layouts.types import Layout, Stored, Together
from wanconv.models import DENOISERS
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX
from wanconv.quantization.packings import of_client
from wanconv.types.documents import JsonMapping
from wanconv.types.model import Model

# One of the kernels that read this file; others of the same number format do, too (fp8-vllm, int8-torchao …).
_SCHEMES = {"fp8_e4m3fn": "fp8-sgl", "int8": "int8-sgl"}
_CHECKPOINTS = {
    "dit": "dit_quantized_ckpt",
    "expert.high": "high_noise_quantized_ckpt",
    "expert.low": "low_noise_quantized_ckpt",
}


def _settings(model: Model, tensors: Mapping[str, Sequence[Stored]]) -> Mapping[str, JsonMapping]:
    """Returns lightx2v.json, the file for --config_json: with `*_original_ckpt` the scales would be ignored.

    Its paths are relative to this folder.
    """
    denoisers = [name for name in DENOISERS if name in tensors]
    if not denoisers:
        return {}
    formats = {tensor.packing.format for name in denoisers for tensor in tensors[name] if tensor.packing}
    quantized: JsonMapping = {}
    if formats:
        (only,) = formats  # ensured by `together`
        folders = {_CHECKPOINTS[name]: OFFICIAL.places[name].folder or "." for name in denoisers}
        quantized = {"dit_quantized": True, "dit_quant_scheme": _SCHEMES[only], **folders}
    boundary = {} if model.family.boundary is None else {"boundary": model.family.boundary}
    return {"lightx2v.json": {"sample_shift": model.family.shift, **boundary, **quantized}}


LIGHTX2V: Layout = replace(
    OFFICIAL,
    name="lightx2v",
    summary="LightX2V: official names and folders, scales of rows, ready settings in lightx2v.json",
    loader="ModelTC/LightX2V tools/convert/quant/quant.py, lightx2v/common/ops/mm/mm_weight.py",
    derived=(*OFFICIAL.derived, "lightx2v.json"),
    coarse=None,
    refused=dict.fromkeys(COGVIDEOX, "LightX2V reads Wan's official names, and has no converter for CogVideoX"),
    unread={
        "fp8_e4m3fn": "every fp8 weight that LightX2V reads has scales: use fp8-scaled",
        "fp8_e5m2": "LightX2V reads no fp8_e5m2",
    },
    packings=of_client("lightx2v"),
    unscaled="its kernels take one scale for each row of fp8_e4m3fn and int8, and wanconv writes no blocks for them",
    together=Together(
        lead="{dit,expert.*}/blocks.**",
        follow="{dit,expert.*}/{audio_injector,vace_blocks,face_adapter}.**",
        reason="LightX2V reads all block weights, and those of S2V's audio injector, VACE's blocks and Animate's face "
        "adapter, by one scheme, and no others with scales",
    ),
    settings=_settings,
    marks=(),
)
