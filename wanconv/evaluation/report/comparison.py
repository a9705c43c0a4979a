"""One HTML file about several conversions of one source: clips in step, error by block, sizes and verdicts, for people.

It stands alone as the page of one validation does (page.py); links lead to the pages of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from wanconv.evaluation.captions import classify
from wanconv.evaluation.report import clips as film
from wanconv.evaluation.report import page, plots
from wanconv.evaluation.report.html import PageRow, letter_of, rows_of
from wanconv.evaluation.report.wording import allowed_share, why
from wanconv.verdict import Profile, Results, Verdict

BAD = ("FAIL", "NOT FINITE")
_BROKEN_HUE = 5
_TOLD = 6  # failed checks of a broken one


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One of the conversions: what verify (`proof` in a few words, `failures`) and validate say of it.

    `link` leads to its own page; `damage` says what was spoilt on purpose, and is empty where nothing was.
    """

    name: str
    summary: str
    results: Results
    verdict: Verdict
    profile: Profile
    proof: str
    failures: Sequence[str]
    link: str
    damage: str = ""

    @property
    def proven(self) -> bool:
        return not self.failures

    @property
    def as_expected(self) -> bool:
        """True for a good one that passes, and for a broken one that verify and validate both find."""
        if self.damage:
            return not self.proven and self.verdict.outcome in BAD
        return self.proven and self.verdict.outcome == "PASS"


@dataclass(frozen=True, slots=True)
class Figures:
    """What the table says of one conversion. `error` is the one that used most of its limit, `used` the share."""

    nbytes: int
    share: float
    dtypes: Mapping[str, int]
    error: float | None
    used: float | None
    psnr_db: float | None
    ssim: float | None
    seen: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """The plot of one component, a line for each conversion."""

    component: str
    plot: plots.Plot
    legend: tuple[plots.Series, ...]


def render(title: str, sides: Sequence[Side], clips: Mapping[str, film.Frames], commands: Sequence[str]) -> str:
    """Returns the page; clips are `reference`, of the source, and one by each side's name, all of one size."""
    first = sides[0].results
    broken = next((side for side in sides if side.damage), None)
    values = {
        "title": title,
        "good": all(side.as_expected for side in sides),
        "headline": headline(sides),
        "sides": [(side, figures(side, clips.get(side.name))) for side in sides],
        "settings": first["settings"],
        "source": first["reference"],
        "seen": seen(clips["reference"]),
        "video": first["video"],
        "control": psnr_db(first, "control"),
        "strip": film.filmstrip(clips),
        "errors": tuple(_drawn(sides)),
        "broken": broken,
        "why": "" if broken is None else why(broken.results, broken.verdict, broken.profile),
        "failed": [] if broken is None else _failed(broken),
        "commands": commands,
    }
    return page.render("comparison.html.j2", ("validation.css", "comparison.css"), values)


def headline(sides: Sequence[Side]) -> str:
    """Returns the outcome of all in one sentence."""
    whole = [side for side in sides if not side.damage]
    passed = sum(side.as_expected for side in whole)
    said = f"{passed} of {len(whole)} conversions passed"
    for side in sides:
        if side.damage:
            said += ", and the broken one was caught" if side.as_expected else ", and the broken one was not caught"
    return said


def figures(side: Side, frames: film.Frames | None) -> Figures:
    """Returns what the table says of a conversion."""
    candidate, reference = side.results["candidate"], side.results["reference"]
    assert isinstance(candidate, Mapping)
    assert isinstance(reference, Mapping)
    judged = [check for check in side.verdict.checks if letter_of(check) == "E"]
    worst = max(judged, key=lambda check: allowed_share(check) or 0, default=None)
    return Figures(
        candidate["nbytes"],
        candidate["nbytes"] / reference["nbytes"],
        candidate["dtypes"],
        None if worst is None else worst.value,
        None if worst is None else allowed_share(worst),
        psnr_db(side.results, "candidate"),
        _metric(side.results, "candidate", "ssim", "ssim_luma"),
        "" if frames is None else seen(frames),
    )


def psnr_db(results: Results, of: str) -> float | None:
    """Returns the PSNR of a clip against the source's; None where they are the same, or one is not finite."""
    return _metric(results, of, "psnr", "psnr_db")


def seen(frames: film.Frames) -> str:
    """Returns what the classifier of the model's captions sees in a clip."""
    found = classify(film.pixels(np.asarray(frames)))
    return "nothing" if found is None else str(found)


def _metric(results: Results, of: str, group: str, name: str) -> float | None:
    video = results.get("video")
    measured = video.get(of) if isinstance(video, Mapping) else None
    value = measured.get(group, {}).get(name) if isinstance(measured, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _failed(side: Side) -> list[tuple[str, str, str, float | None, float | None]]:
    """Returns the failed checks, the furthest off first: outcome, name, where, value, limit."""
    bad = [check for check in side.verdict.checks if check.outcome in BAD]
    bad.sort(key=lambda check: -(allowed_share(check) or float("inf")))
    return [(one.outcome, one.name, one.where, one.value, one.limit) for one in bad[:_TOLD]]


def _drawn(sides: Sequence[Side]) -> Iterator[Drawn]:
    """Yields, for each denoiser, what its blocks add to the error at their worst probe."""
    components = dict.fromkeys(str(row["component"]) for row in rows_of(sides[0].results, "steps") if row["blocks"])
    for component in components:
        worst = [_worst_of_blocks(side, component) for side in sides]
        blocks = list(worst[0])
        lines = tuple(
            plots.Series(
                side.name,
                _BROKEN_HUE if side.damage else number,
                bool(side.damage),
                [found.get(block) for block in blocks],
            )
            for number, (side, found) in enumerate(zip(sides, worst, strict=True))
        )
        axis = [block.rpartition(".")[2] for block in blocks]
        title = "added by each block, given the source's input, at the worst of the probed timesteps"
        yield Drawn(component, plots.error_plot(title, axis, lines, {}), lines)


def _worst_of_blocks(side: Side, component: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for row in rows_of(side.results, "steps"):
        for block in row["blocks"] if row["component"] == component else ():
            name, value = str(block["block"]), _finite(block)
            known = found.get(name, 0.0)
            found[name] = None if known is None or value is None else max(known, value)
    return {name: float("nan") if value is None else value for name, value in found.items()}


def _finite(block: PageRow) -> float | None:
    value = block["forced_relative_l2"]
    return value if isinstance(value, int | float) and isfinite(value) else None
