"""CLIP ViT-H/14 with XLM-RoBERTa: official names (Wan-Video's .pth) and hub names (transformers' CLIPVisionModel).

Wan 2.1 uses the visual half for images; the hub's folders do not store the text half and the logit scale.
Files saved by newer versions of transformers lack the prefix `vision_model`.
"""

from dataclasses import replace

from wanconv.models.rows import WB, WHOLE, Row, W, inside, roles
from wanconv.types.architecture import Architecture, Dead, Role, Spelling


def _with_prefix(role: Role) -> Role:
    """Returns the role with both of the hub's names: with the prefix `vision_model`, and without."""
    bare = role.spellings["hub"]
    assert bare is not None
    hub = Spelling(f"vision_model.{bare.name}", aliases=(bare.name,))
    return replace(role, spellings={**role.spellings, "hub": hub})


def _fused(part: int) -> Spelling:
    return Spelling("attn.to_qkv", parts=(part,), of=3)


_CLASS = Spelling("cls_embedding", shape=(1, 1, "d"))
_POSITION = Spelling("pos_embedding", shape=(1, 257, "d"))
_OFFICIAL_HEAD = Spelling("visual.head", transposed=True)
# CLIPVisionModelWithProjection has it, CLIPVisionModel does not
_HUB_HEAD = Spelling("visual_projection.weight", optional=True)

# fmt: off
_BLOCK = inside("visual.blocks.{n}", ("visual.transformer.{n}", "encoder.layers.{n}"), (
    # kind      leaves  canonical             shape         official     hub
    ("norm",    WB,     "norm_attn",          ("d",),       "norm1",     "layer_norm1"),
    ("linear",  WB,     "attn.q",             ("d", "d"),   _fused(0),   "self_attn.q_proj"),
    ("linear",  WB,     "attn.k",             ("d", "d"),   _fused(1),   "self_attn.k_proj"),
    ("linear",  WB,     "attn.v",             ("d", "d"),   _fused(2),   "self_attn.v_proj"),
    ("linear",  WB,     "attn.o",             ("d", "d"),   "attn.proj", "self_attn.out_proj"),
    ("norm",    WB,     "norm_ffn",           ("d",),       "norm2",     "layer_norm2"),
    ("linear",  WB,     "ffn.up",             ("ffn", "d"), "mlp.0",     "mlp.fc1"),
    ("linear",  WB,     "ffn.down",           ("d", "ffn"), "mlp.2",     "mlp.fc2"),
))

_EMBEDDINGS = inside("visual", ("visual", "embeddings"), (
    ("embed",   WHOLE,  "class_embedding",           ("d",),           _CLASS,            "class_embedding"),
    ("embed",   WHOLE,  "position_embedding.weight", (257, "d"),       _POSITION,         "position_embedding.weight"),
    ("conv",    W,      "patch_embedding",           ("d", 3, 14, 14), "patch_embedding", "patch_embedding"),
))

_VISUAL: tuple[Row, ...] = (
    *_EMBEDDINGS,
    ("norm",    WB,     "visual.norm_in",     ("d",),       "visual.pre_norm",  "pre_layrnorm"),  # sic
    *_BLOCK,
    ("norm",    WB,     "visual.norm_out",    ("d",),       "visual.post_norm", "post_layernorm"),
)

_HEAD: tuple[Row, ...] = (
    ("linear",  WHOLE,  "visual.head.proj.weight", ("joint", "d"), _OFFICIAL_HEAD, _HUB_HEAD),
)

_TEXT_BLOCK = inside("textual.blocks.{m}", ("textual.blocks.{m}", ""), (
    ("linear",  WB,     "attn.q",             ("t", "t"),        "attn.q",                    None),
    ("linear",  WB,     "attn.k",             ("t", "t"),        "attn.k",                    None),
    ("linear",  WB,     "attn.v",             ("t", "t"),        "attn.v",                    None),
    ("linear",  WB,     "attn.o",             ("t", "t"),        "attn.o",                    None),
    ("norm",    WB,     "norm_attn",          ("t",),            "norm1",                     None),
    ("linear",  WB,     "ffn.up",             ("t_ffn", "t"),    "ffn.0",                     None),
    ("linear",  WB,     "ffn.down",           ("t", "t_ffn"),    "ffn.2",                     None),
    ("norm",    WB,     "norm_ffn",           ("t",),            "norm2",                     None),
))

_TEXTUAL: tuple[Row, ...] = (
    ("constant", WHOLE, "log_scale",                  (),                 "log_scale",               None),
    ("embed",   W,      "textual.token_embedding",    ("vocab", "t"),     "textual.token_embedding", None),
    ("embed",   W,      "textual.type_embedding",     (1, "t"),           "textual.type_embedding",  None),
    ("embed",   W,      "textual.position_embedding", ("length", "t"),    "textual.pos_embedding",   None),
    ("norm",    WB,     "textual.norm_in",            ("t",),             "textual.norm",            None),
    *_TEXT_BLOCK,
    ("linear",  W,      "textual.head.in",            ("t_mid", "t"),     "textual.head.0",          None),
    ("linear",  W,      "textual.head.out",           ("joint", "t_mid"), "textual.head.2",          None),
)

_FULL = {
    "d": 1280, "ffn": 5120, "joint": 1024, "heads": 16, "n": 32,
    "vocab": 250002, "t": 1024, "t_ffn": 4096, "t_mid": 1024, "length": 514, "m": 24,
}
_TINY = {
    "d": 64, "ffn": 128, "joint": 32, "heads": 2, "n": 3,
    "vocab": 64, "t": 32, "t_ffn": 64, "t_mid": 32, "length": 18, "m": 2,
}
# fmt: on

CLIP = Architecture(
    name="clip-vit-h",
    roles=(*map(_with_prefix, roles(_VISUAL)), *roles(_HEAD + _TEXTUAL)),
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
    dead=tuple(
        Dead("hub", f"{prefix}embeddings.position_ids", (1, 257), "transformers counts the positions itself")
        for prefix in ("vision_model.", "")
    ),
)
