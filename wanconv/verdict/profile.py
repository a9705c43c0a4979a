"""Profiles: what a validation runs, and how far apart two models may be."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from math import isfinite
from pathlib import Path
from types import UnionType

from wanconv.errors import UsageError
from wanconv.quantization import EXACT, FORMATS, Limits
from wanconv.storage.reading import brief, parsed_toml, small_text
from wanconv.types.dtypes import DTYPES
from wanconv.types.names import alternatives, nearest, suggestion

PROBES = ("first", "boundary", "below_boundary")


@dataclass(frozen=True, slots=True)
class Profile:
    """What to run, and how far apart two models may be. Relative L2 limits are by storage format of the candidate: the
    formats' own, which a profile may replace."""

    name: str
    summary: str
    steps: int
    frames: int
    size: str
    probes: tuple[int | str, ...]
    video: bool
    accumulators: bool
    noise_relative_l2: Mapping[str, float]
    block_relative_l2: Mapping[str, float]
    component_relative_l2: Mapping[str, float]
    weight_relative_l2: Mapping[str, float]
    headroom_fail: float
    headroom_warn: float


def profiles() -> tuple[str, ...]:
    """Returns the names of the profiles that ship with wanconv, quickest first."""
    folder = resources.files("wanconv.verdict") / "profiles"
    found = {entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")}
    order = ("quick", "standard", "full")
    return tuple(sorted(found, key=lambda name: order.index(name) if name in order else len(order)))


def load_profile(name: str) -> Profile:
    """Returns a profile by its name, or by the path of a TOML file; raises UsageError where it breaks the schema."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return _parse(path.stem, small_text(path))
        except OSError as error:
            raise UsageError(f"profile {name} cannot be read: {error.strerror}", "check the path") from None
        except UnicodeDecodeError:
            raise UsageError(f"profile {name} is not valid UTF-8", _EXAMPLE) from None
    if name not in profiles():
        raise UsageError(f"there is no profile {name!r}", suggestion(name, profiles()))
    return _parse(name, (resources.files("wanconv.verdict") / "profiles" / f"{name}.toml").read_text(encoding="utf-8"))


_EXAMPLE = f"take {resources.files('wanconv.verdict') / 'profiles' / 'quick.toml'} as an example"
# Every key of a profile, and what its value is: a type, or what all of a table's values are.
_KEYS: Mapping[str, Mapping[str, type | UnionType]] = {
    "run": {"steps": int, "frames": int, "size": str, "probes": list, "video": bool, "accumulators": bool},
    "headroom": {"fail": int | float, "warn": int | float},
}
# A table of limits of a profile, which replace some of the formats' own: what they are about.
_LIMITS: Mapping[str, Callable[[Limits], float]] = {
    "noise_relative_l2": lambda limits: limits.noise,
    "block_relative_l2": lambda limits: limits.block,
    "weight_relative_l2": lambda limits: limits.weight,
    "component_relative_l2": lambda limits: limits.component,
}


def _limits(table: Mapping[str, Mapping[str, float]], name: str) -> Mapping[str, float]:
    """Returns the limits of a profile by format: each format's own, unless the profile has another."""
    of = _LIMITS[name]
    own = {each.name: of(each.limits) for each in FORMATS.values() if each.limits is not None}
    return {"exact": of(EXACT), **own, **table.get(name, {})}


def _parse(name: str, text: str) -> Profile:
    try:
        table = parsed_toml(text)
    except ValueError as error:
        raise UsageError(f"profile {name} is not valid TOML: {error}", _EXAMPLE) from None
    if problems := _problems(table):
        raise UsageError(f"profile {name} breaks the schema", _EXAMPLE, problems)
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
        noise_relative_l2=_limits(table, "noise_relative_l2"),
        block_relative_l2=_limits(table, "block_relative_l2"),
        component_relative_l2=_limits(table, "component_relative_l2"),
        weight_relative_l2=_limits(table, "weight_relative_l2"),
        headroom_fail=headroom["fail"],
        headroom_warn=headroom["warn"],
    )


def _problems(table: Mapping[str, object]) -> list[str]:
    known = {"schema", "summary", *_KEYS, *_LIMITS}
    found = [_unknown(key, known) for key in table if key not in known]
    if table.get("schema") != 1 or not isinstance(table.get("summary"), str):
        found.append("schema must be 1, and summary one sentence")
    for section, keys in _KEYS.items():
        values = table.get(section)
        values = values if isinstance(values, Mapping) else {}
        found += [
            _unknown(f"{section}.{key}", [f"{section}.{one}" for one in keys]) for key in values if key not in keys
        ]
        found += [
            f"{section}.{key} is missing or wrong" for key, kind in keys.items() if not _is(values.get(key), kind)
        ]
    for section in _LIMITS:
        limits = table.get(section, {})
        if not isinstance(limits, Mapping) or not all(_is(limit, int | float) for limit in limits.values()):
            found.append(f"{section} must hold numbers by format, finite and not negative")
        elif unknown := sorted(limits.keys() - DTYPES.keys() - {"exact"}):
            found.append(f"{section}: there is no format {brief(', '.join(unknown))[1:-1]}")
    run = table.get("run")
    run = run if isinstance(run, Mapping) else {}
    size = run.get("size")
    if not isinstance(size, str) or not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", size):
        found.append("run.size must be as 128x128")
    for key, least, most in (("steps", 0, 1000), ("frames", 1, 100_000)):
        if _is(value := run.get(key), int) and not least <= value <= most:  # type: ignore[operator]  # an int, as it says
            found.append(f"run.{key} must be {least} to {most}" if value else f"run.{key} must be {least} or more")
    probes = run.get("probes")
    if (
        not isinstance(probes, list)
        or not probes
        or not all(probe in PROBES or (type(probe) is int and 0 < probe < 1000) for probe in probes)
    ):
        found.append(f"run.probes must be timesteps, 1 to 999, or {', '.join(PROBES)}")
    return found


def _unknown(key: str, known: Collection[str]) -> str:
    guess = nearest(key, known)
    return f"unknown key {brief(key)[1:-1]}" + (f" – {alternatives(guess)}?" if guess else "")


def _is(value: object, kind: type | UnionType) -> bool:
    """True for a value of this kind; a number is finite and not negative, since nothing is beyond NaN; true is none."""
    if kind is bool or not isinstance(value, int | float):
        return isinstance(value, kind)
    return not isinstance(value, bool) and isinstance(value, kind) and isfinite(value) and value >= 0
