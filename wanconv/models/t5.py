"""The T5 v1.1 text encoder of CogVideoX: hub names (transformers' T5EncoderModel), which every client reads.

UMT5 without a relative bias of its own in each block: all blocks use the first one's.
"""

from wanconv.models.rows import Row, W, inside, roles
from wanconv.models.umt5 import DECODER, UMT5
from wanconv.types.architecture import Architecture, Spelling

# Files saved by transformers hold either name of the token embedding, or both.
_SHARED = Spelling("shared", aliases=("encoder.embed_tokens",))
_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"

# fmt: off
_BLOCK = inside("blocks.{n}", ("encoder.block.{n}.layer",), (
    # kind      leaves  canonical             shape          hub
    ("norm",    W,      "norm_attn",          ("d",),        "0.layer_norm"),
    ("linear",  W,      "attn.q",             ("attn", "d"), "0.SelfAttention.q"),
    ("linear",  W,      "attn.k",             ("attn", "d"), "0.SelfAttention.k"),
    ("linear",  W,      "attn.v",             ("attn", "d"), "0.SelfAttention.v"),
    ("linear",  W,      "attn.o",             ("d", "attn"), "0.SelfAttention.o"),
    ("norm",    W,      "norm_ffn",           ("d",),        "1.layer_norm"),
    ("linear",  W,      "ffn.gate",           ("ffn", "d"),  "1.DenseReluDense.wi_0"),
    ("linear",  W,      "ffn.up",             ("ffn", "d"),  "1.DenseReluDense.wi_1"),
    ("linear",  W,      "ffn.down",           ("d", "ffn"),  "1.DenseReluDense.wo"),
))

_TABLE: tuple[Row, ...] = (
    ("embed",   W,      "token_embedding",    ("vocab", "d"),  _SHARED),
    ("embed",   W,      "relative_bias",      (32, "heads"),   _BIAS),
    *_BLOCK,
    ("norm",    W,      "norm_out",           ("d",),          "encoder.final_layer_norm"),
)
# fmt: on

T5 = Architecture(
    name="t5-v1.1",
    roles=roles(_TABLE, ("hub",)),
    source="huggingface/transformers models/t5/modeling_t5.py",
    full={**UMT5.full, "vocab": 32128},
    tiny=UMT5.tiny,
    config=UMT5.config,
    schemes=("hub",),
    dead=DECODER,
)
