"""Verdicts: what a validation measured, judged by a profile's thresholds, as often as one likes without running again.

Results are one JSON object, schema wanconv.validation/1:

    candidate, reference   {path, family, release, layout, nbytes, sample, dtypes, manifest}; no --against: reference is
                           null; sample: a digest of some numbers of every tensor of the denoisers
    settings               {profile, numerics, steps, size, frames, seed, prompt, device, full_length, command,
                           given: {input: file}; what a network needs in addition is drawn or made up}
    notes                  sentences: synthetic context, stale digests, absent components
    experts_wanted, experts_exercised, cannot_judge   component names; sentences that forbid a PASS
    storage                class A, the tensors with something to say: {tensor, kind, source, dtype, format, relative_l2
                           (null: infinite), first_not_finite, flushed_share}
    safety                 classes B, C, D, per component: {component, numerics, operations, largest, largest_at,
                           headroom, first_bad: {path, op, step, timestep, expert} | null, last_operations: [{path, op,
                           smallest, largest}], op_internal: [{path, value, limit, why}], accumulators: [{path, value,
                           limit}], ranges: [{path, largest}]}; addcmul#2 is the second addcmul of one module
    steps                  class E, per teacher-forced probe: {component, timestep, branch, format, relative_l2,
                           sqnr_db, cosine, worst_block, blocks: [{block, forced_relative_l2, running_relative_l2}]}
    components             class E, encoders and VAE: {component, what, format, relative_l2, sqnr_db, cosine}
    video                  {frames, fps, size, candidate: {metric: value} | {not_finite: [whose]}, control: the same}
                           | null
    runs                   what was run: {model, seconds, seconds_per_step, peak_anonymous_nbytes, read_nbytes}
    tool                   versions
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Literal

from wanconv.quantization import Format, significand_bits, stored_as
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import count, figure
from wanconv.verdict.profile import Profile

Outcome = Literal["PASS", "FAIL", "NOT FINITE", "CANNOT JUDGE"]
Answer = Outcome | Literal["WARNING"]  # of one check; a warning leaves the verdict as it is
EXIT_CODES: Mapping[Outcome, int] = {"PASS": 0, "CANNOT JUDGE": 1, "NOT FINITE": 5, "FAIL": 6}
# What is worse comes first: NaN makes every other figure worthless, and what was not exercised was not judged.
_WORST: Sequence[Outcome] = ("NOT FINITE", "FAIL", "CANNOT JUDGE", "PASS")
Results = Mapping[str, object]
AMPLE = 10_000  # times: of more room than this, nobody asks how much


@dataclass(frozen=True, slots=True)
class Check:
    """One question of the verdict: `value` against `limit`, what it is about, and what the answer means."""

    name: str
    outcome: Answer
    value: float | None
    limit: float | None
    where: str
    message: str

    @property
    def of_headroom(self) -> bool:
        """True where more is better: the value is a factor that must reach the limit, not an error below it."""
        return self.name == "activations"


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


_UNKNOWN = Format("exact", None)


def judge(results: Results, profile: Profile) -> Verdict:
    """Returns the verdict on saved results (schema wanconv.validation/1)."""
    checks = (
        *_storage(results, profile),
        *_safety(results, profile),
        *_exercised(results),
        *_quality(results, profile),
        *_video(results),
    )
    present = {check.outcome for check in checks}
    outcome: Outcome = next((one for one in _WORST if one in present), "CANNOT JUDGE")
    return Verdict(outcome, checks)


def coarsest(formats: Sequence[tuple[str, str]]) -> str:
    """Returns the limit's key for (reference dtype, candidate dtype) pairs: the lossy format with the fewest bits."""
    lossy = [stored for source, stored in formats if not DTYPES[stored].holds(DTYPES[source])]
    if not lossy:
        return "exact"
    return min(lossy, key=significand_bits)


def _section(results: Results, name: str) -> list[Mapping[str, object]]:
    value = results.get(name) or []
    assert isinstance(value, list)
    return value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _storage(results: Results, profile: Profile) -> Iterator[Check]:
    """Class A: the numbers in the file, each tensor held to the limit of the format that it is stored in."""
    told: dict[tuple[object, ...], list[Check]] = {}
    for row in _section(results, "storage"):
        check = _stored(row, profile.weight_relative_l2)
        if check.outcome in ("PASS", "WARNING"):
            told.setdefault((check.outcome, check.where.partition("/")[0], row["format"]), []).append(check)
        else:
            yield check
    for checks in told.values():  # the worst of each component and format
        worst = max(checks, key=lambda check: check.value or 0.0)
        others = f"; {len(checks) - 1} more lost over 1 %" if worst.outcome == "WARNING" and len(checks) > 1 else ""
        yield replace(worst, message=worst.message + others)


def _stored(row: Mapping[str, object], limits: Mapping[str, float]) -> Check:
    where, value, key = str(row["tensor"]), _number(row.get("relative_l2")), str(row["format"])
    bad, flushed = row.get("first_not_finite"), _number(row.get("flushed_share")) or 0.0
    if bad is not None:
        return Check("storage", "NOT FINITE", None, None, where, f"the file holds {bad}: every product with it is lost")
    known = stored_as(key)
    if known is not None and known.linear_only and row.get("kind") != "linear":
        message = f"a {row.get('kind')} in {key}: clients compute these in 16 bits or more, and few load them so"
        return Check("storage", "FAIL", value, limits.get(key), where, message)
    if key not in limits:
        return Check("storage", "CANNOT JUDGE", value, None, where, f"the profile has no limit for {key}")
    if value is None or value > limits[key]:
        return Check("storage", "FAIL", value, limits[key], where, f"further from its source than {key} explains")
    if flushed > (known or _UNKNOWN).flushed_share:
        return Check("storage", "WARNING", value, limits[key], where, f"{flushed:.1%} of its numbers became zero")
    return Check("storage", "PASS", value, limits[key], where, f"relative L2 of a tensor, held to {key}")


def _safety(results: Results, profile: Profile) -> Iterator[Check]:
    """Classes B, C and D: the numbers on the way, under the numerics that the run imitated."""
    for row in _section(results, "safety"):
        component, name = str(row["component"]), str(row["numerics"])
        yield _activations(row, component, name, profile)
        for what, outcome, why in _INNER:
            for one in _section(row, what):
                message = str(one.get("why") or "") + why
                path = f"{component}/{one['path']}"
                yield Check(_NAMES[what], outcome, _number(one["value"]), _number(one["limit"]), path, message)


_NAMES = {"op_internal": "op-internal", "accumulators": "accumulator"}
_INNER: Sequence[tuple[str, Answer, str]] = (
    ("op_internal", "WARNING", " overflows inside of a kernel that computes it in fp16"),
    ("accumulators", "NOT FINITE", "a kernel that sums in fp16 can overflow on the way"),
)


def _activations(row: Mapping[str, object], component: str, name: str, profile: Profile) -> Check:
    bad, headroom, largest = row.get("first_bad"), _number(row.get("headroom")), _number(row.get("largest"))
    if isinstance(bad, Mapping):
        message = f"under {name}, {bad.get('op')} is the first operation that is not finite"
        return Check("activations", "NOT FINITE", None, None, f"{component}/{bad.get('path')}", message)
    if headroom is None:
        return Check("activations", "CANNOT JUDGE", None, None, component, f"nothing was recorded under {name}")
    where = f"{component}/{row.get('largest_at')}"
    room = f"{figure(headroom)} times" if headroom <= AMPLE else f"more than {AMPLE:,} times"
    message = f"under {name}, the largest magnitude is {room} below the limit"
    outcome: Answer = "NOT FINITE" if headroom < profile.headroom_fail else "PASS"
    if outcome == "PASS" and headroom < profile.headroom_warn:
        outcome, message = "WARNING", f"{message}: little room for longer clips"
    elif outcome == "PASS" and largest is not None and largest > DTYPES["fp16"].largest:
        outcome, message = (
            "WARNING",
            f"fine under {name}, but {figure(largest)} is too large for clients that run in fp16",
        )
    return Check("activations", outcome, headroom, profile.headroom_fail, where, message)


def _exercised(results: Results) -> Iterator[Check]:
    wanted, seen = results.get("experts_wanted") or [], results.get("experts_exercised") or []
    assert isinstance(wanted, list)
    assert isinstance(seen, list)
    for expert in wanted:
        if expert not in seen:
            message = "not exercised: missing from a model, or no probe reached its timesteps"
            yield Check("exercised", "CANNOT JUDGE", None, None, str(expert), message)
    for reason in results.get("cannot_judge") or []:  # type: ignore[attr-defined]  # a list of sentences, by the schema
        yield Check("judged", "CANNOT JUDGE", None, None, "validation", str(reason))


def _quality(results: Results, profile: Profile) -> Iterator[Check]:
    """Class E: how far apart the two models are, given the same inputs."""
    for row in _section(results, "steps"):
        yield _error("noise prediction", row, profile.noise_relative_l2, f"{row['component']} at t={row['timestep']}")
    yield from _blocks(_section(results, "steps"), profile.block_relative_l2)
    for row in _section(results, "components"):
        yield _error(str(row["what"]), row, profile.component_relative_l2, str(row["component"]))


def _blocks(steps: Sequence[Mapping[str, object]], limits: Mapping[str, float]) -> Iterator[Check]:
    """What each block adds when it is fed the reference's input: a denoiser's last step dilutes a single block's fault.

    Blocks off limits each have a check, at their worst step; of the others, the worst of each component.
    """
    worst: dict[tuple[str, str], Check] = {}
    for row in steps:
        for block in _section(row, "blocks"):
            key = str(row["component"]), str(block["block"])
            named = {"relative_l2": block.get("forced_relative_l2"), "format": row["format"]}
            check = _error("block", named, limits, "/".join(key))
            if key not in worst or _size(check) > _size(worst[key]):
                worst[key] = check
    passed: dict[str, Check] = {}
    for (component, _), check in worst.items():
        if check.outcome != "PASS":
            yield check
        elif component not in passed or _size(check) > _size(passed[component]):
            passed[component] = check
    yield from passed.values()


def _size(check: Check) -> float:
    return inf if check.value is None else check.value


def _video(results: Results) -> Iterator[Check]:
    """What the free run gave. Pictures that differ are shown and not judged; pictures that are none are."""
    video = results.get("video")
    metrics = video.get("candidate") if isinstance(video, Mapping) else None
    if not isinstance(metrics, Mapping):
        return
    if broken := metrics.get("not_finite"):
        assert isinstance(broken, list)
        yield Check("free run", "NOT FINITE", None, None, " and ".join(broken), "the generated video is not finite")
        return
    for what in ("black_frames", "frozen_frames"):
        ours, theirs = metrics.get(what) or (), metrics.get(f"reference_{what}") or ()
        assert isinstance(ours, Sequence)
        assert isinstance(theirs, Sequence)
        if len(ours) > len(theirs):
            frames = count(len(ours), what.removesuffix("s").replace("_", " "))
            message = f"{frames}, where the reference has {len(theirs)}"
            yield Check("free run", "WARNING", None, None, "candidate", message)


def _error(name: str, row: Mapping[str, object], limits: Mapping[str, float], where: str) -> Check:
    value, key = _number(row.get("relative_l2")), str(row["format"])
    if value is None or not isfinite(value):
        return Check(name, "NOT FINITE", None, None, where, "one of the two is not finite")
    if key not in limits:
        return Check(name, "CANNOT JUDGE", value, None, where, f"the profile has no limit for {key}")
    outcome: Outcome = "PASS" if value <= limits[key] else "FAIL"
    worst = f"; {row['worst_block']} adds most" if outcome == "FAIL" and row.get("worst_block") else ""
    return Check(name, outcome, value, limits[key], where, f"relative L2, held to {key}{worst}")
