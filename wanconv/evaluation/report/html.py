"""One HTML file of a validation: verdict, checks, clips, plots and provenance, for people.

The file stands alone: no script, style, font or picture from elsewhere, and a Content-Security-Policy that forbids all
but its own script and style, by their digests. Every string of the results is escaped by the template engine.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Any

from wanconv.evaluation.report import clips as film
from wanconv.evaluation.report import page, plots
from wanconv.evaluation.report.wording import (
    CLASSES,
    HEADLINES,
    allowed_share,
    figure,
    limit_of,
    metric_figures,
    room,
    size,
    value_of,
    why,
)
from wanconv.verdict import Answer, Check, Outcome, Profile, Results, Verdict

PageRow = Mapping[str, Any]

FP16_MAX, BF16_MAX = 65504.0, 3.3895313892515355e38
_WORST: Sequence[Answer] = ("NOT FINITE", "FAIL", "CANNOT JUDGE", "WARNING", "PASS")
_CLASS_OF_CHECK = {"storage": "A", "activations": "B", "op-internal": "C", "accumulator": "D"}
_OF_THE_RUN = ("exercised", "judged")


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A check as the table shows it; `used` is the value's share of its limit, 1 at the limit."""

    check: Check
    letter: str
    value: str
    limit: str
    used: float | None


@dataclass(frozen=True, slots=True)
class Panel:
    """The plots of one component, and the numbers that matter most in them."""

    component: str
    drawn: tuple[plots.Plot, ...]
    legend: tuple[plots.Series, ...]
    worst: tuple[PageRow, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """An operation's range on a bar from 1e-8 to the limit, in percent."""

    row: PageRow
    left: float
    width: float
    kind: str


def render(results: Results, verdict: Verdict, profile: Profile, clips: Mapping[str, film.Frames] | None) -> str:
    """Returns the whole page; clips are the decoded videos by name, of which all have one size."""
    values = {
        "r": results,
        "verdict": verdict,
        "profile": profile,
        "headline": HEADLINES[verdict.outcome] if results.get("reference") else _alone(verdict.outcome),
        "why": why(results, verdict, profile),
        "tiles": tuple(_tiles(results, verdict)),
        "checks": [_check_row(check) for check in sorted(verdict.checks, key=lambda one: _WORST.index(one.outcome))],
        "classes": [(one, _state(one.letter, results, verdict)) for one in CLASSES],
        "strip": film.filmstrip(clips) if clips else None,
        "lost": {name: film.not_finite(frames) for name, frames in (clips or {}).items()},
        "errors": [_error_panel(name, rows, profile) for name, rows in _by_component(results)],
        "headroom": [_headroom_panel(row, profile) for row in rows_of(results, "safety") if row.get("ranges")],
        "broken": [(row, _spans(row)) for row in rows_of(results, "safety") if row.get("first_bad")],
        "storage": [row for row in _by_error(results) if not _is_exact(row)],
        "exact": [row for row in _by_error(results) if _is_exact(row)],
        "metrics": metric_figures(results.get("video"), "candidate"),
        "chaos": metric_figures(results.get("video"), "control"),
        "command": _command(results),
    }
    return page.render("validation.html.j2", ("validation.css",), values)


def _by_error(results: Results) -> list[PageRow]:
    """Returns the rows of storage: what is not finite first, then the largest error, then what lost most to zero."""

    def key(row: PageRow) -> tuple[bool, float, float]:
        error, lost = _number(row.get("relative_l2")), _number(row.get("flushed_share")) or 0.0
        known = error is not None and isfinite(error)
        return row.get("first_not_finite") is None, -error if known and error is not None else float("-inf"), -lost

    return sorted(rows_of(results, "storage"), key=key)


def _is_exact(row: PageRow) -> bool:
    return row.get("relative_l2") == 0 and not row.get("flushed_share") and row.get("first_not_finite") is None


def rows_of(results: Results, name: str) -> Sequence[PageRow]:
    value = results.get(name) or []
    assert isinstance(value, list)
    return value


def _alone(outcome: Outcome) -> str:
    return (
        "No NaN, no overflow" if outcome == "PASS" else HEADLINES[outcome].replace("The converted model", "The model")
    )


def letter_of(check: Check) -> str:
    return "" if check.name in _OF_THE_RUN else _CLASS_OF_CHECK.get(check.name, "E")


def _check_row(check: Check) -> CheckRow:
    return CheckRow(check, letter_of(check), value_of(check), limit_of(check), allowed_share(check))


def _state(letter: str, results: Results, verdict: Verdict) -> str:
    """Returns what this run says about one of the five classes: an outcome, or "not measured"."""
    found = {check.outcome for check in verdict.checks if letter_of(check) == letter}
    for outcome in _WORST[:-1]:
        if outcome in found:
            return outcome
    if letter == "A":  # the rows are the tensors with something to say
        return "PASS" if results.get("storage") is not None else "not measured"
    keys = {"C": "op_internal", "D": "accumulators"}
    if letter in keys:  # these two speak only when something is wrong
        measured = any(row.get(keys[letter]) is not None for row in rows_of(results, "safety"))
        return "PASS" if measured else "not measured"
    return "PASS" if found else "not measured"


def _tiles(results: Results, verdict: Verdict) -> Iterator[tuple[str, str, str]]:
    """Yields label, figure and remark of the facts that people look for first."""
    passed = sum(check.outcome == "PASS" for check in verdict.checks)
    yield "checks passed", f"{passed} of {len(verdict.checks)}", ""
    errors = [check for check in verdict.checks if letter_of(check) == "E" and check.value is not None]
    if errors:
        worst = max(errors, key=lambda check: allowed_share(check) or 0)
        yield "largest error for its limit", figure(worst.value), f"{limit_of(worst)}, {worst.where}"
    rooms = [row for row in rows_of(results, "safety") if isinstance(row.get("headroom"), int | float)]
    if rooms:
        least = min(rooms, key=lambda row: float(row["headroom"]))
        yield "least headroom", room(float(least["headroom"])), f"{least['component']} under {least['numerics']}"
    candidate, reference = results.get("candidate"), results.get("reference")
    if isinstance(candidate, Mapping):
        remark = ""
        if isinstance(reference, Mapping) and reference.get("nbytes"):
            remark = f"{candidate['nbytes'] / reference['nbytes']:.0%} of the reference"
        yield "size", size(candidate.get("nbytes")), remark
    timed = [row for row in rows_of(results, "runs") if row.get("seconds_per_step") is not None][-3:]  # the free run's
    if timed:
        yield "time per step", f"{figure(timed[0]['seconds_per_step'])} s", str(timed[0]["model"])


def _by_component(results: Results) -> list[tuple[str, list[PageRow]]]:
    found: dict[str, list[PageRow]] = {}
    for row in rows_of(results, "steps"):
        if row.get("blocks"):
            found.setdefault(str(row["component"]), []).append(row)
    return list(found.items())


def _error_panel(component: str, rows: Sequence[PageRow], profile: Profile) -> Panel:
    """Returns the plots of the error that each block adds (forced) and of the error gathered up to it (running)."""
    blocks = [str(block["block"]) for block in rows[0]["blocks"]]
    short = [
        block.rpartition(".")[2] for block in blocks
    ]  # blocks.7 is 7 on an axis, as long as that is still one name
    axis = short if len(set(short)) == len(short) else blocks
    times = sorted({float(row["timestep"]) for row in rows}, reverse=True)
    hues = {time: round(i * 5 / max(1, len(times) - 1)) for i, time in enumerate(times)}
    rows = sorted(rows, key=lambda row: (-float(row["timestep"]), str(row.get("branch")).startswith("negative")))

    def series(row: PageRow, key: str) -> plots.Series:
        by_block = {str(block["block"]): _number(block.get(key)) for block in row["blocks"]}
        branch = str(row.get("branch") or "")
        label = f"t = {figure(row['timestep'])}{', ' + branch if branch else ''}"
        values = [by_block.get(block) for block in blocks]
        negative = branch == "negative prompt"
        return plots.Series(label, hues[float(row["timestep"])], negative, values, "other" if negative else "hue")

    formats = {str(row["format"]) for row in rows}
    own, gathered = (
        {f"limit for {name}": limits[name] for name in formats if name in limits}
        for limits in (profile.block_relative_l2, profile.noise_relative_l2)
    )
    forced = [series(row, "forced_relative_l2") for row in rows]
    running = [series(row, "running_relative_l2") for row in rows]
    every = [
        {"block": block["block"], "label": line.label, "forced": forced_, "running": block.get("running_relative_l2")}
        for row, line in zip(rows, forced, strict=True)
        for block in row["blocks"]
        if (forced_ := _number(block.get("forced_relative_l2"))) is not None
    ]
    worst = sorted(every, key=lambda one: one["forced"] if isfinite(one["forced"]) else float("inf"), reverse=True)
    return Panel(
        component,
        (
            plots.error_plot("added by each block, given the reference's input", axis, forced, own),
            plots.error_plot("gathered up to each block, running freely", axis, running, gathered),
        ),
        tuple(forced),
        tuple(worst[:8]),
    )


def _headroom_panel(row: PageRow, profile: Profile) -> Panel:
    ranges = [
        (f"{one['path']} {one['op']}" if one.get("op") else str(one["path"]), _magnitude(one.get("largest")))
        for one in row["ranges"]
    ]
    limit = _compute_limit(row)
    gates = {"fp16 ends at 65504": FP16_MAX, "bf16 ends at 3.39e38": BF16_MAX}
    near = limit / profile.headroom_warn
    gates[f"1/{figure(profile.headroom_warn)} of the limit"] = near
    plot = plots.headroom_plot(f"largest magnitude under {row['numerics']}", ranges, gates, limit, near)
    worst = sorted(ranges, key=lambda one: one[1] if isfinite(one[1]) else float("inf"), reverse=True)
    rows = tuple(
        {"path": path, "largest": value, "headroom": room(limit / value) if isfinite(value) and value else "–"}
        for path, value in worst
    )
    return Panel(str(row["component"]), (plot,), (), rows[:8])


def _compute_limit(row: PageRow) -> float:
    """Returns the largest finite number of the numerics that a component ran under, from its own figures if it can."""
    headroom, largest = _number(row.get("headroom")), _number(row.get("largest"))
    if headroom and largest and isfinite(headroom * largest):
        return min((FP16_MAX, BF16_MAX), key=lambda known: abs(log10(known) - log10(headroom * largest)))
    return FP16_MAX if "fp16" in str(row.get("numerics")) else BF16_MAX


def _spans(row: PageRow) -> list[Span]:
    limit = _compute_limit(row)
    whole = log10(limit) + 8

    def place(value: float) -> float:
        return min(max((log10(value) + 8) / whole, 0.0), 1.0) * 100 if value > 0 else 0.0

    spans = []
    for one in row.get("last_operations") or []:
        largest, smallest = _magnitude(one.get("largest")), _magnitude(one.get("smallest"))
        right = place(largest) if isfinite(largest) else 100.0
        left = min(place(smallest) if isfinite(smallest) else 100.0, right)
        kind = "lost" if not largest <= limit else "near" if largest * 4 > limit else "plain"
        spans.append(Span(one, round(left, 1), round(max(right - left, 1.0), 1), kind))
    return spans


def _number(value: object) -> float | None:
    """Returns a figure; JSON holds no NaN, and results may spell it as a string."""
    if isinstance(value, str):
        return float("nan")
    return float(value) if isinstance(value, int | float) else None


def _magnitude(value: object) -> float:
    """Returns a largest magnitude, where an absent figure means that it was not finite."""
    number = _number(value)
    return float("nan") if number is None else number


def _command(results: Results) -> str:
    settings = results.get("settings")
    command = settings.get("command") if isinstance(settings, Mapping) else None
    if isinstance(command, str):
        return command
    return shlex.join(str(word) for word in command) if command else ""
