"""The words about a validation, on the page and in a terminal: headlines, the sentence why, the five classes and what
they mean, names of metrics, figures."""

from collections.abc import Mapping
from dataclasses import dataclass

from wanconv.types import figures
from wanconv.verdict import AMPLE, Check, Outcome, Profile, Results, Verdict

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
    """Returns a number with this many digits; NaN and infinity in words."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return figures.figure(value, digits).replace(",", "\N{NARROW NO-BREAK SPACE}")


def size(nbytes: object) -> str:
    """Returns a byte count in the units of the command line: 27.6 GB is 27.6e9 bytes."""
    return figures.size(int(nbytes)).replace(" ", "\N{NO-BREAK SPACE}") if isinstance(nbytes, int | float) else "–"


def label(metric: str) -> str:
    """Returns a metric's name for people."""
    return _METRICS.get(metric) or capital(metric.replace("_", " "))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def metric_figures(video: object, of: str) -> dict[str, str]:
    """Returns figures by label: those of the whole clip, of groups of metrics and single ones alike."""
    return {name: text for name, (_, text) in metrics(video, of).items()}


def metrics(video: object, of: str) -> dict[str, tuple[object, str]]:
    """Returns the same, each as it was measured and as it is written."""
    found: dict[str, tuple[object, str]] = {}
    measured = video.get(of) if isinstance(video, Mapping) else None
    for name, value in (measured or {}).items():
        if isinstance(value, Mapping) and "reason" in value:
            found[label(name)] = None, str(value["reason"])
        elif isinstance(value, Mapping):
            same = value.get("identical") is True
            single = {
                key: one for key, one in value.items() if key != "identical" and not isinstance(one, list | tuple)
            }
            found |= {
                label(key): (one, "identical" if same and one is None else figure(one, 4))
                for key, one in single.items()
            }
        elif isinstance(value, list | tuple):  # numbers of frames, from 0; or whose clip is not finite
            shown = (str(one + 1) if isinstance(one, int) else str(one) for one in value)
            found[label(name)] = list(value), ", ".join(shown) or "none"
        elif value is not None:
            found[label(name)] = value, figure(value, 4)
    return found


def why(results: Results, verdict: Verdict, profile: Profile) -> str:
    """Returns the one sentence that tells what decided the verdict."""
    decided = [check for check in verdict.checks if check.outcome == verdict.outcome]
    if not decided:
        return "Nothing was checked."
    if verdict.outcome != "PASS":
        first = max(decided, key=lambda check: allowed_share(check) or 0)
        allowed = f" is {figure(first.value)} where {limit_of(first)} is allowed" if first.value is not None else ""
        others = f" {len(decided)} checks ended so." if len(decided) > 1 else ""
        return f"{capital(first.name)}, {first.where}{',' if allowed else ''}{allowed}: {first.message}.{others}"
    if not results.get("reference"):
        return "No NaN and no overflow was found. Quality is not judged: there was no reference to compare with."
    warned = len(verdict.checks) - len(decided)
    passed = f"{figures.count(len(decided), 'check')} of profile {profile.name} passed"
    passed += f", {warned} warned" if warned else ""
    tightest = max(decided, key=lambda check: allowed_share(check) or 0)
    if (used := allowed_share(tightest)) is None:
        return f"{passed}."
    return f"{passed}; the tightest, {tightest.name} in {tightest.where}, used {used:.0%} of its limit."


def allowed_share(check: Check) -> float | None:
    """Returns the share of the allowed that a check used; headroom is allowed downwards, errors upwards."""
    if check.value is None or check.limit is None:
        return None
    part, whole = (check.limit, check.value) if check.of_headroom else (check.value, check.limit)
    return part / whole if whole > 0 else None


def limit_of(check: Check) -> str:
    """Returns a check's limit and on which side of it is good."""
    if check.limit is None:
        return "–"
    return f"≥ {figure(check.limit)} ×" if check.of_headroom else f"≤ {figure(check.limit)}"


def value_of(check: Check) -> str:
    """Returns what a check measured."""
    return "–" if check.value is None else room(check.value) if check.of_headroom else figure(check.value)


def room(headroom: float) -> str:
    """Returns headroom as a factor."""
    return f"> {figure(AMPLE)} ×" if headroom > AMPLE else f"{figure(headroom)} ×"
