"""Results of validations that never ran, in the schema of wanconv.verdict, with clips of moving shapes."""

import json
from collections.abc import Callable, Mapping
from math import exp, log10, sin
from typing import Any

import numpy as np

from wanconv.evaluation.report.clips import Frames
from wanconv.evaluation.report.comparison import Side
from wanconv.verdict import judge, load_profile

Sample = tuple[dict[str, Any], dict[str, Frames] | None]
EXPERTS = ("expert.high", "expert.low")
ROOMS = ("attn.q", "attn.k", "attn.v", "attn.out", "cross_attn.q", "cross_attn.out", "ffn.up", "ffn.down")
LAYERS = 40


def clips(count: int = 5, height: int = 96, width: int = 96, error: float = 0.004) -> dict[str, Frames]:
    """Returns a reference, a candidate and a control: a hill, a sun and a swimmer, with the grain of a decoder."""
    return {
        "reference": clip(count, height, width, 0.0, 1),
        "candidate": clip(count, height, width, error, 2),
        "control": clip(count, height, width, 0.001, 3),
    }


def clip(count: int, height: int, width: int, shift: float, seed: int) -> Frames:
    random = np.random.default_rng(seed)
    grain = np.random.default_rng(0)
    y, x = (axis.astype(np.float32) / height for axis in np.mgrid[0:height, 0:width])
    frames = []
    for time in np.linspace(0, 1, count):
        sky = np.stack([0.95 - 0.5 * y, 0.62 - 0.1 * y, 0.45 + 0.3 * y], axis=2)
        sun = 1 / (1 + np.exp(((x - 0.3 - 0.35 * time - shift) ** 2 + (y - 0.28) ** 2 - 0.015) * 400))
        hill = 1 / (1 + np.exp((0.62 + 0.06 * np.sin(5 * x + 1.5 * time + 4 * shift) - y) * 90))
        ball = 1 / (1 + np.exp(((x - 0.75 + 0.3 * time) ** 2 + (y - 0.7 - shift) ** 2 - 0.006) * 600))
        frame = sky
        for mask, colour in ((sun, (1.0, 0.93, 0.7)), (hill, (0.13, 0.3, 0.38)), (ball, (0.9, 0.35, 0.25))):
            frame = frame * (1 - mask[..., None]) + np.array(colour, np.float32) * mask[..., None]
        texture = grain.normal(0, 0.006, frame.shape) + random.normal(0, shift, frame.shape)
        frames.append(np.clip(frame + texture, 0, 1))
    return np.stack(frames).astype(np.float32)


def _steps(scale: float, format_: str) -> list[dict[str, Any]]:
    rows = []
    for expert, times in zip(EXPERTS, ((999, 937, 875), (874, 500, 100)), strict=True):
        for time in times:
            for branch in ("prompt", "negative prompt"):
                level = scale * (1 + (1000 - time) / 900) * (1 if branch == "prompt" else 0.8)
                forced = [
                    level * 0.12 * exp(0.35 * sin(i * 1.7 + time) + (1.6 if i == 37 else 0)) for i in range(LAYERS)
                ]
                blocks = [
                    {
                        "block": f"blocks.{i}",
                        "forced_relative_l2": one,
                        "running_relative_l2": level * (0.15 + 0.75 * (i / LAYERS) ** 0.5) * exp(0.1 * sin(i)),
                    }
                    for i, one in enumerate(forced)
                ]
                rows.append(
                    {
                        "component": expert,
                        "timestep": time,
                        "branch": branch,
                        "format": format_,
                        "relative_l2": level,
                        "sqnr_db": -20 * log10(level),
                        "cosine": 1 - level**2 / 2,
                        "worst_block": "blocks.37",
                        "blocks": blocks,
                    }
                )
    return rows


def _ranges() -> list[dict[str, Any]]:
    def largest(i: int, room: str) -> float:
        return (
            (3 + 0.6 * i)
            * (9 if room == "ffn.down" else 2 if room == "ffn.up" else 1)
            * exp(0.4 * sin(i * 3 + len(room)))
        )

    return [{"path": f"blocks.{i}.{room}", "largest": largest(i, room)} for i in range(LAYERS) for room in ROOMS]


def _safety(numerics: str) -> list[dict[str, Any]]:
    found = []
    for component in (*EXPERTS, "text_encoder", "vae"):
        ranges = _ranges() if component in EXPERTS else _ranges()[: 12 * len(ROOMS)]
        top = max(ranges, key=lambda one: float(one["largest"]))
        found.append(
            {
                "component": component,
                "numerics": numerics,
                "operations": 5 * len(ranges),
                "largest": top["largest"],
                "largest_at": top["path"],
                "headroom": (65504 if "fp16" in numerics else 3.3895313892515355e38) / top["largest"],
                "first_bad": None,
                "last_operations": [],
                "op_internal": [],
                "ranges": ranges,
            }
        )
    return found


def passed() -> Sample:
    """A bf16 conversion of an fp32 source, as it should be."""
    results: dict[str, Any] = {
        "schema": "wanconv.validation/1",
        "candidate": {
            "path": "/models/Wan2.2-T2V-A14B-bf16",
            "family": "wan2.2-t2v-a14b",
            "release": "Wan2.2-T2V-A14B",
            "layout": "diffusers",
            "nbytes": 57_153_000_000,
            "dtypes": {"bf16": 57_152_000_000, "fp32": 1_000_000},
            "components": {"expert.high": {"network": "wan-dit", "nbytes": 28_577_000_000}},
            "manifest": "9f2b7c3e" * 8,
        },
        "reference": {
            "path": "/models/Wan2.2-T2V-A14B",
            "family": "wan2.2-t2v-a14b",
            "release": "Wan2.2-T2V-A14B",
            "layout": "official",
            "nbytes": 114_306_000_000,
            "dtypes": {"fp32": 114_306_000_000},
            "manifest": None,
        },
        "settings": {
            "profile": "standard",
            "numerics": "diffusers",
            "steps": 4,
            "size": "256x256",
            "frames": 5,
            "seed": 0,
            "prompt": "A red ball rolls over a dark hill at sunset, a pale sun moving through an orange sky.",
            "device": "cpu",
            "full_length": False,
            "command": "wanconv validate /models/Wan2.2-T2V-A14B-bf16 --against /models/Wan2.2-T2V-A14B -o report",
        },
        "notes": ["No tokenizer came with the checkpoint: the context is synthetic, from seed 0."],
        "experts_wanted": list(EXPERTS),
        "experts_exercised": list(EXPERTS),
        "cannot_judge": [],
        "storage": [
            {
                "tensor": "expert.low/blocks.3.ffn.up.bias",
                "source": "fp32",
                "dtype": "bf16",
                "format": "bf16",
                "relative_l2": 1.7e-3,
                "first_not_finite": None,
                "flushed_share": 3.1e-5,
            }
        ],
        "safety": _safety("diffusers"),
        "steps": _steps(2.4e-3, "bf16"),
        "components": [
            {
                "component": "text_encoder",
                "what": "text embedding",
                "format": "bf16",
                "relative_l2": 6.1e-3,
                "sqnr_db": 44.3,
                "cosine": 0.99998,
            },
            {
                "component": "vae",
                "what": "decoded video",
                "format": "exact",
                "relative_l2": 0.0,
                "sqnr_db": None,
                "cosine": 1.0,
            },
        ],
        "video": {
            "frames": 5,
            "fps": 16,
            "size": "256x256",
            "candidate": {
                "psnr": {"identical": False, "psnr_db": 38.4, "frames_db": [38.0, 38.8]},
                "ssim": 0.9742,
                "flow_warp_error": 0.00113,
                "flicker": {"flicker_ratio": 1.004, "change": 0.021},
                "lpips": {"metric": "LPIPS", "reason": "not computed: no backbone"},
                "black_frames": [],
            },
            "control": {
                "psnr": {"identical": False, "psnr_db": 41.9, "frames_db": [41.9]},
                "ssim": 0.9858,
                "flow_warp_error": 0.00109,
                "flicker": {"flicker_ratio": 1.001, "change": 0.021},
                "lpips": {"metric": "LPIPS", "reason": "not computed: no backbone"},
                "black_frames": [],
            },
        },
        "runs": [
            {
                "model": "candidate",
                "seconds_per_step": 41.3,
                "peak_anonymous_nbytes": 1_910_000_000,
                "read_nbytes": 228_600_000_000,
            },
            {
                "model": "reference",
                "seconds_per_step": 63.8,
                "peak_anonymous_nbytes": 3_420_000_000,
                "read_nbytes": 457_200_000_000,
            },
        ],
        "tool": {
            "wanconv": "0.1.0",
            "torch": "2.13.0",
            "diffusers": "0.42.1",
            "python": "3.11.9",
            "machine": "x86_64, 2 cores",
        },
    }
    return results, clips()


def failed() -> Sample:
    """Block 37 of the experts lost its scale in fp8."""
    results, _ = passed()
    results["steps"] = _steps(7.9e-2, "fp8_e4m3fn")
    results["candidate"] |= {
        "nbytes": 29_400_000_000,
        "dtypes": {"fp8_e4m3fn": 27_700_000_000, "bf16": 1_699_000_000, "fp32": 1_000_000},
    }
    results["video"]["candidate"] |= {"psnr": {"identical": False, "psnr_db": 17.1}, "ssim": 0.6120}
    return results, clips(error=0.05)


def not_finite() -> Sample:
    """The residual stream of a late block goes past fp16."""
    results, moving = passed()
    assert moving is not None
    results["settings"] |= {"numerics": "fp16"}
    results["safety"] = _safety("fp16")
    bad = results["safety"][1]
    last = [
        {
            "path": f"blocks.{34 + i // 5}.{ROOMS[i % 8]}",
            "op": op,
            "smallest": 1e-6 * (i + 1),
            "largest": 40.0 * 1.46**i,
        }
        for i, op in enumerate(["aten.addmm", "aten.mul", "aten.gelu", "aten.add"] * 5)
    ]
    last[-1] |= {"path": "blocks.37.ffn.residual", "op": "aten.add", "largest": None}
    bad |= {
        "largest": 65504.0,
        "largest_at": "blocks.37.ffn.residual",
        "headroom": None,
        "first_bad": {
            "path": "blocks.37.ffn.residual",
            "op": "aten.add",
            "cause": "an overflow",
            "step": 2,
            "timestep": 500,
            "expert": "low",
        },
        "last_operations": last,
    }
    for one in bad["ranges"]:
        one["largest"] = (
            one["largest"] * 30 if not one["path"].startswith(("blocks.37", "blocks.38", "blocks.39")) else None
        )
    results["storage"] = [
        {
            "tensor": "text_encoder/blocks.2.ffn.wo.weight",
            "source": "bf16",
            "dtype": "fp16",
            "format": "fp16",
            "relative_l2": None,
            "first_not_finite": "inf at [17, 402]",
            "flushed_share": 0.0,
        }
    ]
    moving["candidate"][3:, 32:48] = np.nan
    return results, moving


def cannot_judge() -> Sample:
    """Too few steps for the second expert."""
    results, moving = passed()
    results["experts_exercised"] = ["expert.high"]
    results["steps"] = [row for row in results["steps"] if row["component"] == "expert.high"]
    results["cannot_judge"] = ["the candidate's VAE is not among its files"]
    return results, moving


def alone() -> Sample:
    """No --against: NaN safety of one model."""
    results, moving = passed()
    assert moving is not None
    results |= {"reference": None, "steps": [], "components": [], "runs": results["runs"][:1], "storage": []}
    results["video"] = {
        "frames": 5,
        "fps": 16,
        "size": "256x256",
        "candidate": {"lpips": {"metric": "LPIPS", "reason": "not computed: no backbone"}, "black_frames": []},
        "control": {},
    }
    return results, {"candidate": moving["candidate"]}


def no_video() -> Sample:
    """Profile quick: single steps alone."""
    results, _ = passed()
    results |= {"video": None}
    results["settings"] |= {"profile": "quick"}
    return results, None


def bare() -> Sample:
    """As little as the schema allows."""
    keys = (
        "notes",
        "experts_wanted",
        "experts_exercised",
        "cannot_judge",
        "storage",
        "safety",
        "steps",
        "components",
        "runs",
    )
    model: dict[str, Any] = {
        "path": "m",
        "family": "wan",
        "release": None,
        "layout": None,
        "nbytes": 0,
        "dtypes": {},
        "manifest": None,
    }
    return {"candidate": model, "reference": None, "settings": {}, "video": None, "tool": {}} | {
        key: [] for key in keys
    }, None


SAMPLES: Mapping[str, Callable[[], Sample]] = {
    made.__name__: made for made in (passed, failed, not_finite, cannot_judge, alone, no_video, bare)
}


def sides(good: str, broken: str) -> list[Side]:
    """Returns a conversion of which validate says what a sample's name says, and a broken one likewise."""
    return [_side("fp8-scaled", good, ""), _side("broken", broken, "one scale is doubled")]


def _side(name: str, sample: str, damage: str) -> Side:
    results, _ = SAMPLES[sample]()
    results = as_json(results)
    results["video"]["candidate"]["ssim"] = {"ssim_luma": 0.97, "ssim_luma_min": 0.95, "ssim_rgb": 0.96}
    profile = load_profile("standard")
    failures = [f"{EXPERTS[0]}/blocks.0 is too far off"] if sample == "failed" else []
    proof = f"{len(failures)} tensors out of bounds" if failures else "all 9 tensors within their bounds"
    return Side(
        name,
        "for comfyui",
        results,
        judge(results, profile),
        profile,
        proof,
        failures,
        f"reports/{name}/validation.html",
        damage,
    )


def as_json(results: dict[str, Any]) -> dict[str, Any]:
    """Returns results as they come back from their file; refuses what JSON does not hold."""
    read: dict[str, Any] = json.loads(json.dumps(results, allow_nan=False))
    return read
