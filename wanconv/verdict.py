"""Verdicts: what a validation measured, judged by a profile's thresholds, as often as one likes without running again.

Results are one JSON object, schema wanconv.validation/1:

    candidate, reference   {path, family, release, layout, nbytes, dtypes, manifest}; no --against: reference is null
    settings               {profile, numerics, steps, size, frames, seed, prompt, device, full_length, command}
    notes                  sentences: synthetic context, stale digests, absent components
    experts_wanted, experts_exercised, cannot_judge   component names; sentences that forbid a PASS
    storage                class A, the tensors with something to say: {tensor, source, dtype, format, relative_l2,
                           first_not_finite, flushed_share}
    safety                 classes B, C, D, per component: {component, numerics, operations, largest, largest_at,
                           headroom, first_bad: {path, op, step, timestep, expert} | null, last_operations: [{path, op,
                           smallest, largest}], op_internal: [{path, value, limit, why}], accumulators: [{path, value,
                           limit}], ranges: [{path, largest}]}
    steps                  class E, per teacher-forced probe: {component, timestep, branch, format, relative_l2,
                           sqnr_db, cosine, worst_block, blocks: [{block, forced_relative_l2, running_relative_l2}]}
    components             class E, encoders and VAE: {component, what, format, relative_l2, sqnr_db, cosine}
    video                  {frames, fps, size, candidate: {metric: value}, control: {metric: value}} | null
    runs                   per model: {model, seconds_per_step, peak_anonymous_nbytes, read_nbytes}
    tool                   versions
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from math import isfinite
from typing import Literal

from wanconv.errors import UsageError
from wanconv.naming import nearest
from wanconv.tensors import DTYPES

SCHEMA = "wanconv.validation/1"

Outcome = Literal["PASS", "FAIL", "NOT FINITE", "CANNOT JUDGE"]
Answer = Outcome | Literal["WARNING"]  # of one check; a warning leaves the verdict as it is
EXIT_CODES: Mapping[Outcome, int] = {"PASS": 0, "CANNOT JUDGE": 1, "NOT FINITE": 5, "FAIL": 6}
# What is worse comes first: NaN makes every other figure worthless, and what was not exercised was not judged.
_WORST: Sequence[Outcome] = ("NOT FINITE", "FAIL", "CANNOT JUDGE", "PASS")

Results = Mapping[str, object]
_FLUSHED = 0.01
_AMPLE = 1e6


@dataclass(frozen=True, slots=True)
class Profile:
    """What to run, and how far apart two models may be. Relative L2 limits are by storage format of the candidate."""

    name: str
    summary: str
    steps: int
    frames: int
    size: str
    probes: tuple[int | str, ...]
    video: bool
    accumulators: bool
    noise_relative_l2: Mapping[str, float]
    component_relative_l2: Mapping[str, float]
    weight_relative_l2: Mapping[str, float]
    headroom_fail: float
    headroom_warn: float


@dataclass(frozen=True, slots=True)
class Check:
    """One question of the verdict: `value` against `limit`, what it is about, and what the answer means."""

    name: str
    outcome: Answer
    value: float | None
    limit: float | None
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


def profiles() -> tuple[str, ...]:
    """Returns the names of the profiles that ship with wanconv, quickest first."""
    folder = resources.files("wanconv") / "profiles"
    found = {entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")}
    order = ("quick", "standard", "full")
    return tuple(sorted(found, key=lambda name: order.index(name) if name in order else len(order)))


def load_profile(name: str) -> Profile:
    """Returns a profile by name; raises UsageError for an unknown one."""
    if name not in profiles():
        guess = nearest(name, profiles())
        raise UsageError(
            f"there is no profile {name!r}", f"did you mean {guess}?" if guess else f"known: {', '.join(profiles())}"
        )
    table = tomllib.loads((resources.files("wanconv") / "profiles" / f"{name}.toml").read_text(encoding="utf-8"))
    run, headroom = table["run"], table["headroom"]
    return Profile(
        name=name,
        summary=table["summary"],
        steps=run["steps"],
        frames=run["frames"],
        size=run["size"],
        probes=tuple(run["probes"]),
        video=run["video"],
        accumulators=run["accumulators"],
        noise_relative_l2=table["noise_relative_l2"],
        component_relative_l2=table["component_relative_l2"],
        weight_relative_l2=table["weight_relative_l2"],
        headroom_fail=headroom["fail"],
        headroom_warn=headroom["warn"],
    )


def judge(results: Results, profile: Profile) -> Verdict:
    """Returns the verdict on saved results (schema wanconv.validation/1)."""
    checks = (
        *_storage(results, profile),
        *_safety(results, profile),
        *_exercised(results),
        *_quality(results, profile),
    )
    present = {check.outcome for check in checks}
    outcome: Outcome = next((one for one in _WORST if one in present), "CANNOT JUDGE")
    return Verdict(outcome, checks)


def coarsest(formats: Sequence[tuple[str, str]]) -> str:
    """Returns the limit's key for (reference dtype, candidate dtype) pairs: the lossy format with the fewest bits."""
    lossy = [stored for source, stored in formats if not DTYPES[stored].holds(DTYPES[source])]
    if not lossy:
        return "exact"
    return min(lossy, key=lambda name: (DTYPES[name].mantissa or 0) if DTYPES[name].is_float else 6)


def _section(results: Results, name: str) -> list[Mapping[str, object]]:
    value = results.get(name) or []
    assert isinstance(value, list)
    return value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _storage(results: Results, profile: Profile) -> Iterator[Check]:
    """Class A: the numbers in the file, each tensor held to the limit of the format that it is stored in."""
    for row in _section(results, "storage"):
        bad = row.get("first_not_finite")
        if bad is not None:
            message = f"the file holds {bad}: every product with it is lost"
            yield Check("storage", "NOT FINITE", None, None, str(row["tensor"]), message)
            continue
        value, key = _number(row.get("relative_l2")), str(row["format"])
        limit = profile.weight_relative_l2.get(key, 0.0)
        if value is None or value > limit:
            yield Check(
                "storage", "FAIL", value, limit, str(row["tensor"]), f"further from its source than {key} explains"
            )
        elif (_number(row.get("flushed_share")) or 0.0) > _FLUSHED:
            message = f"{_number(row['flushed_share']):.1%} of its numbers became zero"
            yield Check("storage", "WARNING", value, limit, str(row["tensor"]), message)


def _safety(results: Results, profile: Profile) -> Iterator[Check]:
    """Classes B, C and D: the numbers on the way, under the numerics that the run imitated."""
    for row in _section(results, "safety"):
        where, name = str(row["component"]), str(row["numerics"])
        bad = row.get("first_bad")
        if isinstance(bad, Mapping):
            message = f"under {name}, {bad.get('op')} is the first operation that is not finite"
            yield Check("activations", "NOT FINITE", None, None, f"{where}/{bad.get('path')}", message)
            continue
        headroom = _number(row.get("headroom"))
        if headroom is None:
            yield Check("activations", "CANNOT JUDGE", None, None, where, f"nothing was recorded under {name}")
            continue
        room = f"{headroom:.3g} times" if headroom < _AMPLE else "more than a million times"
        message = f"under {name}, the largest magnitude is {room} below the limit"
        if headroom < profile.headroom_warn:
            message += ": little room for longer clips"
        outcome: Outcome = "NOT FINITE" if headroom < profile.headroom_fail else "PASS"
        yield Check(
            "activations", outcome, headroom, profile.headroom_fail, f"{where}/{row.get('largest_at')}", message
        )
        for inner in row.get("op_internal") or []:  # type: ignore[attr-defined]  # a list of objects, by the schema
            yield Check(
                "op-internal",
                "WARNING",
                _number(inner["value"]),
                _number(inner["limit"]),
                inner["path"],
                inner["why"],
            )
        for bound in row.get("accumulators") or []:  # type: ignore[attr-defined]  # a list of objects, by the schema
            why = "some order of summation in fp16 overflows"
            yield Check(
                "accumulator", "NOT FINITE", _number(bound["value"]), _number(bound["limit"]), bound["path"], why
            )


def _exercised(results: Results) -> Iterator[Check]:
    wanted, seen = results.get("experts_wanted") or [], results.get("experts_exercised") or []
    assert isinstance(wanted, list)
    assert isinstance(seen, list)
    for expert in wanted:
        if expert not in seen:
            message = "the run never reached its timesteps: more steps, or the official shift"
            yield Check("exercised", "CANNOT JUDGE", None, None, str(expert), message)
    for reason in results.get("cannot_judge") or []:  # type: ignore[attr-defined]  # a list of sentences, by the schema
        yield Check("judged", "CANNOT JUDGE", None, None, "validation", str(reason))


def _quality(results: Results, profile: Profile) -> Iterator[Check]:
    """Class E: how far apart the two models are, given the same inputs."""
    for row in _section(results, "steps"):
        yield _error("noise prediction", row, profile.noise_relative_l2, f"{row['component']} at t={row['timestep']}")
    for row in _section(results, "components"):
        yield _error(str(row["what"]), row, profile.component_relative_l2, str(row["component"]))


def _error(name: str, row: Mapping[str, object], limits: Mapping[str, float], where: str) -> Check:
    value, key = _number(row.get("relative_l2")), str(row["format"])
    if value is None or not isfinite(value):
        return Check(name, "NOT FINITE", None, None, where, "one of the two is not finite")
    if key not in limits:
        return Check(name, "CANNOT JUDGE", value, None, where, f"the profile has no limit for {key}")
    outcome: Outcome = "PASS" if value <= limits[key] else "FAIL"
    worst = f"; {row['worst_block']} adds most" if outcome == "FAIL" and row.get("worst_block") else ""
    return Check(name, outcome, value, limits[key], where, f"relative L2, held to {key}{worst}")
