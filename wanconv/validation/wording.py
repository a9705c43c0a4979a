"""The words of the validation page: headlines, the five classes and what they mean, names of metrics, figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from wanconv.verdict import Outcome

HEADLINES: Mapping[Outcome, str] = {
    "PASS": "The converted model passed",
    "FAIL": "The converted model failed: it is further off than its format explains",
    "NOT FINITE": "The converted model breaks: NaN or infinity",
    "CANNOT JUDGE": "No judgement: this run is not enough to tell",
}

_METRICS = {
    "psnr_db": "PSNR (dB)",
    "psnr_min_db": "PSNR of the worst frame (dB)",
    "ssim": "SSIM",
    "ssim_luma": "SSIM of luma",
    "ssim_luma_min": "SSIM of luma, worst frame",
    "ssim_rgb": "SSIM of RGB",
    "lpips": "LPIPS",
    "lpips_max": "LPIPS of the worst frame",
    "warp_error": "Flow-warp error",
    "reference_warp_error": "Flow-warp error of the reference",
    "excess_warp_error": "Flow-warp error beyond the reference's",
    "measured": "Share of pixels that the flow covers",
    "change": "Change from frame to frame",
    "reference_change": "Change from frame to frame in the reference",
}


@dataclass(frozen=True, slots=True)
class Class:
    """One of the five ways in which a conversion goes wrong, which a report never mixes."""

    letter: str
    name: str
    question: str
    meaning: str


CLASSES = (
    Class(
        "A",
        "storage",
        "Are the numbers in the file sound?",
        "Each weight was read as it is stored. This proves the file, and says nothing about computing with it: weights "
        "that fit a format exactly can still make numbers on the way that do not.",
    ),
    Class(
        "B",
        "activations",
        "How close do the numbers on the way come to overflow?",
        "The largest magnitude that any operation gave, against the largest finite number of the compute format. It "
        "holds for the inputs of this run; longer clips and other prompts can reach higher, hence the margin.",
    ),
    Class(
        "C",
        "op-internal",
        "Would a step inside an operation overflow?",
        "Some operations go through larger numbers than they return: RMSNorm squares its input, softmax exponentiates. "
        "A client that computes those steps in fp16 overflows even where input and output look harmless.",
    ),
    Class(
        "D",
        "accumulator",
        "Could a sum overflow before it is complete?",
        "A bound on each sum of products that holds in any order of summation. It matters on hardware and settings "
        "that add up in fp16; below the limit, no order can overflow.",
    ),
    Class(
        "E",
        "accumulated error",
        "How far does the result part from the reference?",
        "Both models get the same inputs at each probed step (teacher forcing), so that the difference is the "
        "conversion's own. Whole videos are chaotic: they are shown next to a control run, and not judged.",
    ),
)


def figure(value: object, digits: int = 3) -> str:
    """Returns a number with so many digits, and in words what is no number."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**6:
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if not isinstance(value, int | float):
        return str(value)
    if not isfinite(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def size(nbytes: object) -> str:
    """Returns a byte count in the units of the command line: 27.6 GB is 27.6e9 bytes."""
    if not isinstance(nbytes, int | float):
        return "–"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{nbytes:.0f}\N{NO-BREAK SPACE}B"


def label(metric: str) -> str:
    """Returns a metric's name for people."""
    return _METRICS.get(metric) or capital(metric.replace("_", " "))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def metric_figures(video: object, of: str) -> dict[str, str]:
    """Returns figures by label: those of the whole clip, of groups of metrics and single ones alike."""
    found: dict[str, str] = {}
    measured = video.get(of) if isinstance(video, Mapping) else None
    for name, value in (measured or {}).items():
        if isinstance(value, Mapping) and "reason" in value:
            found[label(name)] = str(value["reason"])
        elif isinstance(value, Mapping):
            same = value.get("identical") is True
            figures = {
                key: one for key, one in value.items() if key != "identical" and not isinstance(one, list | tuple)
            }
            found |= {
                label(key): "identical" if same and one is None else figure(one, 4) for key, one in figures.items()
            }
        elif isinstance(value, list | tuple):  # numbers of frames, from 0
            found[label(name)] = ", ".join(str(one + 1) for one in value) or "none"
        elif value is not None:
            found[label(name)] = figure(value, 4)
    return found
