"""Canonical names, `<component>/<path>`, and the glob patterns that select them.

Segments end at `/` and `.`. `*` is one segment or a part of one, `{a,b}` are alternatives, and every other character
stands for itself. `**` at the end is all that follows; `**.` and `**/` are any number of whole segments, none as well.
A pattern always means the whole name.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

_TOKEN = re.compile(r"\*\*[./]|\*\*|\*|\{|\}|,|[^*{},]+")
_PARTIAL = re.compile(r"(?<=[^./{,])\*\*|\*\*(?=[^./},])")  # ** beside a part of a segment


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    depth, out = 0, []
    for token in _TOKEN.findall(pattern):
        match token:
            case "**." | "**/":
                out.append(r"(?:[^./]+[./])*")
            case "**":
                out.append(r".*")
            case "*":
                out.append(r"[^./]*")
            case "{":
                depth += 1
                out.append("(?:")
            case "}" if depth:
                depth -= 1
                out.append(")")
            case "," if depth:
                out.append("|")
            case "}" | ",":
                raise ValueError(f"{token!r} stands outside of braces")
            case _:
                out.append(re.escape(token))
    if depth:
        raise ValueError("a brace is not closed")
    if _PARTIAL.search(pattern):
        raise ValueError("** stands for whole segments: put a . or / beside it, or write * for a part of one")
    return re.compile("".join(out))


def check(pattern: str) -> None:
    """Raises ValueError with the reason where a pattern has no meaning."""
    if not pattern:
        raise ValueError("the pattern is empty")
    _compiled(pattern)


def matches(pattern: str, name: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


_MAX_GUESSES = 6
_FLOATS = re.compile(r"(b?)float(?=\d)")  # torch's bfloat16 and float8 are bf16 and fp8 here


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Returns the known names that `name` was probably meant to be, best first; none where nothing is near.

    Upper and lower case, `-`, `_` and `.` are alike. The first of these that finds any decides: the same name; names
    that begin with it; names that have all of its words, or of whose words it has all; the fewest typing errors, of
    which there may be one for every four letters, and one in a shorter name.
    """
    wanted = _folded(name)
    if not wanted:
        return ()
    folded = {one: _folded(one) for one in known}
    words = set(wanted.split("-"))
    tests: tuple[Callable[[str], bool], ...] = (
        lambda one: one == wanted,
        lambda one: one.startswith(wanted),
        lambda one: words <= set(one.split("-")),
        lambda one: set(one.split("-")) <= words,
    )
    for test in tests:
        if found := [one for one, key in folded.items() if test(key)]:
            found.sort(key=lambda one: len(folded[one]))
            return tuple(found) if len(found) <= _MAX_GUESSES else ()
    errors = {one: _typing_errors(wanted, key) for one, key in folded.items()}
    fewest = min(errors.values(), default=len(wanted))
    within = fewest <= max(1, len(wanted) // 4)
    return tuple(one for one, count in errors.items() if within and count == fewest)


def suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Returns a hint for a name that is not known: which ones may be meant, else `otherwise`, else all there are."""
    names = list(known)
    if guesses := nearest(name, names):
        return f"did you mean {alternatives(guesses)}?"
    return otherwise or f"known: {', '.join(names)}"


def alternatives(names: Sequence[str]) -> str:
    """Returns `a`, `a or b`, `a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _folded(name: str) -> str:
    return _FLOATS.sub(lambda match: "bf" if match[1] else "fp", re.sub(r"[-_.\s]+", "-", name.casefold()).strip("-"))


def _typing_errors(one: str, other: str) -> int:
    """Returns how many letters are to be added, removed, replaced or swapped with their neighbour (Damerau 1964); for
    names of very different lengths, just by how much they differ."""
    if abs(len(one) - len(other)) > max(1, len(one) // 4):
        return abs(len(one) - len(other))
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, against in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != against))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], against):
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
