"""The Wan 2.1 and 2.2 denoisers: official names (Wan-Video) and hub names (diffusers' WanTransformer3DModel)."""

from collections.abc import Mapping

from wanconv.models.rows import WB, WHOLE, Row, Size, W, inside, roles
from wanconv.models.wan_animate import ANIMATE as ANIMATE_ROWS
from wanconv.types.architecture import Architecture, Dead, Scheme

# fmt: off
_TEXT_EMBEDDING = inside("text_embedding", ("text_embedding", "condition_embedder.text_embedder"), (
    # kind         leaves  canonical             shape         official             hub
    ("linear",     WB,     "in",                 ("d", "text"), "0",                "linear_1"),
    ("linear",     WB,     "out",                ("d", "d"),   "2",                 "linear_2"),
))

_TIME_EMBEDDING = inside("time_embedding", ("time_embedding", "condition_embedder.time_embedder"), (
    ("linear",     WB,     "in",                 ("d", "freq"), "0",                "linear_1"),
    ("linear",     WB,     "out",                ("d", "d"),   "2",                 "linear_2"),
))

_TIME_PROJECTION: tuple[Row, ...] = (
    ("linear",     WB,     "time_projection",    ("6*d", "d"), "time_projection.1", "condition_embedder.time_proj"),
)

_LAYERS: tuple[Row, ...] = (
    # kind         leaves  canonical             shape         official             hub
    ("modulation", WHOLE,  "modulation",         (1, 6, "d"),  "modulation",        "scale_shift_table"),
    ("linear",     WB,     "self_attn.q",        ("d", "d"),   "self_attn.q",       "attn1.to_q"),
    ("linear",     WB,     "self_attn.k",        ("d", "d"),   "self_attn.k",       "attn1.to_k"),
    ("linear",     WB,     "self_attn.v",        ("d", "d"),   "self_attn.v",       "attn1.to_v"),
    ("linear",     WB,     "self_attn.o",        ("d", "d"),   "self_attn.o",       "attn1.to_out.0"),
    ("norm",       W,      "self_attn.norm_q",   ("d",),       "self_attn.norm_q",  "attn1.norm_q"),
    ("norm",       W,      "self_attn.norm_k",   ("d",),       "self_attn.norm_k",  "attn1.norm_k"),
    # official norm1 and norm2 have no parameters; its norm3, before cross-attention, is the hub's norm2
    ("norm",       WB,     "cross_attn.norm_in", ("d",),       "norm3",             "norm2"),
    ("linear",     WB,     "cross_attn.q",       ("d", "d"),   "cross_attn.q",      "attn2.to_q"),
    ("linear",     WB,     "cross_attn.k",       ("d", "d"),   "cross_attn.k",      "attn2.to_k"),
    ("linear",     WB,     "cross_attn.v",       ("d", "d"),   "cross_attn.v",      "attn2.to_v"),
    ("linear",     WB,     "cross_attn.o",       ("d", "d"),   "cross_attn.o",      "attn2.to_out.0"),
    ("norm",       W,      "cross_attn.norm_q",  ("d",),       "cross_attn.norm_q", "attn2.norm_q"),
    ("norm",       W,      "cross_attn.norm_k",  ("d",),       "cross_attn.norm_k", "attn2.norm_k"),
    ("linear",     WB,     "ffn.up",             ("ffn", "d"), "ffn.0",             "ffn.net.0.proj"),
    ("linear",     WB,     "ffn.down",           ("d", "ffn"), "ffn.2",             "ffn.net.2"),
)
_BLOCK = inside("blocks.{n}", ("blocks.{n}", "blocks.{n}"), _LAYERS)

# VACE reads its video, reference and mask through blocks of their own, next to some of the others
_VACE: tuple[Row, ...] = (
    ("conv",       WB,     "vace_embedding", ("d", 96, 1, 2, 2), "vace_patch_embedding", "vace_patch_embedding"),
    ("linear",     WB,     "vace_blocks.0.proj_in", ("d", "d"), "vace_blocks.0.before_proj", "vace_blocks.0.proj_in"),
    *inside("vace_blocks.{m}", ("vace_blocks.{m}", "vace_blocks.{m}"), (
        *_LAYERS,
        ("linear", WB,     "proj_out",           ("d", "d"),   "after_proj",        "proj_out"),
    )),
)

# Wan 2.1 I2V and FLF2V attend to CLIP's image tokens through projections of their own
_CLIP_BLOCK = inside("blocks.{n}.cross_attn", ("blocks.{n}.cross_attn", "blocks.{n}.attn2"), (
    ("linear",     WB,     "k_img",              ("d", "d"),   "k_img",             "add_k_proj"),
    ("linear",     WB,     "v_img",              ("d", "d"),   "v_img",             "add_v_proj"),
    ("norm",       W,      "norm_k_img",         ("d",),       "norm_k_img",        "norm_added_k"),
))

_CLIP_EMBEDDING = inside("image_embedding", ("img_emb", "condition_embedder.image_embedder"), (
    ("norm",       WB,     "norm_in",            ("image",),         "proj.0",      "norm1"),
    ("linear",     WB,     "in",                 ("image", "image"), "proj.1",      "ff.net.0.proj"),
    ("linear",     WB,     "out",                ("d", "image"),     "proj.3",      "ff.net.2"),
    ("norm",       WB,     "norm_out",           ("d",),             "proj.4",      "norm2"),
))

# the tokens of two images, 257 each
_FLF_EMBEDDING = inside("image_embedding", ("img_emb", "condition_embedder.image_embedder"), (
    ("embed",      WHOLE,  "position_embedding", (1, 514, "image"),  "emb_pos",     "pos_embed"),
))

_S2V: tuple[Row, ...] = (
    # kind         leaves  canonical             shape                official
    ("conv",       WB,     "pose_embedding",     ("d", 16, 1, 2, 2),  "cond_encoder"),
    ("embed",      W,      "source_embedding",   (3, "d"),            "trainable_cond_mask"),  # noisy, ref, motion
    ("conv",       WB,     "motion_embedding.x1", ("d", 16, 1, 2, 2), "frame_packer.proj"),
    ("conv",       WB,     "motion_embedding.x2", ("d", 16, 2, 4, 4), "frame_packer.proj_2x"),
    ("conv",       WB,     "motion_embedding.x4", ("d", 16, 4, 8, 8), "frame_packer.proj_4x"),
)

# "casual" is sic in the released file; conv_mid and conv_out halve the frame rate
_S2V_AUDIO = inside("causal_audio_encoder", ("casual_audio_encoder",), (
    ("constant",   WHOLE,  "state_weights",      (1, "states", 1, 1), "weights"),
    ("embed",      WHOLE,  "padding_token",      (1, 1, 1, "d"),      "encoder.padding_tokens"),
    ("conv",       WB,     "conv_local",         ("d", "audio", 3),   "encoder.conv1_local.conv"),
    ("conv",       WB,     "conv_global",        ("d/4", "audio", 3), "encoder.conv1_global.conv"),
    ("conv",       WB,     "conv_mid",           ("d/2", "d/4", 3),   "encoder.conv2.conv"),
    ("conv",       WB,     "conv_out",           ("d", "d/2", 3),     "encoder.conv3.conv"),
    ("linear",     WB,     "proj",               ("d", "d"),          "encoder.final_linear"),
))

# one injector for some of the blocks, with numbers of its own
_S2V_INJECTOR = inside("audio_injector.{m}", ("audio_injector",), (
    ("linear",     WB,     "cross_attn.q",       ("d", "d"),          "injector.{m}.q"),
    ("linear",     WB,     "cross_attn.k",       ("d", "d"),          "injector.{m}.k"),
    ("linear",     WB,     "cross_attn.v",       ("d", "d"),          "injector.{m}.v"),
    ("linear",     WB,     "cross_attn.o",       ("d", "d"),          "injector.{m}.o"),
    ("norm",       W,      "cross_attn.norm_q",  ("d",),              "injector.{m}.norm_q"),
    ("norm",       W,      "cross_attn.norm_k",  ("d",),              "injector.{m}.norm_k"),
    ("linear",     WB,     "modulation_projection", ("2*d", "d"),     "injector_adain_layers.{m}.linear"),
))
# fmt: on


def _ends(channels_in: int, channels_out: int) -> tuple[Row, ...]:
    patch: tuple[Size, ...] = ("d", channels_in, 1, 2, 2)
    return (
        ("conv", WB, "patch_embedding", patch, "patch_embedding", "patch_embedding"),
        ("modulation", WHOLE, "head.modulation", (1, 2, "d"), "head.modulation", "scale_shift_table"),
        ("linear", WB, "head.proj", (4 * channels_out, "d"), "head.head", "proj_out"),
    )


def _config(channels_in: int, channels_out: int) -> dict[Scheme, tuple[tuple[str, int | str], ...]]:
    return {
        "official": (
            ("dim", "d"),
            ("ffn_dim", "ffn"),
            ("in_dim", channels_in),
            ("out_dim", channels_out),
            ("num_layers", "n"),
            ("freq_dim", "freq"),
            ("text_dim", "text"),
            ("num_heads", "heads"),
        ),
        "hub": (
            ("num_attention_heads*attention_head_dim", "d"),
            ("ffn_dim", "ffn"),
            ("in_channels", channels_in),
            ("out_channels", channels_out),
            ("num_layers", "n"),
            ("freq_dim", "freq"),
            ("text_dim", "text"),
            ("num_attention_heads", "heads"),
        ),
    }


def _animate_config(
    base: Mapping[Scheme, tuple[tuple[str, int | str], ...]],
) -> dict[Scheme, tuple[tuple[str, int | str], ...]]:
    own = (("motion_style_dim", "style"), ("motion_dim", "motion"), ("face_encoder_hidden_dim", "face"))
    return {**base, "hub": (*base["hub"], *own)}


# A norm that an early version of diffusers saved next to norm_added_k (released: all 40 of I2V-14B-480P-Diffusers).
# Every class there that has these names ignores it by name: _keys_to_ignore_on_load_unexpected = ["norm_added_q"].
_IGNORED = "diffusers ignores it by its name, and no other client knows it"


def _dead(*blocks: str) -> tuple[Dead, ...]:
    return tuple(Dead("hub", f"{block}.attn2.norm_added_q.weight", ("d",), _IGNORED) for block in blocks)


_DEAD = _dead("blocks.{n}")
_BASE = _TEXT_EMBEDDING + _TIME_EMBEDDING + _TIME_PROJECTION + _BLOCK
_SIZE_1_3B = {"d": 1536, "ffn": 8960, "text": 4096, "freq": 256, "n": 30, "heads": 12}
_SIZE_5B = {"d": 3072, "ffn": 14336, "text": 4096, "freq": 256, "n": 30, "heads": 24}
_SIZE_14B = {"d": 5120, "ffn": 13824, "text": 4096, "freq": 256, "n": 40, "heads": 40}
_TINY = {"d": 128, "ffn": 256, "text": 64, "freq": 32, "n": 3, "heads": 2}

T2V_1_3B = _SIZE_1_3B

# Of the official code, of diffusers and of VideoX-Fun.
_CLASSES = ("WanModel", "WanTransformer3DModel", "Wan2_2Transformer3DModel")
T2V = Architecture(
    name="wan-t2v",
    classes=_CLASSES,
    roles=roles(_ends(16, 16) + _BASE),
    source="Wan-Video/Wan2.2 wan/modules/model.py; huggingface/diffusers models/transformers/transformer_wan.py",
    full=_SIZE_14B,
    tiny=_TINY,
    config=_config(16, 16),
    dead=_DEAD,
)
# Wan 2.2: the first frame is given as channels (16 noise + 4 mask + 16 image), no CLIP
I2V = Architecture(
    name="wan-i2v",
    classes=_CLASSES,
    roles=roles(_ends(36, 16) + _BASE),
    source=T2V.source,
    full=_SIZE_14B,
    tiny=_TINY,
    config=_config(36, 16),
    dead=_DEAD,
)
TI2V = Architecture(
    name="wan-ti2v",
    classes=_CLASSES,
    roles=roles(_ends(48, 48) + _BASE),
    source=T2V.source,
    full=_SIZE_5B,
    tiny=_TINY,
    config=_config(48, 48),
    dead=_DEAD,
)
I2V_CLIP = Architecture(
    name="wan-i2v-clip",
    classes=_CLASSES,
    roles=roles(_ends(36, 16) + _BASE + _CLIP_BLOCK + _CLIP_EMBEDDING),
    source="Wan-Video/Wan2.1 wan/modules/model.py; huggingface/diffusers models/transformers/transformer_wan.py",
    full=_SIZE_14B | {"image": 1280},
    tiny=_TINY | {"image": 64},
    config=_config(36, 16),
    dead=_DEAD,
)
FLF2V = Architecture(
    name="wan-flf2v",
    classes=_CLASSES,
    roles=roles(_ends(36, 16) + _BASE + _CLIP_BLOCK + _CLIP_EMBEDDING + _FLF_EMBEDDING),
    source=I2V_CLIP.source,
    full=I2V_CLIP.full,
    tiny=I2V_CLIP.tiny,
    config=_config(36, 16),
    dead=_DEAD,
)
VACE = Architecture(
    name="wan-vace",
    classes=(*_CLASSES, "VaceWanModel", "WanVACETransformer3DModel", "VaceWanTransformer3DModel"),
    roles=roles(_ends(16, 16) + _BASE + _VACE),
    source="Wan-Video/Wan2.1 wan/modules/vace_model.py; huggingface/diffusers transformer_wan_vace.py",
    full=_SIZE_14B | {"m": 8},
    tiny=_TINY | {"n": 4, "m": 2},
    config=_config(16, 16),
    dead=_dead("blocks.{n}", "vace_blocks.{m}"),
)
VACE_1_3B = _SIZE_1_3B | {"m": 15}
ANIMATE = Architecture(
    name="wan-animate",
    classes=(*_CLASSES, "WanAnimateModel", "WanAnimateTransformer3DModel", "Wan2_2Transformer3DModel_Animate"),
    roles=roles(_ends(36, 16) + _BASE + _CLIP_BLOCK + _CLIP_EMBEDDING + ANIMATE_ROWS),
    source="Wan-Video/Wan2.2 wan/modules/animate/model_animate.py; huggingface/diffusers transformer_wan_animate.py",
    full=_SIZE_14B | {"image": 1280, "head": 128, "c": 32, "style": 512, "motion": 20, "face": 1024, "m": 8},
    tiny=_TINY | {"image": 64, "head": 64, "c": 2, "style": 32, "motion": 4, "face": 16, "n": 4, "m": 2},
    config=_animate_config(_config(36, 16)),
    dead=_DEAD,
)
# no library carries S2V: it has no hub names
S2V = Architecture(
    name="wan-s2v",
    classes=(*_CLASSES, "WanModel_S2V", "Wan2_2Transformer3DModel_S2V"),
    roles=roles(_ends(16, 16) + _BASE) + roles(_S2V + _S2V_AUDIO + _S2V_INJECTOR, ("official",)),
    source="Wan-Video/Wan2.2 wan/modules/s2v/model_s2v.py",
    full=_SIZE_14B | {"audio": 1024, "states": 25, "m": 12},
    tiny=_TINY | {"n": 5, "audio": 64, "states": 3, "m": 2},
    config={"official": _config(16, 16)["official"]},
    schemes=("official",),
)
