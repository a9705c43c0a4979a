"""The CogVideoX denoisers: hub names (diffusers' CogVideoXTransformer3DModel)."""

from collections.abc import Mapping
from dataclasses import dataclass

from wanconv.families.rows import WB, WHOLE, Row, inside, roles
from wanconv.tensors import Architecture, Kind, Scheme

# fmt: off
_TIME_EMBEDDING = inside("time_embedding", ("time_embedding",), (
    # kind         leaves  canonical                   shape             hub
    ("linear",     WB,     "in",                       ("time", "d"),    "linear_1"),
    ("linear",     WB,     "out",                      ("time", "time"), "linear_2"),
))

# 1.5 I2V is told by how much its first frame may move
_OFFSET_EMBEDDING = inside("offset_embedding", ("ofs_embedding",), (
    ("linear",     WB,     "in",                       ("ofs", "ofs"),   "linear_1"),
    ("linear",     WB,     "out",                      ("ofs", "ofs"),   "linear_2"),
))

# text and video tokens share every weight; shift, scale and gate of each come from the time embedding
_BLOCK = inside("blocks.{n}", ("transformer_blocks.{n}",), (
    ("norm",       WB,     "self_attn.norm_in",        ("d",),           "norm1.norm"),
    ("modulation", WB,     "self_attn.modulation_projection", ("6*d", "time"), "norm1.linear"),
    ("linear",     WB,     "self_attn.q",              ("d", "d"),       "attn1.to_q"),
    ("linear",     WB,     "self_attn.k",              ("d", "d"),       "attn1.to_k"),
    ("linear",     WB,     "self_attn.v",              ("d", "d"),       "attn1.to_v"),
    ("linear",     WB,     "self_attn.o",              ("d", "d"),       "attn1.to_out.0"),
    ("norm",       WB,     "self_attn.norm_q",         ("head",),        "attn1.norm_q"),
    ("norm",       WB,     "self_attn.norm_k",         ("head",),        "attn1.norm_k"),
    ("norm",       WB,     "ffn.norm_in",              ("d",),           "norm2.norm"),
    ("modulation", WB,     "ffn.modulation_projection", ("6*d", "time"), "norm2.linear"),
    ("linear",     WB,     "ffn.up",                   ("4*d", "d"),     "ff.net.0.proj"),
    ("linear",     WB,     "ffn.down",                 ("d", "4*d"),     "ff.net.2"),
))

_BASE: tuple[Row, ...] = (
    ("linear",     WB,     "text_embedding",           ("d", "text"),    "patch_embed.text_proj"),
    *_TIME_EMBEDDING,
    *_BLOCK,
    ("norm",       WB,     "norm_out",                 ("d",),           "norm_final"),
    ("norm",       WB,     "head.norm_in",             ("d",),           "norm_out.norm"),
    ("modulation", WB,     "head.modulation_projection", ("2*d", "time"), "norm_out.linear"),
)

# learned, for 226 text tokens and 13 x 30 x 45 patches; 2B computes sines instead, and the others rotate q and k
_POSITIONS: tuple[Row, ...] = (
    ("embed",      WHOLE,  "position_embedding",       (1, "positions", "d"), "patch_embed.pos_embedding"),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Settings:
    """What a model was trained with and no shape shows: whether q and k are rotated (else positions are added), what
    the VAE's latents are multiplied by (`divided`: those of a first frame are divided by it), and the sample size.

    Sources: huggingface/diffusers scripts/convert_cogvideox_to_diffusers.py; the released config.json files.
    """

    rotary: bool
    latent_scale: float
    divided: bool
    sample: Mapping[str, int]


TEXT_TOKENS = 226  # of every prompt, padded
_SAMPLE_1_0 = {"sample_height": 60, "sample_width": 90, "sample_frames": 49}
_SAMPLE_1_5 = {"sample_height": 300, "sample_width": 300, "sample_frames": 81}
# fmt: off
SETTINGS: Mapping[str, Settings] = {
    #                             rotary  latent_scale  divided  sample
    "cogvideox-2b":       Settings(False, 1.15258426,   False,   _SAMPLE_1_0),
    "cogvideox-5b":       Settings(True,  0.7,          False,   _SAMPLE_1_0),
    "cogvideox-5b-i2v":   Settings(True,  0.7,          False,   _SAMPLE_1_0),
    "cogvideox1.5-5b":    Settings(True,  0.7,          True,    _SAMPLE_1_5),
    "cogvideox1.5-5b-i2v": Settings(True, 0.7,          True,    _SAMPLE_1_5),
}
# fmt: on


def _ends(channels_in: int, frames: int | None = None) -> tuple[Row, ...]:
    """Patches of 2 x 2 latents; in 1.5 of `frames` frames at once, each a row for a linear layer."""
    values = 4 * (frames or 1)
    kind: Kind = "conv" if frames is None else "linear"
    shape = ("d", channels_in, 2, 2) if frames is None else ("d", values * channels_in)
    return (
        (kind, WB, "patch_embedding", shape, "patch_embed.proj"),
        ("linear", WB, "head.proj", (values * 16, "d"), "proj_out"),
    )


def _config(channels_in: int, frames: int | None = None) -> Mapping[Scheme, tuple[tuple[str, int | str], ...]]:
    # `heads` and the sample size are in no shape
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
_TINY |= {"sample_height": 8, "sample_width": 12, "sample_frames": 9}

_SOURCE = "huggingface/diffusers models/transformers/cogvideox_transformer_3d.py"

T2V = Architecture(
    name="cogvideox-t2v",
    roles=roles(_ends(16) + _BASE, ("hub",)),
    source=_SOURCE,
    full=_SIZE_5B,
    tiny=_TINY,
    config=_config(16),
    schemes=("hub",),
)
# the first frame comes as 16 further channels
I2V = Architecture(
    name="cogvideox-i2v",
    roles=roles(_ends(32) + _BASE + _POSITIONS, ("hub",)),
    source=_SOURCE,
    full=_SIZE_5B | {"positions": TEXT_TOKENS + 13 * 30 * 45},
    tiny=_TINY | {"positions": TEXT_TOKENS + 3 * 4 * 6},
    config=_config(32),
    schemes=("hub",),
)
T2V_1_5 = Architecture(
    name="cogvideox1.5-t2v",
    roles=roles(_ends(16, frames=2) + _BASE, ("hub",)),
    source=_SOURCE,
    full=_SIZE_5B,
    tiny=_TINY,
    config=_config(16, frames=2),
    schemes=("hub",),
)
I2V_1_5 = Architecture(
    name="cogvideox1.5-i2v",
    roles=roles(_ends(32, frames=2) + _BASE + _OFFSET_EMBEDDING, ("hub",)),
    source=_SOURCE,
    full=_SIZE_5B | {"ofs": 512},
    tiny=_TINY | {"ofs": 32},
    config=_config(32, frames=2),
    schemes=("hub",),
)
