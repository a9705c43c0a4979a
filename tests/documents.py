"""Small valid inputs that several tests break: the tensors that a recipe is resolved for, results to be judged."""

from typing import Any

from wanconv.types.architecture import Kind
from wanconv.verdict.saved import SCHEMA

SMALL: list[tuple[str, Kind, int | None]] = [
    ("dit/patch_embedding.weight", "conv", None),
    *((f"dit/blocks.{n}.ffn.up.weight", "linear", n) for n in range(4)),
    ("text_encoder/blocks.0.attn.q.weight", "linear", 0),
    ("text_encoder/blocks.1.attn.q.weight", "linear", 1),
]

GOOD: dict[str, Any] = {
    "schema": SCHEMA,
    "candidate": {"path": "out", "family": "wan2.2-t2v-a14b", "layout": "diffusers"},
    "reference": {"path": "src"},
    "settings": {},
    "notes": [],
    "experts_wanted": ["expert.high", "expert.low"],
    "experts_exercised": ["expert.high", "expert.low"],
    "cannot_judge": [],
    "storage": [
        {
            "tensor": "expert.high/blocks.0.ffn.up.weight",
            "kind": "linear",
            "source": "fp32",
            "dtype": "bf16",
            "format": "bf16",
            "relative_l2": 0.0017,
            "first_not_finite": None,
            "flushed_share": 0.0,
        }
    ],
    "safety": [
        {
            "component": "expert.high",
            "numerics": "official",
            "largest": 30.0,
            "largest_at": "blocks.0.ffn.up:linear",
            "headroom": 1e37,
            "first_bad": None,
            "op_internal": [],
            "accumulators": [],
        }
    ],
    "steps": [
        {"component": "expert.high", "timestep": 999, "format": "bf16", "relative_l2": 0.004, "worst_block": "blocks.0"}
    ],
    "components": [{"component": "vae", "what": "decoded video", "format": "fp16", "relative_l2": 0.0003}],
    "video": None,
}
