"""The layout of diffusers pipelines: one folder per component, model_index.json above them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wanconv.layouts import diffusers_cogvideox as cogvideox
from wanconv.layouts.dtypes import loading_dtype
from wanconv.layouts.sizes import channels, heads, vace_layers
from wanconv.layouts.types import Layout, Override, Place, Stored, no_additions, plain_metadata
from wanconv.models import DENOISERS
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX
from wanconv.quantization.packings import leaf_of, of_client
from wanconv.types.documents import JsonMapping
from wanconv.types.model import Component, Model

_VERSION = "0.35.0"  # the first release whose WanPipeline knows boundary_ratio

# Latent statistics of the Wan 2.2 VAE, per channel: Wan-Video/Wan2.2 wan/modules/vae2_2.py. Those of 2.1 are the
# defaults of diffusers' AutoencoderKLWan.
# fmt: off
_VAE22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
_VAE22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on

_TRANSFORMERS = {"wan-vace": "WanVACETransformer3DModel", "wan-animate": "WanAnimateTransformer3DModel"}
_PIPELINES = {  # by model type
    "i2v": "WanImageToVideoPipeline",
    "flf2v": "WanImageToVideoPipeline",
    "vace": "WanVACEPipeline",
    "animate": "WanAnimatePipeline",
}
_LIBRARIES = {
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "transformer_2": ("diffusers", "WanTransformer3DModel"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "T5TokenizerFast"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "scheduler": ("diffusers", "UniPCMultistepScheduler"),
    "image_encoder": ("transformers", "CLIPVisionModel"),
    "image_processor": ("transformers", "CLIPImageProcessor"),
}


def _transformer(model: Model, component: Component) -> JsonMapping:
    if model.family.name in COGVIDEOX:
        return cogvideox.transformer(model, component)
    dims, count, (channels_in, channels_out) = component.dims, heads(model, component), channels(component)
    network = component.architecture.name
    further: JsonMapping = {}
    if network == "wan-vace":
        further = {"vace_layers": vace_layers(component), "vace_in_channels": 96}
    elif network == "wan-animate":
        further = _animate(component)
    return {
        "_class_name": _TRANSFORMERS.get(network, "WanTransformer3DModel"),
        "_diffusers_version": _VERSION,
        "added_kv_proj_dim": dims["d"] if "image" in dims else None,
        "attention_head_dim": dims["d"] // count,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "ffn_dim": dims["ffn"],
        "freq_dim": dims["freq"],
        "image_dim": dims.get("image"),
        "in_channels": channels_in,
        "num_attention_heads": count,
        "num_layers": dims["n"],
        "out_channels": channels_out,
        "patch_size": [1, 2, 2],
        "pos_embed_seq_len": 514 if component.architecture.name == "wan-flf2v" else None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": dims["text"],
        **further,
    }


def _animate(component: Component) -> JsonMapping:
    dims, base = component.dims, component.dims["c"]
    sizes = {str(size): min(16, 512 // size) * base for size in (4, 8, 16, 32, 64, 128, 256, 512)}
    return {
        "latent_channels": 16,
        "motion_encoder_channel_sizes": None if base == 32 else sizes,
        "motion_encoder_size": 512,
        "motion_style_dim": dims["style"],
        "motion_dim": dims["motion"],
        "motion_encoder_dim": dims["style"],
        "face_encoder_hidden_dim": dims["face"],
        "face_encoder_num_heads": 4,
        "inject_face_latents_blocks": dims["n"] // dims["m"],
    }


def _vae(model: Model, component: Component) -> JsonMapping:
    if component.architecture.name == "cogvideox-vae":
        return cogvideox.vae(model, component)
    if component.architecture.name == "wan-vae-2.1":
        return {"_class_name": "AutoencoderKLWan", "_diffusers_version": _VERSION, "base_dim": component.dims["c"]}
    return {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": _VERSION,
        "base_dim": component.dims["c"],
        "decoder_base_dim": component.dims["g"],
        "z_dim": 48,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "is_residual": True,
        "temperal_downsample": [False, True, True],  # sic
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
        "latents_mean": list(_VAE22_MEAN),
        "latents_std": list(_VAE22_STD),
    }


def _text_encoder(component: Component) -> JsonMapping:
    dims = component.dims
    name, kind = ("UMT5EncoderModel", "umt5") if component.architecture.name == "umt5" else ("T5EncoderModel", "t5")
    return {
        "architectures": [name],
        "model_type": kind,
        "d_model": dims["d"],
        "d_kv": dims["attn"] // dims["heads"],
        "d_ff": dims["ffn"],
        "num_heads": dims["heads"],
        "num_layers": dims["n"],
        "vocab_size": dims["vocab"],
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-06,
        "dropout_rate": 0.1,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": _dtype(component),
    }


def _image_encoder(component: Component) -> JsonMapping:
    dims = component.dims
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": dims["d"],
        "intermediate_size": dims["ffn"],
        "num_hidden_layers": dims["n"],
        "num_attention_heads": dims.get("heads", 16),  # for ViT-H/14; the official file does not say it
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "projection_dim": dims.get("joint", 1024),
        "torch_dtype": _dtype(component),
    }


def _dtype(component: Component) -> str:
    return loading_dtype({tensor.dtype for tensor in component.tensors.values()})


def _scheduler(model: Model) -> JsonMapping:
    if model.family.name in COGVIDEOX:
        return cogvideox.scheduler(model)
    return {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": model.family.shift,
        "solver_order": 2,
        "solver_type": "bh2",
    }


# CLIP's own statistics: transformers' CLIPImageProcessor defaults, written out so that the folder is complete.
_IMAGE_PROCESSOR: JsonMapping = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}


def _documents(model: Model) -> dict[str, JsonMapping]:
    documents: dict[str, JsonMapping] = {}
    for name, component in model.components.items():
        config = {
            "dit": lambda one: _transformer(model, one),
            "expert.high": lambda one: _transformer(model, one),
            "expert.low": lambda one: _transformer(model, one),
            "text_encoder": _text_encoder,
            "vae": lambda one: _vae(model, one),
            "image_encoder": _image_encoder,
        }[name](component)
        documents[DIFFUSERS.places[name].prefix + "config.json"] = config
    if not any(name in DENOISERS for name in model.components):  # nothing shows which pipeline the others are of
        return documents
    documents["scheduler/scheduler_config.json"] = _scheduler(model)
    if "image_encoder" in model.components:
        documents["image_processor/preprocessor_config.json"] = _IMAGE_PROCESSOR
    documents["model_index.json"] = _model_index(model, {path.split("/")[0] for path in documents})
    return documents


def _model_index(model: Model, folders: set[str]) -> JsonMapping:
    """Names every component of the pipeline; one that the source lacks is null, and is to be passed to
    from_pretrained."""
    if any(path.startswith(f"{folder}/") for folder in _TOKENIZERS for path in model.checkpoint.sidecars):
        folders = folders | {"tokenizer"}
    if model.family.name in COGVIDEOX:
        pipeline = cogvideox.PIPELINES[model.family.model_type]
        return _pipeline(pipeline, {name: cogvideox.CLASSES[name] for name in sorted(cogvideox.CLASSES)}, folders)
    task = model.family.model_type
    wanted = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]
    wanted += [] if task == "animate" else ["transformer_2"]
    wanted += ["image_encoder", "image_processor"] if task in ("i2v", "flf2v", "animate") else []
    libraries = {name: _LIBRARIES[name] for name in sorted(wanted)}
    network = next(one.name for name, one in model.family.components.items() if name in DENOISERS)
    own = ("diffusers", _TRANSFORMERS.get(network, "WanTransformer3DModel"))
    libraries |= {name: own for name in libraries if name in ("transformer", "transformer_2")}
    index = _pipeline(_PIPELINES.get(task, "WanPipeline"), libraries, folders)
    boundary = {} if task == "animate" else {"boundary_ratio": model.family.boundary}
    expand = {} if task in ("animate", "vace") else {"expand_timesteps": task == "ti2v"}
    return {**index, **boundary, **expand}


def _pipeline(name: str, libraries: Mapping[str, tuple[str, str]], folders: set[str]) -> JsonMapping:
    wanted = {part: list(library) if part in folders else [None, None] for part, library in libraries.items()}
    return {"_class_name": name, "_diffusers_version": _VERSION, **wanted}


_TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def _metadata(component: str, tensors: Sequence[Stored]) -> Mapping[str, str]:
    """Returns torchao's description of its tensors, one for each name, from which diffusers rebuilds them."""
    if not any(tensor.packing for tensor in tensors):
        return {"format": "pt"}
    dtype = {"_type": "torch.dtype", "_data": _compute_dtype(tensors)}
    described = {tensor.name: json.dumps(_torchao(tensor, dtype)) for tensor in tensors}
    return {"format": "pt", "tensor_names": json.dumps([tensor.name for tensor in tensors]), **described}


def _torchao(tensor: Stored, dtype: JsonMapping) -> JsonMapping:
    """Returns torchao's attributes of one tensor: torchao 0.18 prototype/safetensors/safetensors_utils.py."""
    if tensor.packing is None:
        return {"_type": "Tensor"}
    block, names = [1, tensor.shape[1]], ["qdata", "scale"]
    if tensor.packing.format == "int8":
        data = {"act_quant_kwargs": None, "reduce_range": False, "block_size": block, "dtype": dtype}
        return {"_type": "Int8Tensor", "_data": data, "_tensor_data_names": names}
    kernel = {"_type": "KernelPreference", "_data": "AUTO"}
    data = {"block_size": block, "mm_config": None, "act_quant_kwargs": None, "kernel_preference": kernel}
    return {"_type": "Float8Tensor", "_data": {**data, "dtype": dtype}, "_tensor_data_names": names}


def _compute_dtype(tensors: Sequence[Stored]) -> str:
    """Returns the dtype that most plain tensors have: a linear layer's weight must decode to its bias's."""
    counts = Counter(tensor.dtype for tensor in tensors if tensor.packing is None and tensor.dtype in _TORCH_DTYPES)
    return _TORCH_DTYPES[max(sorted(counts), key=lambda dtype: counts[dtype])] if counts else "bfloat16"


def _config(tensors: Sequence[Stored]) -> JsonMapping:
    """Returns quantization_config: one default, that of most tensors; diffusers rebuilds each from the header."""
    formats = Counter(tensor.packing.format for tensor in tensors if tensor.packing)
    if not formats:
        return {}
    granularity = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
    most = max(sorted(formats), key=lambda name: formats[name])
    if most == "int8":
        name, data = "Int8WeightOnlyConfig", {"granularity": granularity, "group_size": None}
    else:
        name, data = "Float8WeightOnlyConfig", {"granularity": granularity}
        data["weight_dtype"] = {"_type": "torch.dtype", "_data": "float8_e4m3fn"}
    default = {"_type": name, "_version": 2, "_data": {**data, "set_inductor_config": True}}
    skipped = sorted({_module(tensor.name) for tensor in tensors if not tensor.packing and len(tensor.shape) > 1})
    return {
        "quantization_config": {
            "quant_method": "torchao",
            "modules_to_not_convert": skipped,
            "quant_type": {"default": default},
        }
    }


def _module(name: str) -> str:
    return leaf_of(name)[0] or name


_TOKENIZERS = ("tokenizer", "google/umt5-xxl", "t5-v1_1-xxl")  # its path in a source of either layout

_KEPT_FP32 = "diffusers computes it in fp32 and would widen a narrower file: the source's precision is kept for it"

_NO_S2V = {"wan2.2-s2v-14b": "diffusers has no model or pipeline for the audio-driven Wan 2.2 S2V"}

DIFFUSERS = Layout(
    name="diffusers",
    summary="diffusers pipelines: from_pretrained on the folder",
    scheme="hub",
    loader="diffusers 0.42.1 pipelines/wan/pipeline_wan.py, models/transformers/transformer_wan.py",
    places={
        "dit": Place("transformer", "diffusion_pytorch_model"),
        "expert.high": Place("transformer", "diffusion_pytorch_model"),
        "expert.low": Place("transformer_2", "diffusion_pytorch_model"),
        "text_encoder": Place("text_encoder", "model"),
        "vae": Place("vae", "diffusion_pytorch_model"),
        "image_encoder": Place("image_encoder", "model"),
    },
    folders={"tokenizer": "tokenizer", "t5_tokenizer": "tokenizer"},
    documents=_documents,
    derived=("model_index.json", "*/config.json", "scheduler/*", "image_processor/*"),
    shard_nbytes=5_000_000_000,
    # transformer_wan.py: _keep_in_fp32_modules = rope, time_embedder, scale_shift_table, norm1, norm2, norm3;
    # transformer_wan_animate.py: motion_synthesis_weight, too
    overrides=tuple(
        Override(f"{{dit,expert.*}}/{match}", ("fp32",), "fp32", _KEPT_FP32, unless_exact=True, families="wan2.*")
        for match in (
            "time_embedding.**",
            "**.modulation",
            "blocks.*.cross_attn.norm_in.*",
            "image_embedding.norm_*.*",
            "vace_blocks.*.cross_attn.norm_in.*",
            "motion_encoder.directions",
        )
    ),
    coarse={
        "fp8_e4m3fn": "diffusers widens plain fp8 to the compute dtype on load: it saves disk, not memory",
        "fp8_e5m2": "diffusers widens plain fp8 to the compute dtype on load: it saves disk, not memory",
    },
    numerics="diffusers",
    since="diffusers 0.35",  # _VERSION
    packings=of_client("diffusers"),
    unscaled="of torchao's tensors, wanconv writes those with one scale for each row of fp8_e4m3fn and int8",
    metadata=_metadata,
    config=_config,
    refused=_NO_S2V,
    marks=("hub",),
)

DIFFUSERS_SINGLE: Layout = replace(
    DIFFUSERS,
    name="diffusers-single",
    summary="diffusers' from_single_file: each denoiser one file of official names, next to the folders of a pipeline",
    schemes=dict.fromkeys(DENOISERS, "official"),
    loader="diffusers 0.42.1 loaders/single_file_utils.py, quantizers/bfl/bfl_quantizer.py",
    places={
        **DIFFUSERS.places,
        "dit": Place("", "{family}"),
        "expert.high": Place("", "{family}_high_noise"),
        "expert.low": Place("", "{family}_low_noise"),
    },
    shard_nbytes=None,
    since="",
    packings=of_client("diffusers-single"),
    unscaled="BFLQuantizationConfig reads fp8_e4m3fn with one scale for each row, and nvfp4 with calibrated inputs",
    caution="load it with quantization_config=BFLQuantizationConfig(): without, diffusers takes the stored numbers for "
    "the weights, and says so in a warning only",
    metadata=plain_metadata,
    config=no_additions,
    marks=(),
    refused={
        **_NO_S2V,
        **dict.fromkeys(COGVIDEOX, "diffusers loads no CogVideoX from single files"),
        "wan2.1-flf2v": "diffusers has no name in single files for the positions of FLF2V's image embedding",
    },
)
