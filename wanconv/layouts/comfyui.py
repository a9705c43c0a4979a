"""The layouts of ComfyUI: one file per component, below the folders of its `models`. Its native files say for each
layer how it is quantized; the older ones are marked as a whole, by a tensor scaled_fp8."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wanconv.layouts.types import Layout, Marker, Place, Stored, plain_metadata
from wanconv.models import DENOISERS, OWN_FAMILIES
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX
from wanconv.quantization.packings import TOKENIZER, leaf_of, of_client
from wanconv.types.documents import JsonMapping
from wanconv.types.model import Model


def _documents(model: Model) -> dict[str, JsonMapping]:
    return {}


def _metadata(component: str, tensors: Sequence[Stored]) -> Mapping[str, str]:
    """Returns the header's list of quantized layers, which agrees with the comfy_quant tensors."""
    layers = {
        leaf_of(tensor.name)[0]: json.loads(content)
        for tensor in tensors
        if tensor.packing is not None
        for _, content in tensor.packing.constants
    }
    said = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})} if layers else {}
    return {"format": "pt", **said}


COMFYUI = Layout(
    name="comfyui",
    summary="ComfyUI: one file per component, to be put below its models folder",
    scheme="official",
    # comfy/sd.py loads T5 and CLIP by the names that transformers gives them
    schemes={
        "text_encoder": "hub",
        "image_encoder": "hub",
        "vae:cogvideox-vae": "hub",
        **{f"dit:{family.components['dit'].name}": "comfyui" for family in OWN_FAMILIES if family.name in COGVIDEOX},
    },
    loader="Comfy-Org/ComfyUI comfy/model_detection.py, comfy/sd.py, comfy/ops.py, comfy/quant_ops.py",
    places={
        "dit": Place("diffusion_models", "{family}"),
        "expert.high": Place("diffusion_models", "{family}_high_noise"),
        "expert.low": Place("diffusion_models", "{family}_low_noise"),
        "text_encoder:umt5": Place("text_encoders", "umt5_xxl"),
        "text_encoder:t5-v1.1": Place("text_encoders", "t5xxl"),
        "vae:wan-vae-2.1": Place("vae", "wan_2.1_vae"),
        "vae:wan-vae-2.2": Place("vae", "wan2.2_vae"),
        "vae:cogvideox-vae": Place("vae", "cogvideox_vae"),
        "image_encoder": Place("clip_vision", "clip_vision_h"),
        "audio_encoder": Place("audio_encoders", "wav2vec2_large"),
    },
    folders={},
    documents=_documents,
    derived=(),
    shard_nbytes=None,
    coarse={
        "fp8_e4m3fn": "plain fp8 loses small weights, which the same size with scales (fp8-scaled) keeps",
        "fp8_e5m2": "plain fp8 loses small weights, which the same size with scales (fp8-scaled) keeps",
    },
    packings=of_client("comfyui"),
    # comfy/sd1_clip.py runs text encoders on the same operations as denoisers
    scaled=(*DENOISERS, "text_encoder"),
    unscaled="its kernels take one scale for an fp8 weight, one or one per row for int8, and those of mxfp8 and nvfp4",
    metadata=_metadata,
    restated=("_quantization_metadata",),
    numerics="comfyui-fp16",  # comfy/supported_models.py prefers fp16 for Wan
    marks=("header",),  # comfy/model_detection.py; what read them first is in models/marks.py
    attached={"text_encoder:umt5": (TOKENIZER, "spiece.model")},  # comfy/text_encoders/wan.py needs it
)

# Two elements mean: multiply in full precision, as there is no calibrated input scale (comfy/model_detection.py). Text
# encoders always do, and an older one has a parameter of this name without elements (comfy/sd1_clip.py).
_MARKED = Marker(
    name="scaled_fp8",
    dtype="fp8_e4m3fn",
    shapes={**dict.fromkeys(DENOISERS, (2,)), "text_encoder": (0,)},
)

COMFYUI_LEGACY: Layout = replace(
    COMFYUI,
    name="comfyui-legacy",
    summary="ComfyUI's older files: the same, but for the names of scales and a marker, scaled_fp8",
    loader="Comfy-Org/ComfyUI 0.3.64 comfy/ops.py (scaled_fp8_ops), comfy/utils.py (convert_old_quants)",
    packings=of_client("comfyui-legacy"),
    unscaled="to ComfyUI every weight of a file marked scaled_fp8 is fp8_e4m3fn with one scale",
    metadata=plain_metadata,
    restated=(),
    marker=_MARKED,
    refused=dict.fromkeys(COGVIDEOX, "ComfyUI of that age had no CogVideoX"),
    caution="ComfyUI before December 2025 casts every tensor without a scale in this file's linear layers, biases "
    "included, to plain fp8",
)
