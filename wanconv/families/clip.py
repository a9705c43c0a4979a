"""CLIP ViT-H/14 with XLM-RoBERTa: official names (Wan-Video's .pth) and hub names (transformers' CLIPVisionModel).

Wan 2.1 looks at images through the visual half; the text half and the logit scale have no home in the hub's folders.
Files saved by newer versions of transformers lack the prefix `vision_model`.
"""

from wanconv.families.rows import WB, WHOLE, Row, W, roles
from wanconv.tensors import Architecture, Spelling


def _hub(name: str) -> Spelling:
    return Spelling(f"vision_model.{name}", aliases=(name,))


def _fused(part: int) -> Spelling:
    return Spelling("visual.transformer.{n}.attn.to_qkv", parts=(part,), of=3)


_CLASS = Spelling("visual.cls_embedding", shape=(1, 1, "d"))
_POSITION = Spelling("visual.pos_embedding", shape=(1, 257, "d"))
_HEAD = Spelling("visual.head", transposed=True)
# CLIPVisionModelWithProjection has it, CLIPVisionModel does not
_PROJECTION = Spelling("visual_projection.weight", optional=True)

# fmt: off
_VISUAL: tuple[Row, ...] = (
    # kind      leaves  canonical                           shape               official                            hub
    ("embed",   WHOLE,  "visual.class_embedding",           ("d",),             _CLASS,                             _hub("embeddings.class_embedding")),
    ("embed",   WHOLE,  "visual.position_embedding.weight", (257, "d"),         _POSITION,                          _hub("embeddings.position_embedding.weight")),
    ("conv",    W,      "visual.patch_embedding",           ("d", 3, 14, 14),   "visual.patch_embedding",           _hub("embeddings.patch_embedding")),
    ("norm",    WB,     "visual.norm_in",                   ("d",),             "visual.pre_norm",                  _hub("pre_layrnorm")),  # sic
    ("norm",    WB,     "visual.blocks.{n}.norm_attn",      ("d",),             "visual.transformer.{n}.norm1",     _hub("encoder.layers.{n}.layer_norm1")),
    ("linear",  WB,     "visual.blocks.{n}.attn.q",         ("d", "d"),         _fused(0),                          _hub("encoder.layers.{n}.self_attn.q_proj")),
    ("linear",  WB,     "visual.blocks.{n}.attn.k",         ("d", "d"),         _fused(1),                          _hub("encoder.layers.{n}.self_attn.k_proj")),
    ("linear",  WB,     "visual.blocks.{n}.attn.v",         ("d", "d"),         _fused(2),                          _hub("encoder.layers.{n}.self_attn.v_proj")),
    ("linear",  WB,     "visual.blocks.{n}.attn.o",         ("d", "d"),         "visual.transformer.{n}.attn.proj", _hub("encoder.layers.{n}.self_attn.out_proj")),
    ("norm",    WB,     "visual.blocks.{n}.norm_ffn",       ("d",),             "visual.transformer.{n}.norm2",     _hub("encoder.layers.{n}.layer_norm2")),
    ("linear",  WB,     "visual.blocks.{n}.ffn.up",         ("ffn", "d"),       "visual.transformer.{n}.mlp.0",     _hub("encoder.layers.{n}.mlp.fc1")),
    ("linear",  WB,     "visual.blocks.{n}.ffn.down",       ("d", "ffn"),       "visual.transformer.{n}.mlp.2",     _hub("encoder.layers.{n}.mlp.fc2")),
    ("norm",    WB,     "visual.norm_out",                  ("d",),             "visual.post_norm",                 _hub("post_layernorm")),
    ("linear",  WHOLE,  "visual.head.proj.weight",          ("joint", "d"),     _HEAD,                              _PROJECTION),
)

_TEXTUAL: tuple[Row, ...] = (
    ("constant", WHOLE, "log_scale",                         (),                 "log_scale",                       None),
    ("embed",   W,      "textual.token_embedding",           ("vocab", "t"),     "textual.token_embedding",         None),
    ("embed",   W,      "textual.type_embedding",            (1, "t"),           "textual.type_embedding",          None),
    ("embed",   W,      "textual.position_embedding",        ("length", "t"),    "textual.pos_embedding",           None),
    ("norm",    WB,     "textual.norm_in",                   ("t",),             "textual.norm",                    None),
    ("linear",  WB,     "textual.blocks.{m}.attn.q",         ("t", "t"),         "textual.blocks.{m}.attn.q",       None),
    ("linear",  WB,     "textual.blocks.{m}.attn.k",         ("t", "t"),         "textual.blocks.{m}.attn.k",       None),
    ("linear",  WB,     "textual.blocks.{m}.attn.v",         ("t", "t"),         "textual.blocks.{m}.attn.v",       None),
    ("linear",  WB,     "textual.blocks.{m}.attn.o",         ("t", "t"),         "textual.blocks.{m}.attn.o",       None),
    ("norm",    WB,     "textual.blocks.{m}.norm_attn",      ("t",),             "textual.blocks.{m}.norm1",        None),
    ("linear",  WB,     "textual.blocks.{m}.ffn.up",         ("t_ffn", "t"),     "textual.blocks.{m}.ffn.0",        None),
    ("linear",  WB,     "textual.blocks.{m}.ffn.down",       ("t", "t_ffn"),     "textual.blocks.{m}.ffn.2",        None),
    ("norm",    WB,     "textual.blocks.{m}.norm_ffn",       ("t",),             "textual.blocks.{m}.norm2",        None),
    ("linear",  W,      "textual.head.in",                   ("t_mid", "t"),     "textual.head.0",                  None),
    ("linear",  W,      "textual.head.out",                  ("joint", "t_mid"), "textual.head.2",                  None),
)

_FULL = {"d": 1280, "ffn": 5120, "joint": 1024, "heads": 16, "n": 32, "vocab": 250002, "t": 1024, "t_ffn": 4096, "t_mid": 1024, "length": 514, "m": 24}
_TINY = {"d": 64, "ffn": 128, "joint": 32, "heads": 2, "n": 3, "vocab": 64, "t": 32, "t_ffn": 64, "t_mid": 32, "length": 18, "m": 2}
# fmt: on

CLIP = Architecture(
    name="clip-vit-h",
    roles=roles(_VISUAL + _TEXTUAL),
    source="Wan-Video/Wan2.1 wan/modules/clip.py; huggingface/transformers models/clip/modeling_clip.py",
    full=_FULL,
    tiny=_TINY,
    config={
        "hub": (
            ("hidden_size", "d"),
            ("intermediate_size", "ffn"),
            ("num_hidden_layers", "n"),
            ("num_attention_heads", "heads"),
            ("patch_size", 14),
        )
    },
)
