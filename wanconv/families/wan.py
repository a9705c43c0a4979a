"""The Wan 2.1 and 2.2 denoisers: official names (Wan-Video) and hub names (diffusers' WanTransformer3DModel)."""

from wanconv.families.rows import WB, WHOLE, Row, Size, W, roles
from wanconv.tensors import Architecture, Scheme

# fmt: off
_EMBEDDINGS: tuple[Row, ...] = (
    # kind         leaves  canonical               shape             official              hub
    ("linear",     WB,     "text_embedding.in",    ("d", "text"),    "text_embedding.0",   "condition_embedder.text_embedder.linear_1"),
    ("linear",     WB,     "text_embedding.out",   ("d", "d"),       "text_embedding.2",   "condition_embedder.text_embedder.linear_2"),
    ("linear",     WB,     "time_embedding.in",    ("d", "freq"),    "time_embedding.0",   "condition_embedder.time_embedder.linear_1"),
    ("linear",     WB,     "time_embedding.out",   ("d", "d"),       "time_embedding.2",   "condition_embedder.time_embedder.linear_2"),
    ("linear",     WB,     "time_projection",      ("6*d", "d"),     "time_projection.1",  "condition_embedder.time_proj"),
)

_BLOCK: tuple[Row, ...] = (
    # official norm1 and norm2 have no parameters; its norm3, the norm before cross-attention, is the hub's norm2
    ("modulation", WHOLE,  "blocks.{n}.modulation",          (1, 6, "d"),   "blocks.{n}.modulation",         "blocks.{n}.scale_shift_table"),
    ("linear",     WB,     "blocks.{n}.self_attn.q",         ("d", "d"),    "blocks.{n}.self_attn.q",        "blocks.{n}.attn1.to_q"),
    ("linear",     WB,     "blocks.{n}.self_attn.k",         ("d", "d"),    "blocks.{n}.self_attn.k",        "blocks.{n}.attn1.to_k"),
    ("linear",     WB,     "blocks.{n}.self_attn.v",         ("d", "d"),    "blocks.{n}.self_attn.v",        "blocks.{n}.attn1.to_v"),
    ("linear",     WB,     "blocks.{n}.self_attn.o",         ("d", "d"),    "blocks.{n}.self_attn.o",        "blocks.{n}.attn1.to_out.0"),
    ("norm",       W,      "blocks.{n}.self_attn.norm_q",    ("d",),        "blocks.{n}.self_attn.norm_q",   "blocks.{n}.attn1.norm_q"),
    ("norm",       W,      "blocks.{n}.self_attn.norm_k",    ("d",),        "blocks.{n}.self_attn.norm_k",   "blocks.{n}.attn1.norm_k"),
    ("norm",       WB,     "blocks.{n}.cross_attn.norm_in",  ("d",),        "blocks.{n}.norm3",              "blocks.{n}.norm2"),
    ("linear",     WB,     "blocks.{n}.cross_attn.q",        ("d", "d"),    "blocks.{n}.cross_attn.q",       "blocks.{n}.attn2.to_q"),
    ("linear",     WB,     "blocks.{n}.cross_attn.k",        ("d", "d"),    "blocks.{n}.cross_attn.k",       "blocks.{n}.attn2.to_k"),
    ("linear",     WB,     "blocks.{n}.cross_attn.v",        ("d", "d"),    "blocks.{n}.cross_attn.v",       "blocks.{n}.attn2.to_v"),
    ("linear",     WB,     "blocks.{n}.cross_attn.o",        ("d", "d"),    "blocks.{n}.cross_attn.o",       "blocks.{n}.attn2.to_out.0"),
    ("norm",       W,      "blocks.{n}.cross_attn.norm_q",   ("d",),        "blocks.{n}.cross_attn.norm_q",  "blocks.{n}.attn2.norm_q"),
    ("norm",       W,      "blocks.{n}.cross_attn.norm_k",   ("d",),        "blocks.{n}.cross_attn.norm_k",  "blocks.{n}.attn2.norm_k"),
    ("linear",     WB,     "blocks.{n}.ffn.up",              ("ffn", "d"),  "blocks.{n}.ffn.0",              "blocks.{n}.ffn.net.0.proj"),
    ("linear",     WB,     "blocks.{n}.ffn.down",            ("d", "ffn"),  "blocks.{n}.ffn.2",              "blocks.{n}.ffn.net.2"),
)

# Wan 2.1 I2V and FLF2V look at CLIP's image tokens, through projections of their own
_CLIP_BLOCK: tuple[Row, ...] = (
    ("linear",     WB,     "blocks.{n}.cross_attn.k_img",       ("d", "d"), "blocks.{n}.cross_attn.k_img",      "blocks.{n}.attn2.add_k_proj"),
    ("linear",     WB,     "blocks.{n}.cross_attn.v_img",       ("d", "d"), "blocks.{n}.cross_attn.v_img",      "blocks.{n}.attn2.add_v_proj"),
    ("norm",       W,      "blocks.{n}.cross_attn.norm_k_img",  ("d",),     "blocks.{n}.cross_attn.norm_k_img", "blocks.{n}.attn2.norm_added_k"),
)

_CLIP_EMBEDDING: tuple[Row, ...] = (
    ("norm",       WB,     "image_embedding.norm_in",   ("image",),          "img_emb.proj.0",  "condition_embedder.image_embedder.norm1"),
    ("linear",     WB,     "image_embedding.in",        ("image", "image"),  "img_emb.proj.1",  "condition_embedder.image_embedder.ff.net.0.proj"),
    ("linear",     WB,     "image_embedding.out",       ("d", "image"),      "img_emb.proj.3",  "condition_embedder.image_embedder.ff.net.2"),
    ("norm",       WB,     "image_embedding.norm_out",  ("d",),              "img_emb.proj.4",  "condition_embedder.image_embedder.norm2"),
)

# the tokens of two images, 257 each
_FLF_EMBEDDING: tuple[Row, ...] = (
    ("embed",      WHOLE,  "image_embedding.position_embedding",  (1, 514, "image"),  "img_emb.emb_pos",  "condition_embedder.image_embedder.pos_embed"),
)

# "casual" is sic in the released file; conv2 and conv3 halve the frame rate
_S2V: tuple[Row, ...] = (
    # kind         leaves  canonical                             shape                   official
    ("conv",       WB,     "pose_embedding",                     ("d", 16, 1, 2, 2),     "cond_encoder"),
    ("embed",      W,      "source_embedding",                   (3, "d"),               "trainable_cond_mask"),
    ("constant",   WHOLE,  "causal_audio_encoder.state_weights", (1, "states", 1, 1),    "casual_audio_encoder.weights"),
    ("embed",      WHOLE,  "causal_audio_encoder.padding_token", (1, 1, 1, "d"),         "casual_audio_encoder.encoder.padding_tokens"),
    ("conv",       WB,     "causal_audio_encoder.conv_local",    ("d", "audio", 3),      "casual_audio_encoder.encoder.conv1_local.conv"),
    ("conv",       WB,     "causal_audio_encoder.conv_global",   ("d/4", "audio", 3),    "casual_audio_encoder.encoder.conv1_global.conv"),
    ("conv",       WB,     "causal_audio_encoder.conv_mid",      ("d/2", "d/4", 3),      "casual_audio_encoder.encoder.conv2.conv"),
    ("conv",       WB,     "causal_audio_encoder.conv_out",      ("d", "d/2", 3),        "casual_audio_encoder.encoder.conv3.conv"),
    ("linear",     WB,     "causal_audio_encoder.proj",          ("d", "d"),             "casual_audio_encoder.encoder.final_linear"),
    ("linear",     WB,     "audio_injector.{m}.cross_attn.q",    ("d", "d"),             "audio_injector.injector.{m}.q"),
    ("linear",     WB,     "audio_injector.{m}.cross_attn.k",    ("d", "d"),             "audio_injector.injector.{m}.k"),
    ("linear",     WB,     "audio_injector.{m}.cross_attn.v",    ("d", "d"),             "audio_injector.injector.{m}.v"),
    ("linear",     WB,     "audio_injector.{m}.cross_attn.o",    ("d", "d"),             "audio_injector.injector.{m}.o"),
    ("norm",       W,      "audio_injector.{m}.cross_attn.norm_q", ("d",),               "audio_injector.injector.{m}.norm_q"),
    ("norm",       W,      "audio_injector.{m}.cross_attn.norm_k", ("d",),               "audio_injector.injector.{m}.norm_k"),
    ("linear",     WB,     "audio_injector.{m}.modulation_projection", ("2*d", "d"),     "audio_injector.injector_adain_layers.{m}.linear"),
    ("conv",       WB,     "motion_embedding.x1",                ("d", 16, 1, 2, 2),     "frame_packer.proj"),
    ("conv",       WB,     "motion_embedding.x2",                ("d", 16, 2, 4, 4),     "frame_packer.proj_2x"),
    ("conv",       WB,     "motion_embedding.x4",                ("d", 16, 4, 8, 8),     "frame_packer.proj_4x"),
)
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


_BASE = _EMBEDDINGS + _BLOCK
_SIZE_1_3B = {"d": 1536, "ffn": 8960, "text": 4096, "freq": 256, "n": 30, "heads": 12}
_SIZE_5B = {"d": 3072, "ffn": 14336, "text": 4096, "freq": 256, "n": 30, "heads": 24}
_SIZE_14B = {"d": 5120, "ffn": 13824, "text": 4096, "freq": 256, "n": 40, "heads": 40}
_TINY = {"d": 128, "ffn": 256, "text": 64, "freq": 32, "n": 3, "heads": 2}

T2V_1_3B = _SIZE_1_3B

T2V = Architecture(
    name="wan-t2v",
    roles=roles(_ends(16, 16) + _BASE),
    source="Wan-Video/Wan2.2 wan/modules/model.py; huggingface/diffusers models/transformers/transformer_wan.py",
    full=_SIZE_14B,
    tiny=_TINY,
    config=_config(16, 16),
)
# Wan 2.2: the first frame comes as channels (16 noise + 4 mask + 16 image), no CLIP
I2V = Architecture(
    name="wan-i2v",
    roles=roles(_ends(36, 16) + _BASE),
    source=T2V.source,
    full=_SIZE_14B,
    tiny=_TINY,
    config=_config(36, 16),
)
TI2V = Architecture(
    name="wan-ti2v",
    roles=roles(_ends(48, 48) + _BASE),
    source=T2V.source,
    full=_SIZE_5B,
    tiny=_TINY,
    config=_config(48, 48),
)
I2V_CLIP = Architecture(
    name="wan-i2v-clip",
    roles=roles(_ends(36, 16) + _BASE + _CLIP_BLOCK + _CLIP_EMBEDDING),
    source="Wan-Video/Wan2.1 wan/modules/model.py; huggingface/diffusers models/transformers/transformer_wan.py",
    full=_SIZE_14B | {"image": 1280},
    tiny=_TINY | {"image": 64},
    config=_config(36, 16),
)
FLF2V = Architecture(
    name="wan-flf2v",
    roles=roles(_ends(36, 16) + _BASE + _CLIP_BLOCK + _CLIP_EMBEDDING + _FLF_EMBEDDING),
    source=I2V_CLIP.source,
    full=I2V_CLIP.full,
    tiny=I2V_CLIP.tiny,
    config=_config(36, 16),
)
# no library carries S2V: it has no hub names
S2V = Architecture(
    name="wan-s2v",
    roles=roles(_ends(16, 16) + _BASE) + roles(_S2V, ("official",)),
    source="Wan-Video/Wan2.2 wan/modules/s2v/model_s2v.py",
    full=_SIZE_14B | {"audio": 1024, "states": 25, "m": 12},
    tiny=_TINY | {"audio": 64, "states": 3, "m": 2},
    config={"official": _config(16, 16)["official"]},
    schemes=("official",),
)
