"""The CogVideoX denoisers: hub names (diffusers' CogVideoXTransformer3DModel), official ones (zai-org/CogVideo's SAT
training checkpoints, a source only) and those of ComfyUI.

In official files q, k and v are one tensor. So are the twelve rows of shift, scale and gate that modulate a block: for
video in attention, video in the feed-forward, then text in the same order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from wanconv.models.rows import WB, WHOLE, Row, inside, roles
from wanconv.types.architecture import Architecture, Kind, Scheme, Spelling

_SAT = "model.diffusion_model"
_FINAL = f"{_SAT}.mixins.final_layer"


def _qkv(part: int) -> Spelling:
    return Spelling("attention.query_key_value", parts=(part,), of=3)


def _modulation(*parts: int) -> Spelling:
    return Spelling("adaLN_modulations.{n}.1", parts=parts, of=12)


def _patch(kind: Kind, name: str, shape: tuple[int | str, ...], leaf: str) -> Row:
    hub = f"patch_embed.{leaf}"
    return kind, WB, name, shape, hub, f"{_SAT}.mixins.patch_embed.{leaf}", hub


# fmt: off
_TIME_EMBEDDING: tuple[Row, ...] = (
    # kind         leaves  canonical, shape                      hub                        official, comfyui
    ("linear",     WB,     "time_embedding.in", ("time", "d"),   "time_embedding.linear_1",
                                                                 f"{_SAT}.time_embed.0",    "time_embedding_linear_1"),
    ("linear",     WB,     "time_embedding.out", ("time", "time"), "time_embedding.linear_2",
                                                                 f"{_SAT}.time_embed.2",    "time_embedding_linear_2"),
)

# 1.5 I2V is recognised by its embedding of how much the first frame may move
_OFFSET_EMBEDDING: tuple[Row, ...] = (
    ("linear",     WB,     "offset_embedding.in", ("ofs", "ofs"), "ofs_embedding.linear_1",
                                                                 f"{_SAT}.ofs_embed.0",     "ofs_embedding_linear_1"),
    ("linear",     WB,     "offset_embedding.out", ("ofs", "ofs"), "ofs_embedding.linear_2",
                                                                 f"{_SAT}.ofs_embed.2",     "ofs_embedding_linear_2"),
)

# text and video tokens share every weight
_LAYERS = inside("blocks.{n}", ("transformer_blocks.{n}", f"{_SAT}.transformer.layers.{{n}}", "blocks.{n}"), (
    # kind         leaves  canonical             shape         hub               official                    comfyui
    ("norm",       WB, "self_attn.norm_in",  ("d",),       "norm1.norm",     "input_layernorm",          "norm1.norm"),
    ("linear",     WB, "self_attn.q",        ("d", "d"),   "attn1.to_q",     _qkv(0),                    "q"),
    ("linear",     WB, "self_attn.k",        ("d", "d"),   "attn1.to_k",     _qkv(1),                    "k"),
    ("linear",     WB, "self_attn.v",        ("d", "d"),   "attn1.to_v",     _qkv(2),                    "v"),
    ("linear",     WB, "self_attn.o",        ("d", "d"),   "attn1.to_out.0", "attention.dense",          "attn_out"),
    ("norm",       WB, "ffn.norm_in",        ("d",),       "norm2.norm",     "post_attention_layernorm", "norm2.norm"),
    ("linear",     WB, "ffn.up",             ("4*d", "d"), "ff.net.0.proj",  "mlp.dense_h_to_4h",        "ff_proj"),
    ("linear",     WB, "ffn.down",           ("d", "4*d"), "ff.net.2",       "mlp.dense_4h_to_h",        "ff_out"),
))
_MIXED_IN = inside("blocks.{n}", ("transformer_blocks.{n}", f"{_SAT}.mixins.adaln_layer", "blocks.{n}"), (
    ("norm",       WB, "self_attn.norm_q",   ("head",),    "attn1.norm_q",   "query_layernorm_list.{n}", "norm_q"),
    ("norm",       WB, "self_attn.norm_k",   ("head",),    "attn1.norm_k",   "key_layernorm_list.{n}",   "norm_k"),
    ("modulation", WB, "self_attn.modulation_projection", ("6*d", "time"),
                                                    "norm1.linear", _modulation(0, 1, 2, 6, 7, 8),      "norm1.linear"),
    ("modulation", WB, "ffn.modulation_projection", ("6*d", "time"),
                                                    "norm2.linear", _modulation(3, 4, 5, 9, 10, 11),    "norm2.linear"),
))

_OUT: tuple[Row, ...] = (
    ("norm",       WB, "norm_out", ("d",), "norm_final",    f"{_SAT}.transformer.final_layernorm", "norm_final"),
    ("norm",       WB, "head.norm_in", ("d",), "norm_out.norm", f"{_FINAL}.norm_final",             "norm_out.norm"),
    ("modulation", WB, "head.modulation_projection", ("2*d", "time"),
                                                  "norm_out.linear", f"{_FINAL}.adaLN_modulation.1", "norm_out.linear"),
)
# fmt: on

_TEXT = _patch("linear", "text_embedding", ("d", "text"), "text_proj")
_BASE: tuple[Row, ...] = (_TEXT, *_TIME_EMBEDDING, *_LAYERS, *_MIXED_IN, *_OUT)


def _positions(hub: str | None) -> tuple[Row, ...]:
    """Positions of 226 text tokens and 13 x 30 x 45 patches: 5B I2V learned them. 2B computes sines, which its official
    file may hold; the others rotate q and k."""
    official = Spelling(f"{_SAT}.mixins.pos_embed.pos_embedding", optional=hub is None)
    return (("embed", WHOLE, "position_embedding", (1, "positions", "d"), hub, official, hub),)


@dataclass(frozen=True, slots=True)
class CogVideoXSettings:
    """Settings of training that no shape shows: whether q and k are rotated (else positions are added), the factor of
    the VAE's latents (`divided`: those of a first frame are divided by it), and the sample size.

    Sources: huggingface/diffusers scripts/convert_cogvideox_to_diffusers.py; the released config.json files.
    """

    rotary: bool
    latent_scale: float
    divided: bool
    sample: Mapping[str, int]


TEXT_TOKENS = 226  # tokens of every prompt, padded
_SAMPLE_1_0 = {"sample_height": 60, "sample_width": 90, "sample_frames": 49}
_SAMPLE_1_5 = {"sample_height": 300, "sample_width": 300, "sample_frames": 81}
# fmt: off
SETTINGS: Mapping[str, CogVideoXSettings] = {
    #                             rotary  latent_scale  divided  sample
    "cogvideox-2b":       CogVideoXSettings(False, 1.15258426,   False,   _SAMPLE_1_0),
    "cogvideox-5b":       CogVideoXSettings(True,  0.7,          False,   _SAMPLE_1_0),
    "cogvideox-5b-i2v":   CogVideoXSettings(True,  0.7,          False,   _SAMPLE_1_0),
    "cogvideox1.5-5b":    CogVideoXSettings(True,  0.7,          True,    _SAMPLE_1_5),
    "cogvideox1.5-5b-i2v": CogVideoXSettings(True, 0.7,          True,    _SAMPLE_1_5),
}
# fmt: on


def _ends(channels_in: int, frames: int | None = None) -> tuple[Row, ...]:
    """Patches of 2 x 2 latents; in 1.5 of `frames` frames at once, each a row for a linear layer."""
    values = 4 * (frames or 1)
    kind: Kind = "conv" if frames is None else "linear"
    shape = ("d", channels_in, 2, 2) if frames is None else ("d", values * channels_in)
    return (
        _patch(kind, "patch_embedding", shape, "proj"),
        ("linear", WB, "head.proj", (values * 16, "d"), "proj_out", f"{_FINAL}.linear", "proj_out"),
    )


def _config(channels_in: int, frames: int | None = None) -> Mapping[Scheme, tuple[tuple[str, int | str], ...]]:
    # shapes show neither `heads` nor the sample size
    return {
        "hub": (
            ("num_attention_heads*attention_head_dim", "d"),
            ("num_attention_heads", "heads"),
            ("attention_head_dim", "head"),
            ("in_channels", channels_in),
            ("out_channels", 16),
            ("num_layers", "n"),
            ("time_embed_dim", "time"),
            ("text_embed_dim", "text"),
            *((("patch_size_t", frames),) if frames else ()),
            *((key, key) for key in _SAMPLE_1_0),
        )
    }


SIZE_2B = {"d": 1920, "head": 64, "heads": 30, "time": 512, "text": 4096, "n": 30}
_SIZE_5B = {"d": 3072, "head": 64, "heads": 48, "time": 512, "text": 4096, "n": 42}
_TINY = {"d": 64, "head": 32, "heads": 2, "time": 32, "text": 64, "n": 3}
_TINY_POSITIONS = {"positions": TEXT_TOKENS + 3 * 4 * 6}
_TINY |= {"sample_height": 8, "sample_width": 12, "sample_frames": 9}

SCHEMES: tuple[Scheme, ...] = ("hub", "official", "comfyui")
_POSITIONS = {"positions": TEXT_TOKENS + 13 * 30 * 45}
_SOURCE = (
    "huggingface/diffusers models/transformers/cogvideox_transformer_3d.py, scripts/convert_cogvideox_to_diffusers.py; "
    "Comfy-Org/ComfyUI comfy/ldm/cogvideo/model.py"
)

T2V = Architecture(
    name="cogvideox-t2v",
    classes=("CogVideoXTransformer3DModel",),
    roles=roles(_ends(16) + _BASE + _positions(None), SCHEMES),
    source=_SOURCE,
    full=_SIZE_5B | _POSITIONS,
    tiny=_TINY | _TINY_POSITIONS,
    config=_config(16),
    schemes=SCHEMES,
)
# the first frame is 16 further channels
I2V = Architecture(
    name="cogvideox-i2v",
    classes=("CogVideoXTransformer3DModel",),
    roles=roles(_ends(32) + _BASE + _positions("patch_embed.pos_embedding"), SCHEMES),
    source=_SOURCE,
    full=_SIZE_5B | _POSITIONS,
    tiny=_TINY | _TINY_POSITIONS,
    config=_config(32),
    schemes=SCHEMES,
)
T2V_1_5 = Architecture(
    name="cogvideox1.5-t2v",
    classes=("CogVideoXTransformer3DModel",),
    roles=roles(_ends(16, frames=2) + _BASE, SCHEMES),
    source=_SOURCE,
    full=_SIZE_5B,
    tiny=_TINY,
    config=_config(16, frames=2),
    schemes=SCHEMES,
)
I2V_1_5 = Architecture(
    name="cogvideox1.5-i2v",
    classes=("CogVideoXTransformer3DModel",),
    roles=roles(_ends(32, frames=2) + _BASE + _OFFSET_EMBEDDING, SCHEMES),
    source=_SOURCE,
    full=_SIZE_5B | {"ofs": 512},
    tiny=_TINY | {"ofs": 32},
    config=_config(32, frames=2),
    schemes=SCHEMES,
)
