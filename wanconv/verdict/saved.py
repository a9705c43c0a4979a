"""Saved results of a validation: read from a file of any origin, and checked for what judging reads.

`wanconv.verdict.judging` has the schema in words. Keys that neither a verdict nor its report reads are not checked.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from wanconv.errors import InputError
from wanconv.storage.reading import JSON_NBYTES, parsed_json, read_small

SCHEMA = "wanconv.validation/1"
_HINT = "give the results.json that `Validation.write_report` wrote"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_name(value: object) -> bool:
    return _is_text(value) or _is_number(value)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


@dataclass(frozen=True, slots=True)
class _Field:
    """The kind of a key's value, in words and as a check; unless it is `needed`, it may be absent or null."""

    what: str
    is_sound: Callable[[object], bool]
    needed: bool = False


_TEXT, _NUMBER, _NAME = _Field("text", _is_text), _Field("a number", _is_number), _Field("a name", _is_name)
_TEXTS, _NUMBERS = _Field("a list of texts", _are_texts), _Field("a list of numbers", _are_numbers)
_OBJECT = _Field("an object", _is_object)
_A_TEXT, _A_NUMBER, _A_NAME = (_Field(one.what, one.is_sound, True) for one in (_TEXT, _NUMBER, _NAME))
# infinite values are null: JSON has no infinity
_OR_NULL = _Field("a number or null", lambda value: value is None or _is_number(value), needed=True)
Fields = Mapping[str, _Field]

_INNER: Fields = {"path": _A_TEXT, "value": _OR_NULL, "limit": _A_NUMBER, "why": _TEXT}
# section → its rows' keys, and key → the keys of the rows inside of a row
_ROWS: Mapping[str, tuple[Fields, Mapping[str, Fields]]] = {
    "storage": (
        {
            "tensor": _A_TEXT,
            "format": _A_TEXT,
            "kind": _TEXT,
            "relative_l2": _NUMBER,
            "first_not_finite": _NAME,
            "flushed_share": _NUMBER,
        },
        {},
    ),
    "safety": (
        {
            "component": _A_TEXT,
            "numerics": _A_TEXT,
            "headroom": _NUMBER,
            "largest": _NUMBER,
            "largest_at": _TEXT,
            "first_bad": _OBJECT,
        },
        {"op_internal": _INNER, "accumulators": _INNER},
    ),
    "steps": (
        {
            "component": _A_TEXT,
            "timestep": _A_NUMBER,
            "format": _A_TEXT,
            "relative_l2": _NUMBER,
            "worst_block": _NAME,
        },
        {"blocks": {"block": _A_NAME, "forced_relative_l2": _NUMBER}},
    ),
    "components": ({"component": _A_TEXT, "what": _A_TEXT, "format": _A_TEXT, "relative_l2": _NUMBER}, {}),
}
_LISTS: Fields = dict.fromkeys(("notes", "experts_wanted", "experts_exercised", "cannot_judge"), _TEXTS)
_CANDIDATE: Fields = {"path": _A_TEXT, "family": _A_TEXT, "layout": _A_TEXT, "sample": _TEXT}
_VIDEO: Fields = {
    "not_finite": _TEXTS,
    "black_frames": _NUMBERS,
    "frozen_frames": _NUMBERS,
    "reference_black_frames": _NUMBERS,
    "reference_frozen_frames": _NUMBERS,
}


def read_results(path: Path) -> dict[str, object]:
    """Returns saved results; raises InputError for a file that holds none."""
    try:
        results = parsed_json(read_small(path, JSON_NBYTES), finite=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read as results: {error.strerror}", _HINT) from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read as results: {error}", _HINT) from None
    if wrong := faults(results):
        raise InputError(f"{path} holds no results of a validation", _HINT, wrong)
    assert isinstance(results, dict)
    return results


def faults(results: object) -> list[str]:
    """Returns the faults of a JSON value that is to be judged as results."""
    if not isinstance(results, Mapping) or results.get("schema") != SCHEMA:
        return [f"schema is not {SCHEMA}"]
    found = [*_of_fields("", results, _LISTS)]
    for name, fields, needed in (
        ("candidate", _CANDIDATE, True),
        ("settings", {}, True),
        ("reference", {"path": _A_TEXT}, False),
        ("video", {"candidate": _OBJECT, "control": _OBJECT}, False),
    ):
        value = results.get(name)
        if isinstance(value, Mapping):
            found += _of_fields(name, value, fields)
        elif needed or value is not None:
            found.append(f"{name} is not an object")
    video = results.get("video")
    for of in ("candidate", "control"):
        metrics = video.get(of) if isinstance(video, Mapping) else None
        if isinstance(metrics, Mapping):
            found += _of_fields(f"video.{of}", metrics, _VIDEO)
    for name, (fields, inner) in _ROWS.items():
        found += _of_rows(name, results.get(name), fields, inner)
    return found


def _of_rows(name: str, rows: object, fields: Fields, inner: Mapping[str, Fields]) -> Iterator[str]:
    if rows is None:
        return
    if not isinstance(rows, list):
        yield f"{name} is not a list"
        return
    for number, row in enumerate(rows):
        where = f"{name}[{number}]"
        if not isinstance(row, Mapping):
            yield from _of_fields(where, {}, fields)
            continue
        yield from _of_fields(where, row, fields)
        for key, inner_fields in inner.items():
            yield from _of_rows(f"{where}.{key}", row.get(key), inner_fields, {})


def _of_fields(where: str, found: Mapping[str, object], fields: Fields) -> Iterator[str]:
    """Yields the missing keys, as one fault, and the keys of another kind."""
    needed = [key for key, field in fields.items() if field.needed]
    if any(key not in found for key in needed):
        yield f"{where} lacks {'one of' if needed[1:] else 'its'} {', '.join(needed)}"
        return
    for key, field in fields.items():
        value = found.get(key)
        if not field.is_sound(value) and (field.needed or value is not None):
            yield f"{where}.{key} is not {field.what}".removeprefix(".")
