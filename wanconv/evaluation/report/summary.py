"""What a terminal shows of a validation: verdict, checks with their limits, the clips' figures, where the page is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wanconv.evaluation.report.wording import allowed_share, limit_of, metrics, value_of, why
from wanconv.report import Cell, Finding, Report, Table, Tone
from wanconv.verdict import Check, Outcome, Profile, Verdict

TONES: Mapping[Outcome, Tone] = {
    "PASS": "success",
    "FAIL": "failure",
    "NOT FINITE": "failure",
    "CANNOT JUDGE": "warning",
}
PAGE = "validation.html"


def report(
    results: Mapping[str, Any], verdict: Verdict, profile: Profile, out: Path | None, clips: Sequence[str]
) -> Report:
    """Returns what `validate` says; `out` holds the page and the files of these clips."""
    settings, candidate, reference = results.get("settings") or {}, results["candidate"], results.get("reference")
    figures: dict[str, object] = {
        "verdict": verdict.outcome,
        "why": _plain(why(results, verdict, profile)),
        "candidate": Cell(
            candidate["path"], f"{candidate['path']}: {candidate['family']}, {candidate['layout']} layout"
        ),
        "reference": reference["path"] if reference else "none: only safety is judged",
        "profile": Cell(profile.name, f"{profile.name}: {profile.summary}"),
        "numerics": settings.get("numerics", "none"),
    }
    if out is not None:
        figures["page"] = str(out / PAGE)
        if clips:
            paths = [str(out / f"{name}.mp4") for name in clips]
            figures["clips"] = Cell(paths, ", ".join(paths))
    findings = [
        Finding("warning" if str(note).startswith("stale") else "note", "validation", str(note))
        for note in results.get("notes") or []
    ]
    return Report(
        "validate",
        f"{verdict.outcome}: {candidate['path']}",
        figures,
        (_checks(verdict.checks), *_clips(results.get("video"))),
        findings,
        {"results": results},
        verdict.exit_code,
        TONES[verdict.outcome],
    )


def _checks(checks: Sequence[Check]) -> Table:
    rows = tuple(
        (
            check.outcome,
            check.name,
            check.where,
            Cell(check.value, _plain(value_of(check))),
            Cell(check.limit, _plain(limit_of(check))),
            check.message,
        )
        for check in _worst(checks)
    )
    return Table("checks", ("outcome", "check", "where", "value", "limit", "meaning"), rows)


def _worst(checks: Sequence[Check]) -> list[Check]:
    """Returns the checks with those that passed shown once per question and component: the one nearest to its limit."""
    shown: dict[tuple[str, str], Check] = {}
    for number, check in enumerate(checks):
        component = check.where.partition(" ")[0].partition("/")[0]
        key = (check.name, component if check.outcome == "PASS" else f"{component} {number}")
        if key not in shown or (allowed_share(check) or 0) > (allowed_share(shown[key]) or 0):
            shown[key] = check
    return list(shown.values())


def _clips(video: object) -> tuple[Table, ...]:
    """Returns how far the clips are apart, next to the control, which shows how much of it is chaos."""
    candidate, control = (metrics(video, of) for of in ("candidate", "control"))
    if not candidate:
        return ()
    rows = [
        [name, Cell(value, _plain(text)), *([_cell(control.get(name))] if control else [])]
        for name, (value, text) in candidate.items()
    ]
    columns = ("clip", "candidate", "control") if control else ("clip", "candidate")
    return (Table("clips", columns, tuple(map(tuple, rows))),)


def _cell(measured: tuple[object, str] | None) -> Cell:
    return Cell(None, "–") if measured is None else Cell(measured[0], _plain(measured[1]))


def _plain(text: str) -> str:
    """Returns figures of the page as a terminal writes them."""
    return text.replace("\N{NARROW NO-BREAK SPACE}", ",")
