"""The table of metrics on (reference, candidate): name, unit, direction and source. It does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` is the field that holds the value in a result of `tensors` or `video`; `better` is the good direction."""

    name: str
    unit: str
    better: Literal["higher", "lower", "near 1"]
    source: str


_PSNR = "10 log10(1 / MSE) of [0, 1]"
_SSIM = (
    "Wang, Bovik, Sheikh, Simoncelli 2004 (doi:10.1109/TIP.2003.819861): Gaussian 11x11, sigma 1.5, K = (0.01, 0.03), "
    "L = 1, population covariance, valid region"
)
_LUMA = "luma as BT.601 weighs R'G'B' (0.299, 0.587, 0.114)"
_WARP = "Lai et al. 2018 (arXiv:1808.00449), E_warp along the reference's flow, without their occlusion mask"
_BLACK = "FFmpeg blackdetect's defaults: luma <= 0.10 in 98 % of the pixels"
_FROZEN = "FFmpeg freezedetect's default noise, -60 dB: mean |frame - previous| <= 0.001; of any duration"
_LPIPS = "Zhang et al. 2018 (arXiv:1801.03924), v0.1 on AlexNet; frames at their own size"

# fmt: off
_METRICS = (
    Metric("relative_l2",       "1",      "lower",  "||candidate - reference|| / ||reference||"),
    Metric("sqnr_db",           "dB",     "higher", "10 log10(||reference||^2 / ||candidate - reference||^2)"),
    Metric("cosine",            "1",      "higher", "<reference, candidate> / (||reference|| ||candidate||)"),
    Metric("max_abs_error",     "the tensor's", "lower", "max |candidate - reference|"),
    Metric("psnr_db",           "dB",     "higher", f"{_PSNR}; MSE over all frames, as FFmpeg's psnr averages"),
    Metric("psnr_min_db",       "dB",     "higher", f"{_PSNR}; the worst frame"),
    Metric("ssim_luma",         "1",      "higher", f"{_SSIM}; {_LUMA}; mean over frames"),
    Metric("ssim_luma_min",     "1",      "higher", f"{_SSIM}; {_LUMA}; the worst frame"),
    Metric("ssim_rgb",          "1",      "higher", f"{_SSIM}; mean of R, G and B; mean over frames"),
    Metric("warp_error",        "1",      "lower",  f"{_WARP}: mean squared difference of [0, 1]"),
    Metric("excess_warp_error", "1",      "lower",  f"{_WARP}: the candidate's minus the reference's own"),
    Metric("flicker_ratio",     "1",      "near 1", "mean |frame - previous|, the candidate's / the reference's"),
    Metric("black_frames",      "frames", "lower",  f"{_BLACK}; {_LUMA}"),
    Metric("frozen_frames",     "frames", "lower",  _FROZEN),
    Metric("lpips",             "1",      "lower",  f"{_LPIPS}; mean over frames"),
    Metric("lpips_max",         "1",      "lower",  f"{_LPIPS}; the worst frame"),
)
# fmt: on
METRICS: Mapping[str, Metric] = {each.name: each for each in _METRICS}
