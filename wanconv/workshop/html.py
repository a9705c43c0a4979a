"""One HTML file of a validation: verdict, checks, clips, plots and provenance, for people.

The file stands alone: no script, style, font or picture from elsewhere, and a Content-Security-Policy that forbids all
but its own script and style, by their digests. Every string of the results is escaped by the template engine.
"""

import shlex
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from math import isfinite, log10
from typing import Any

import jinja2

from wanconv.verdict import Answer, Check, Outcome, Profile, Results, Verdict
from wanconv.workshop import clips as film
from wanconv.workshop import plots

Row = Mapping[str, Any]

FP16_MAX, BF16_MAX = 65504.0, 3.3895313892515355e38
_BRANCHES = ("cond", "uncond")

HEADLINES: Mapping[Outcome, str] = {
    "PASS": "The converted model passed",
    "FAIL": "The converted model failed: it is further off than its format explains",
    "NOT FINITE": "The converted model breaks: NaN or infinity",
    "CANNOT JUDGE": "No judgement: this run is not enough to tell",
}


_WORST: Sequence[Answer] = ("NOT FINITE", "FAIL", "CANNOT JUDGE", "WARNING", "PASS")
_METRICS = {
    "psnr_db": "PSNR (dB)",
    "psnr_min_db": "PSNR of the worst frame (dB)",
    "ssim": "SSIM",
    "ssim_luma": "SSIM of luma",
    "ssim_luma_min": "SSIM of luma, worst frame",
    "ssim_rgb": "SSIM of RGB",
    "lpips": "LPIPS",
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
_CLASS_OF_CHECK = {"storage": "A", "activations": "B", "op-internal": "C", "accumulator": "D"}
_OF_THE_RUN = ("exercised", "judged")


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A check as the table shows it; `used` is the share of what is allowed, 1 at the limit."""

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
    worst: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """An operation's range on a bar from 1e-8 to the limit, in percent."""

    row: Row
    left: float
    width: float
    kind: str


def render(results: Results, verdict: Verdict, profile: Profile, clips: Mapping[str, film.Frames] | None) -> str:
    """Returns the whole page; clips are the decoded videos by name, of which all have one size."""
    strip = film.filmstrip(clips) if clips else None
    style, script = _asset("validation.css"), _asset("validation.js")
    return (
        _environment()
        .get_template("validation.html.j2")
        .render(
            policy=_policy(style, script),
            style=style,
            script=script,
            r=results,
            verdict=verdict,
            profile=profile,
            headline=HEADLINES[verdict.outcome] if results.get("reference") else _alone(verdict.outcome),
            why=why(results, verdict, profile),
            tiles=tuple(_tiles(results, verdict)),
            checks=[_check_row(check) for check in sorted(verdict.checks, key=lambda one: _WORST.index(one.outcome))],
            classes=[(one, _state(one.letter, results, verdict)) for one in CLASSES],
            strip=strip,
            lost={name: film.not_finite(frames) for name, frames in (clips or {}).items()},
            errors=[_error_panel(name, rows, profile) for name, rows in _by_component(results)],
            headroom=[_headroom_panel(row, profile) for row in _rows(results, "safety") if row.get("ranges")],
            broken=[(row, _spans(row)) for row in _rows(results, "safety") if row.get("first_bad")],
            metrics=_metrics(results.get("video"), "candidate"),
            chaos=_metrics(results.get("video"), "control"),
            command=_command(results),
        )
        .lstrip()  # what macros leave before the first line
    )


def why(results: Results, verdict: Verdict, profile: Profile) -> str:
    """Returns the one sentence that tells what decided the verdict."""
    decided = [check for check in verdict.checks if check.outcome == verdict.outcome]
    if not decided:
        return "Nothing was checked."
    if verdict.outcome != "PASS":
        first = max(decided, key=lambda check: _used(check) or 0)
        allowed = f" is {figure(first.value)} where {_limit(first)} is allowed" if first.value is not None else ""
        others = f" {len(decided)} checks ended so." if len(decided) > 1 else ""
        return f"{_capital(first.name)}, {first.where}{',' if allowed else ''}{allowed}: {first.message}.{others}"
    if not results.get("reference"):
        return "No NaN and no overflow was found. Quality is not judged: there was no reference to compare with."
    tightest = max(verdict.checks, key=lambda check: _used(check) or 0)
    if (used := _used(tightest)) is None:
        return f"All checks of profile {profile.name} passed."
    counted = f"All {len(decided)} checks of profile {profile.name} passed"
    return f"{counted}; the tightest, {tightest.name} in {tightest.where}, used {used:.0%} of its limit."


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


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "size": size, "capital": _capital}
    environment.tests["mapping_"] = lambda value: isinstance(value, Mapping)
    return environment


@cache
def _asset(name: str) -> str:
    return (resources.files("wanconv") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _rows(results: Results, name: str) -> Sequence[Row]:
    value = results.get(name) or []
    assert isinstance(value, list)
    return value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _metrics(video: object, of: str) -> dict[str, str]:
    """Returns figures by label: those of the whole clip, of groups of metrics and single ones alike."""
    found: dict[str, str] = {}
    measured = video.get(of) if isinstance(video, Mapping) else None
    for name, value in (measured or {}).items():
        if isinstance(value, Mapping) and "reason" in value:
            found[_label(name)] = f"not computed: {value['reason']}"
        elif isinstance(value, Mapping):
            same = value.get("identical") is True
            figures = {key: one for key, one in value.items() if key != "identical" and not isinstance(one, list)}
            found |= {
                _label(key): "identical" if same and one is None else figure(one, 4) for key, one in figures.items()
            }
        elif isinstance(value, list):  # numbers of frames, from 0
            found[_label(name)] = ", ".join(str(one + 1) for one in value) or "none"
        elif value is not None:
            found[_label(name)] = figure(value, 4)
    return found


def _label(metric: str) -> str:
    return _METRICS.get(metric) or _capital(metric.replace("_", " "))


def _alone(outcome: Outcome) -> str:
    return (
        "No NaN, no overflow" if outcome == "PASS" else HEADLINES[outcome].replace("The converted model", "The model")
    )


def _letter(check: Check) -> str:
    return "" if check.name in _OF_THE_RUN else _CLASS_OF_CHECK.get(check.name, "E")


def _used(check: Check) -> float | None:
    """Returns the share of the allowed that a check used; headroom is allowed downwards, errors upwards."""
    if check.value is None or check.limit is None:
        return None
    part, whole = (check.limit, check.value) if check.name == "activations" else (check.value, check.limit)
    return part / whole if whole > 0 else None


def _limit(check: Check) -> str:
    return f"≥ {figure(check.limit)}×" if check.name == "activations" else f"≤ {figure(check.limit)}"


def _check_row(check: Check) -> CheckRow:
    value = "–" if check.value is None else _room(check.value) if check.name == "activations" else figure(check.value)
    limit = "–" if check.limit is None else _limit(check)
    return CheckRow(check, _letter(check), value, limit, _used(check))


def _room(headroom: float) -> str:
    """Returns headroom as a factor; beyond ten thousand, no one asks how much."""
    return ">\N{NO-BREAK SPACE}10\N{NARROW NO-BREAK SPACE}000×" if headroom > 10_000 else f"{figure(headroom)}×"


def _state(letter: str, results: Results, verdict: Verdict) -> str:
    """Returns what this run says about one of the five classes: an outcome, or "not measured"."""
    found = {check.outcome for check in verdict.checks if _letter(check) == letter}
    for outcome in _WORST[:-1]:
        if outcome in found:
            return outcome
    if letter == "A":  # the rows are the tensors with something to say
        return "PASS" if results.get("storage") is not None else "not measured"
    keys = {"C": "op_internal", "D": "accumulators"}
    if letter in keys:  # these two speak only when something is wrong
        measured = any(row.get(keys[letter]) is not None for row in _rows(results, "safety"))
        return "PASS" if measured else "not measured"
    return "PASS" if found else "not measured"


def _tiles(results: Results, verdict: Verdict) -> Iterator[tuple[str, str, str]]:
    """Yields label, figure and remark of what people look for first."""
    passed = sum(check.outcome == "PASS" for check in verdict.checks)
    yield "checks passed", f"{passed} of {len(verdict.checks)}", ""
    errors = [check for check in verdict.checks if _letter(check) == "E" and check.value is not None]
    if errors:
        worst = max(errors, key=lambda check: _used(check) or 0)
        yield "largest error for its limit", figure(worst.value), f"{_limit(worst)}, {worst.where}"
    rooms = [row for row in _rows(results, "safety") if isinstance(row.get("headroom"), int | float)]
    if rooms:
        least = min(rooms, key=lambda row: float(row["headroom"]))
        yield "least headroom", _room(float(least["headroom"])), f"{least['component']} under {least['numerics']}"
    candidate, reference = results.get("candidate"), results.get("reference")
    if isinstance(candidate, Mapping):
        remark = ""
        if isinstance(reference, Mapping) and reference.get("nbytes"):
            remark = f"{candidate['nbytes'] / reference['nbytes']:.0%} of the reference"
        yield "size", size(candidate.get("nbytes")), remark
    runs = _rows(results, "runs")
    if runs:
        yield "time per step", f"{figure(runs[0].get('seconds_per_step'))} s", str(runs[0].get("model", ""))


def _by_component(results: Results) -> list[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for row in _rows(results, "steps"):
        if row.get("blocks"):
            found.setdefault(str(row["component"]), []).append(row)
    return list(found.items())


def _error_panel(component: str, rows: Sequence[Row], profile: Profile) -> Panel:
    """Returns the plots of the error that each block adds (forced) and of what has gathered up to it (running)."""
    blocks = [str(block["block"]) for block in rows[0]["blocks"]]
    short = [
        block.rpartition(".")[2] for block in blocks
    ]  # blocks.7 is 7 on an axis, as long as that is still one name
    axis = short if len(set(short)) == len(short) else blocks
    times = sorted({float(row["timestep"]) for row in rows}, reverse=True)
    hues = {time: round(i * 5 / max(1, len(times) - 1)) for i, time in enumerate(times)}
    rows = sorted(rows, key=lambda row: (-float(row["timestep"]), str(row.get("branch"))))

    def series(row: Row, key: str) -> plots.Series:
        by_block = {str(block["block"]): _number(block.get(key)) for block in row["blocks"]}
        branch = str(row.get("branch") or "")
        label = f"t = {figure(row['timestep'])}{', ' + branch if branch else ''}"
        values = [by_block.get(block) for block in blocks]
        return plots.Series(label, hues[float(row["timestep"])], branch == _BRANCHES[1], values)

    limits = profile.noise_relative_l2
    gates = {f"limit for {name}": limits[name] for name in {str(row["format"]) for row in rows} if name in limits}
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
            plots.error_plot("added by each block, given the reference's input", axis, forced, gates),
            plots.error_plot("gathered up to each block, running freely", axis, running, gates),
        ),
        tuple(forced),
        tuple(worst[:8]),
    )


def _headroom_panel(row: Row, profile: Profile) -> Panel:
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
        {"path": path, "largest": value, "headroom": _room(limit / value) if isfinite(value) and value else "–"}
        for path, value in worst
    )
    return Panel(str(row["component"]), (plot,), (), rows[:8])


def _compute_limit(row: Row) -> float:
    """Returns the largest finite number of the numerics that a component ran under, from its own figures if it can."""
    headroom, largest = _number(row.get("headroom")), _number(row.get("largest"))
    if headroom and largest and isfinite(headroom * largest):
        return min((FP16_MAX, BF16_MAX), key=lambda known: abs(log10(known) - log10(headroom * largest)))
    return FP16_MAX if "fp16" in str(row.get("numerics")) else BF16_MAX


def _spans(row: Row) -> list[Span]:
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
    """Returns a largest magnitude, where a figure that is absent is one that could not be told: not finite."""
    number = _number(value)
    return float("nan") if number is None else number


def _command(results: Results) -> str:
    settings = results.get("settings")
    command = settings.get("command") if isinstance(settings, Mapping) else None
    if isinstance(command, str):
        return command
    return shlex.join(str(word) for word in command) if command else ""
