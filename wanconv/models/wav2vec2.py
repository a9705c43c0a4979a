"""The wav2vec2 speech encoder of S2V: the official folder has transformers' own file, so both schemes are the same."""

from collections.abc import Iterator
from dataclasses import replace

from wanconv.models.rows import SCHEMES, WB, WHOLE, Row, Size, inside, roles
from wanconv.types.architecture import Architecture, Role, Spelling

# Newer versions of torch and transformers save weight normalisation under other names.
_GAIN = Spelling(
    "wav2vec2.encoder.pos_conv_embed.conv.weight_g",
    aliases=("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0",),
)
_DIRECTION = Spelling(
    "wav2vec2.encoder.pos_conv_embed.conv.weight_v",
    aliases=("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1",),
)

# (layer, channels in, kernel)
_CONVOLUTIONS: tuple[tuple[int, Size, int], ...] = (
    (0, 1, 10),
    (1, "conv", 3),
    (2, "conv", 3),
    (3, "conv", 3),
    (4, "conv", 3),
    (5, "conv", 2),
    (6, "conv", 2),
)

# fmt: off
_BLOCK = inside("blocks.{n}", ("wav2vec2.encoder.layers.{n}",), (
    # kind      leaves  canonical                      shape               official and hub
    ("linear",  WB,     "attn.q",                      ("d", "d"),         "attention.q_proj"),
    ("linear",  WB,     "attn.k",                      ("d", "d"),         "attention.k_proj"),
    ("linear",  WB,     "attn.v",                      ("d", "d"),         "attention.v_proj"),
    ("linear",  WB,     "attn.o",                      ("d", "d"),         "attention.out_proj"),
    ("norm",    WB,     "norm_attn",                   ("d",),             "layer_norm"),
    ("linear",  WB,     "ffn.up",                      ("ffn", "d"),       "feed_forward.intermediate_dense"),
    ("linear",  WB,     "ffn.down",                    ("d", "ffn"),       "feed_forward.output_dense"),
    ("norm",    WB,     "norm_ffn",                    ("d",),             "final_layer_norm"),
))

_ENCODER: tuple[Row, ...] = (
    ("embed",   WHOLE,  "mask_embedding",              ("d",),          "wav2vec2.masked_spec_embed"),
    ("norm",    WB,     "feature_projection.norm_in",  ("conv",),       "wav2vec2.feature_projection.layer_norm"),
    ("linear",  WB,     "feature_projection.proj",     ("d", "conv"),   "wav2vec2.feature_projection.projection"),
    # weight normalisation: weight = gain * direction / |direction|
    ("conv",    WHOLE,  "position_embedding.gain",      (1, 1, 128),     _GAIN),
    ("conv",    WHOLE,  "position_embedding.direction", ("d", "d/16", 128), _DIRECTION),
    ("bias",    WHOLE,  "position_embedding.bias",      ("d",),          "wav2vec2.encoder.pos_conv_embed.conv.bias"),
    *_BLOCK,
    ("norm",    WB,     "norm_out",                    ("d",),          "wav2vec2.encoder.layer_norm"),
)

_HEAD: tuple[Row, ...] = (
    ("linear",  WB,     "head.proj",                   ("vocab", "d"),     "lm_head"),
)
# fmt: on


def _feature_extractor() -> Iterator[Row]:
    for layer, channels, kernel in _CONVOLUTIONS:
        name, on_disk = f"feature_extractor.{layer}", f"wav2vec2.feature_extractor.conv_layers.{layer}"
        yield "conv", WB, f"{name}.conv", ("conv", channels, kernel), f"{on_disk}.conv"
        yield "norm", WB, f"{name}.norm", ("conv",), f"{on_disk}.layer_norm"


def _in_both(role: Role) -> Role:
    return replace(role, spellings=dict.fromkeys(SCHEMES, role.spellings["official"]))


_CONFIG = (
    ("hidden_size", "d"),
    ("intermediate_size", "ffn"),
    ("num_hidden_layers", "n"),
    ("num_attention_heads", "heads"),
    ("vocab_size", "vocab"),
)

WAV2VEC2 = Architecture(
    name="wav2vec2-large-xlsr",
    roles=tuple(map(_in_both, roles((*_feature_extractor(), *_ENCODER, *_HEAD), ("official",)))),
    source="huggingface/transformers models/wav2vec2/modeling_wav2vec2.py (Wav2Vec2ForCTC)",
    full={"d": 1024, "conv": 512, "ffn": 4096, "vocab": 33, "n": 24, "heads": 16},
    tiny={"d": 64, "conv": 32, "ffn": 128, "vocab": 33, "n": 2, "heads": 2},
    config={"official": _CONFIG, "hub": _CONFIG},
)
