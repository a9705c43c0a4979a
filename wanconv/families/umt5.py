"""The UMT5 text encoder: official names (Wan-Video's .pth) and hub names (transformers' UMT5EncoderModel)."""

from wanconv.families.rows import Row, W, roles
from wanconv.tensors import Architecture, Spelling

# Files saved by transformers hold either name of the token embedding, or both.
_SHARED = Spelling("shared", aliases=("encoder.embed_tokens",))

# fmt: off
_TABLE: tuple[Row, ...] = (
    # kind      leaves  canonical                         shape             official                              hub
    ("embed",   W,      "token_embedding",                ("vocab", "d"),   "token_embedding",                    _SHARED),
    ("norm",    W,      "blocks.{n}.norm_attn",           ("d",),           "blocks.{n}.norm1",                   "encoder.block.{n}.layer.0.layer_norm"),
    ("linear",  W,      "blocks.{n}.attn.q",              ("attn", "d"),    "blocks.{n}.attn.q",                  "encoder.block.{n}.layer.0.SelfAttention.q"),
    ("linear",  W,      "blocks.{n}.attn.k",              ("attn", "d"),    "blocks.{n}.attn.k",                  "encoder.block.{n}.layer.0.SelfAttention.k"),
    ("linear",  W,      "blocks.{n}.attn.v",              ("attn", "d"),    "blocks.{n}.attn.v",                  "encoder.block.{n}.layer.0.SelfAttention.v"),
    ("linear",  W,      "blocks.{n}.attn.o",              ("d", "attn"),    "blocks.{n}.attn.o",                  "encoder.block.{n}.layer.0.SelfAttention.o"),
    ("embed",   W,      "blocks.{n}.attn.relative_bias",  (32, "heads"),    "blocks.{n}.pos_embedding.embedding", "encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias"),
    ("norm",    W,      "blocks.{n}.norm_ffn",            ("d",),           "blocks.{n}.norm2",                   "encoder.block.{n}.layer.1.layer_norm"),
    ("linear",  W,      "blocks.{n}.ffn.gate",            ("ffn", "d"),     "blocks.{n}.ffn.gate.0",              "encoder.block.{n}.layer.1.DenseReluDense.wi_0"),
    ("linear",  W,      "blocks.{n}.ffn.up",              ("ffn", "d"),     "blocks.{n}.ffn.fc1",                 "encoder.block.{n}.layer.1.DenseReluDense.wi_1"),
    ("linear",  W,      "blocks.{n}.ffn.down",            ("d", "ffn"),     "blocks.{n}.ffn.fc2",                 "encoder.block.{n}.layer.1.DenseReluDense.wo"),
    ("norm",    W,      "norm_out",                       ("d",),           "norm",                               "encoder.final_layer_norm"),
)
# fmt: on

UMT5 = Architecture(
    name="umt5",
    roles=roles(_TABLE),
    source="Wan-Video/Wan2.2 wan/modules/t5.py; huggingface/transformers models/umt5/modeling_umt5.py",
    full={"vocab": 256384, "d": 4096, "attn": 4096, "heads": 64, "ffn": 10240, "n": 24},
    tiny={"vocab": 512, "d": 64, "attn": 64, "heads": 2, "ffn": 128, "n": 2},
    config={
        "hub": (
            ("vocab_size", "vocab"),
            ("d_model", "d"),
            ("num_heads*d_kv", "attn"),
            ("num_heads", "heads"),
            ("d_ff", "ffn"),
            ("num_layers", "n"),
        )
    },
)
