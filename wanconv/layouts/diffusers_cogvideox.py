"""The configs that diffusers reads for CogVideoX: denoiser, VAE, scheduler."""

from wanconv.errors import Refused
from wanconv.models import DENOISERS
from wanconv.models.cogvideox import SETTINGS, TEXT_TOKENS
from wanconv.types.documents import JsonMapping
from wanconv.types.model import Component, Model

_VERSION = "0.32.0"  # the first release whose CogVideoXTransformer3DModel knows 1.5

CLASSES = {
    "transformer": ("diffusers", "CogVideoXTransformer3DModel"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "T5Tokenizer"),
    "vae": ("diffusers", "AutoencoderKLCogVideoX"),
    "scheduler": ("diffusers", "CogVideoXDDIMScheduler"),
}
PIPELINES = {"t2v": "CogVideoXPipeline", "i2v": "CogVideoXImageToVideoPipeline"}


def transformer(model: Model, component: Component) -> JsonMapping:
    dims, settings = component.dims, SETTINGS[model.family.name]
    patches = component.tensors[f"{component.name}/patch_embedding.weight"].shape
    frames = None if len(patches) == 4 else 2
    sample = {key: dims.get(key, size) for key, size in settings.sample.items()}
    return {
        "_class_name": CLASSES["transformer"][1],
        "_diffusers_version": _VERSION,
        "attention_head_dim": dims["head"],
        "in_channels": patches[1] if frames is None else patches[1] // (4 * frames),
        "max_text_seq_length": TEXT_TOKENS,
        "num_attention_heads": dims["d"] // dims["head"],
        "num_layers": dims["n"],
        "ofs_embed_dim": dims.get("ofs"),
        "out_channels": 16,
        "patch_bias": frames is None,
        "patch_size": 2,
        "patch_size_t": frames,
        **sample,
        "text_embed_dim": dims["text"],
        "time_embed_dim": dims["time"],
        "use_learned_positional_embeddings": _learned(component, sample),
        "use_rotary_positional_embeddings": settings.rotary,
    }


def _learned(component: Component, sample: dict[str, int]) -> bool:
    """Returns whether positions are learned; raises Refused if they do not fit a clip of this size."""
    if component.architecture.name != "cogvideox-i2v":
        return False
    height, width = sample["sample_height"] // 2, sample["sample_width"] // 2
    expected = TEXT_TOKENS + height * width * ((sample["sample_frames"] - 1) // 4 + 1)
    positions = component.dims["positions"]
    if positions != expected:
        raise Refused(
            f"{component.part.path} has {positions} positions, and nothing says for which size of video",
            "put the checkpoint's config.json next to it",
        )
    return True


def vae(model: Model, component: Component) -> JsonMapping:
    settings, stated = SETTINGS[model.family.name], component.config or {}
    if "scaling_factor" not in stated and not any(name in DENOISERS for name in model.components):
        raise Refused(
            f"{component.part.path} is the VAE of every CogVideoX, and their latents are scaled by different numbers",
            "put its config.json or its denoiser next to it",
        )
    base, groups = component.dims["c"], component.dims.get("groups", 32)
    if base % groups:
        raise Refused(
            f"{component.part.path} is {base} wide, and nothing says how its norms group that",
            "put its config.json next to it",
        )
    return {
        "_class_name": CLASSES["vae"][1],
        "_diffusers_version": _VERSION,
        "block_out_channels": [base, 2 * base, 2 * base, 4 * base],
        "invert_scale_latents": stated.get("invert_scale_latents", settings.divided),
        "norm_num_groups": groups,
        "scaling_factor": stated.get("scaling_factor", settings.latent_scale),
    }


def scheduler(model: Model) -> JsonMapping:
    return {
        "_class_name": CLASSES["scheduler"][1],
        "_diffusers_version": _VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "snr_shift_scale": model.family.shift,
        "timestep_spacing": "trailing",
    }
