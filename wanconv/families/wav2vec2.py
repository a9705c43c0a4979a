"""The wav2vec2 speech encoder of S2V: the official folder ships transformers' own file, so both schemes agree."""

from wanconv.families.rows import WB, WHOLE, Column, Leaves, Row, Size, roles
from wanconv.tensors import Architecture, Kind, Spelling

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

_Entry = tuple[Kind, Leaves, str, tuple[Size, ...], Column]

# fmt: off
_TABLE: tuple[_Entry, ...] = (
    # kind      leaves  canonical                          shape               official and hub
    ("embed",   WHOLE,  "mask_embedding",                  ("d",),             "wav2vec2.masked_spec_embed"),
    ("norm",    WB,     "feature_projection.norm_in",      ("conv",),          "wav2vec2.feature_projection.layer_norm"),
    ("linear",  WB,     "feature_projection.proj",         ("d", "conv"),      "wav2vec2.feature_projection.projection"),
    # weight normalisation: weight = gain * direction / |direction|
    ("conv",    WHOLE,  "position_embedding.gain",         (1, 1, 128),        _GAIN),
    ("conv",    WHOLE,  "position_embedding.direction",    ("d", "d/16", 128), _DIRECTION),
    ("bias",    WHOLE,  "position_embedding.bias",         ("d",),             "wav2vec2.encoder.pos_conv_embed.conv.bias"),
    ("linear",  WB,     "blocks.{n}.attn.q",               ("d", "d"),         "wav2vec2.encoder.layers.{n}.attention.q_proj"),
    ("linear",  WB,     "blocks.{n}.attn.k",               ("d", "d"),         "wav2vec2.encoder.layers.{n}.attention.k_proj"),
    ("linear",  WB,     "blocks.{n}.attn.v",               ("d", "d"),         "wav2vec2.encoder.layers.{n}.attention.v_proj"),
    ("linear",  WB,     "blocks.{n}.attn.o",               ("d", "d"),         "wav2vec2.encoder.layers.{n}.attention.out_proj"),
    ("norm",    WB,     "blocks.{n}.norm_attn",            ("d",),             "wav2vec2.encoder.layers.{n}.layer_norm"),
    ("linear",  WB,     "blocks.{n}.ffn.up",               ("ffn", "d"),       "wav2vec2.encoder.layers.{n}.feed_forward.intermediate_dense"),
    ("linear",  WB,     "blocks.{n}.ffn.down",             ("d", "ffn"),       "wav2vec2.encoder.layers.{n}.feed_forward.output_dense"),
    ("norm",    WB,     "blocks.{n}.norm_ffn",             ("d",),             "wav2vec2.encoder.layers.{n}.final_layer_norm"),
    ("norm",    WB,     "norm_out",                        ("d",),             "wav2vec2.encoder.layer_norm"),
    ("linear",  WB,     "head.proj",                       ("vocab", "d"),     "lm_head"),
)
# fmt: on


def _feature_extractor() -> tuple[_Entry, ...]:
    rows: list[_Entry] = []
    for layer, channels, kernel in _CONVOLUTIONS:
        name, on_disk = f"feature_extractor.{layer}", f"wav2vec2.feature_extractor.conv_layers.{layer}"
        rows.append(("conv", WB, f"{name}.conv", ("conv", channels, kernel), f"{on_disk}.conv"))
        rows.append(("norm", WB, f"{name}.norm", ("conv",), f"{on_disk}.layer_norm"))
    return tuple(rows)


def _both(entry: _Entry) -> Row:
    return (*entry, entry[-1])


WAV2VEC2 = Architecture(
    name="wav2vec2-large-xlsr",
    roles=roles(_both(entry) for entry in _feature_extractor() + _TABLE),
    source="huggingface/transformers models/wav2vec2/modeling_wav2vec2.py (Wav2Vec2ForCTC)",
    full={"d": 1024, "conv": 512, "ffn": 4096, "vocab": 33, "n": 24, "heads": 16},
    tiny={"d": 64, "conv": 32, "ffn": 128, "vocab": 33, "n": 2, "heads": 2},
    config={
        scheme: (
            ("hidden_size", "d"),
            ("intermediate_size", "ffn"),
            ("num_hidden_layers", "n"),
            ("num_attention_heads", "heads"),
            ("vocab_size", "vocab"),
        )
        for scheme in ("official", "hub")
    },
)
