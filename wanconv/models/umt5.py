"""The UMT5 text encoder: official names (Wan-Video's .pth) and hub names (transformers' UMT5EncoderModel)."""

from wanconv.models.rows import Row, W, inside, roles
from wanconv.types.architecture import Architecture, Dead, Spelling

# Files saved by transformers hold either name of the token embedding, or both.
_SHARED = Spelling("shared", aliases=("encoder.embed_tokens",))

_ATTN = "0.SelfAttention"
_FFN = "1.DenseReluDense"
_BIAS = "relative_attention_bias"

# fmt: off
_BLOCK = inside("blocks.{n}", ("blocks.{n}", "encoder.block.{n}.layer"), (
    # kind      leaves  canonical             shape          official                   hub
    ("norm",    W,      "norm_attn",          ("d",),        "norm1",                   "0.layer_norm"),
    ("linear",  W,      "attn.q",             ("attn", "d"), "attn.q",                  f"{_ATTN}.q"),
    ("linear",  W,      "attn.k",             ("attn", "d"), "attn.k",                  f"{_ATTN}.k"),
    ("linear",  W,      "attn.v",             ("attn", "d"), "attn.v",                  f"{_ATTN}.v"),
    ("linear",  W,      "attn.o",             ("d", "attn"), "attn.o",                  f"{_ATTN}.o"),
    ("embed",   W,      "attn.relative_bias", (32, "heads"), "pos_embedding.embedding", f"{_ATTN}.{_BIAS}"),
    ("norm",    W,      "norm_ffn",           ("d",),        "norm2",                   "1.layer_norm"),
    ("linear",  W,      "ffn.gate",           ("ffn", "d"),  "ffn.gate.0",              f"{_FFN}.wi_0"),
    ("linear",  W,      "ffn.up",             ("ffn", "d"),  "ffn.fc1",                 f"{_FFN}.wi_1"),
    ("linear",  W,      "ffn.down",           ("d", "ffn"),  "ffn.fc2",                 f"{_FFN}.wo"),
))

_TABLE: tuple[Row, ...] = (
    ("embed",   W,      "token_embedding",    ("vocab", "d"), "token_embedding",         _SHARED),
    *_BLOCK,
    ("norm",    W,      "norm_out",           ("d",),        "norm",                    "encoder.final_layer_norm"),
)

# The other half of a whole model: T5EncoderModel ignores what is named decoder (_keys_to_ignore_on_load_unexpected),
# UMT5EncoderModel also loads without it
_DECODER: tuple[tuple[str, tuple[int | str, ...]], ...] = (
    ("lm_head",                                                          ("vocab", "d")),
    ("decoder.embed_tokens",                                             ("vocab", "d")),
    *((f"decoder.block.{{n}}.layer.{at}.layer_norm",                     ("d",)) for at in (0, 1, 2)),
    *((f"decoder.block.{{n}}.layer.{at}.{name}",                         ("attn", "d"))
      for at in ("0.SelfAttention", "1.EncDecAttention") for name in "qkv"),
    *((f"decoder.block.{{n}}.layer.{at}.o",                              ("d", "attn"))
      for at in ("0.SelfAttention", "1.EncDecAttention")),
    *((f"decoder.block.{{n}}.layer.{at}.{_BIAS}",                        (32, "heads"))
      for at in ("0.SelfAttention", "1.EncDecAttention")),
    ("decoder.block.{n}.layer.2.DenseReluDense.wi_0",                    ("ffn", "d")),
    ("decoder.block.{n}.layer.2.DenseReluDense.wi_1",                    ("ffn", "d")),
    ("decoder.block.{n}.layer.2.DenseReluDense.wo",                      ("d", "ffn")),
    ("decoder.final_layer_norm",                                         ("d",)),
)
# fmt: on

DECODER = tuple(Dead("hub", f"{name}.weight", shape, "clients use the encoder alone") for name, shape in _DECODER)

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
    dead=DECODER,
)
