"""The layout of the official Wan repositories."""

from wanconv.layouts.sizes import channels, heads, vace_layers
from wanconv.layouts.types import Layout, Override, Place
from wanconv.models import DENOISERS
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX
from wanconv.types.documents import JsonMapping
from wanconv.types.model import Model

_CLASSES = {"wan-vace": "VaceWanModel", "wan-animate": "WanAnimateModel"}


def _documents(model: Model) -> dict[str, JsonMapping]:
    documents: dict[str, JsonMapping] = {}
    for name in DENOISERS:
        component = model.components.get(name)
        if component is None or component.architecture.name == "wan-s2v":  # S2V's settings are not in its shapes
            continue
        dims, (channels_in, channels_out) = component.dims, channels(component)
        network = component.architecture.name
        documents[OFFICIAL.places[name].prefix + "config.json"] = {
            "_class_name": _CLASSES.get(network, "WanModel"),
            "_diffusers_version": "0.33.0",
            "dim": dims["d"],
            "eps": 1e-06,
            "ffn_dim": dims["ffn"],
            "freq_dim": dims["freq"],
            "in_dim": channels_in,
            **({} if network == "wan-animate" else {"model_type": model.family.model_type}),
            "num_heads": heads(model, component),
            "num_layers": dims["n"],
            "out_dim": channels_out,
            "text_len": 512,
            **({"vace_layers": vace_layers(component), "vace_in_dim": 96} if network == "wan-vace" else {}),
        }
    return documents


_NO_COGVIDEOX = "its own code reads training checkpoints, which wanconv reads and does not write"

OFFICIAL = Layout(
    name="official",
    summary="the official Wan code",
    scheme="official",
    # of VACE-Fun, the official code is aigc-apps/VideoX-Fun: config/wan2.2/wan_civitai_t2v.yaml names the same files
    loader="Wan-Video/Wan2.2 wan/text2video.py, wan/modules/{model,t5,vae2_1,vae2_2}.py",
    places={
        "dit": Place("", "diffusion_pytorch_model"),
        "expert.high": Place("high_noise_model", "diffusion_pytorch_model"),
        "expert.low": Place("low_noise_model", "diffusion_pytorch_model"),
        "text_encoder": Place("", "models_t5_umt5-xxl-enc-bf16", "pth"),
        "vae:wan-vae-2.1": Place("", "Wan2.1_VAE", "pth"),
        "vae:wan-vae-2.2": Place("", "Wan2.2_VAE", "pth"),
        "image_encoder": Place("", "models_clip_open-clip-xlm-roberta-large-vit-huge-14", "pth"),
        "audio_encoder": Place("wav2vec2-large-xlsr-53-english", "model"),
    },
    folders={
        "tokenizer": "google/umt5-xxl",
        "t5_tokenizer": "t5-v1_1-xxl",  # of CogVideoX
        "clip_tokenizer": "xlm-roberta-large",
        "audio_processor": "wav2vec2-large-xlsr-53-english",
    },
    documents=_documents,
    derived=("config.json", "high_noise_model/config.json", "low_noise_model/config.json", "transformer/latest"),
    shard_nbytes=10_000_000_000,
    overrides=(
        Override(
            "vae/**",
            ("fp32",),
            "fp32",
            "the official code runs the VAE in its file's dtype under fp32 inputs: a narrower file stops it",
        ),
    ),
    coarse={
        "fp8_e4m3fn": "the official code widens fp8 to fp32 on load: it saves disk, not memory",
        "fp8_e5m2": "the official code widens fp8 to fp32 on load: it saves disk, not memory",
    },
    refused=dict.fromkeys(COGVIDEOX, _NO_COGVIDEOX),
    marks=("official",),
    unscaled="it would ignore the scales, and take the stored numbers for the weights without an error",
)
