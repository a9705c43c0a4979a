"""Canonical names, `<component>/<path>`, and the glob patterns that select them.

Segments end at `/` and `.`. `*` is one segment or a part of one, `{a,b}` are alternatives, and every other character
is literal. `**` at the end is all that follows; `**.` and `**/` are any number of whole segments, including none.
A pattern always matches the whole name.

Patterns are untrusted, so they are matched without backtracking: all ways through a pattern are followed at once, one
character after the other, and the results are cached (an automaton, built as far as names need it).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

_TOKEN = re.compile(r"\*\*[./]|\*\*|\*|\{|\}|,|[^*{},]+")
_PARTIAL = re.compile(r"(?<=[^./{,])\*\*|\*\*(?=[^./},])")  # ** next to a part of a segment
_MOST_CHARACTERS = 20_000  # characters of a pattern, enough for a list of some hundred names
_MOST_STARS = 100
_MOST_REMEMBERED = 2000  # cached sets of places in a pattern
_ENDS = "./"  # characters of a segment
_INSIDE, _END, _ANY = "inside", "end", "any"  # what a step takes other than one character; all longer than one


class _Glob:
    """A pattern as steps between numbered places: `freely` from one to others, or by a character."""

    def __init__(self, pattern: str) -> None:
        self._freely: list[list[int]] = [[]]
        self._steps: list[list[tuple[str, int]]] = [[]]
        self._last = self._build(pattern)
        self._sets: list[frozenset[int]] = []  # the places reached at once
        self._numbers: dict[frozenset[int], int] = {}
        self._table: list[dict[str, int]] = []  # number of a set → character → number of the set it leads to, -1: none
        self._start = self._closed({0})
        self._number(self._start)

    def matches(self, name: str) -> bool:
        at = 0
        for character in name:
            following = self._table[at].get(character)
            at = self._follow(at, character) if following is None else following
            if at < 0:
                return False
        return self._last in self._sets[at]

    def _place(self) -> int:
        self._freely.append([])
        self._steps.append([])
        return len(self._steps) - 1

    def _build(self, pattern: str) -> int:
        """Returns the place where the pattern ends; raises ValueError if it is invalid."""
        at, groups = 0, list[tuple[int, int]]()  # the start and the end of each open brace
        for token in _TOKEN.findall(pattern):
            if token == "{":
                groups.append((at, self._place()))
                at = self._branch(at)
            elif token in ("}", ",") and not groups:
                raise ValueError(f"{token!r} stands outside of braces")
            elif token == ",":
                self._freely[at].append(groups[-1][1])
                at = self._branch(groups[-1][0])
            elif token == "}":
                self._freely[at].append(groups[-1][1])
                at = groups.pop()[1]
            elif token[0] == "*":
                at = self._wildcard(token, at)
            else:
                for character in token:
                    following = self._place()
                    self._steps[at].append((character, following))
                    at = following
        if groups:
            raise ValueError("a brace is not closed")
        return at

    def _branch(self, start: int) -> int:
        place = self._place()
        self._freely[start].append(place)
        return place

    def _wildcard(self, token: str, at: int) -> int:
        loop = self._branch(at)
        if token in ("*", "**"):
            self._steps[loop].append((_INSIDE if token == "*" else _ANY, loop))
        else:  # whole segments: something inside of one, as often as it comes, and its end
            segment = self._place()
            self._steps[loop].append((_INSIDE, segment))
            self._steps[segment] += [(_INSIDE, segment), (_END, loop)]
        return self._branch(loop)

    def _number(self, places: frozenset[int]) -> int:
        if places not in self._numbers:
            self._numbers[places] = len(self._sets)
            self._sets.append(places)
            self._table.append({})
        return self._numbers[places]

    def _follow(self, at: int, character: str) -> int:
        places = self._sets[at]
        if len(self._sets) >= _MOST_REMEMBERED:  # memory stays bounded: start a new cache
            for remembered in (self._sets, self._numbers, self._table):
                remembered.clear()
            self._number(self._start)
            at = self._number(places)
        kinds = {character, _ANY, _END if character in _ENDS else _INSIDE}
        found = self._closed({to for place in places for kind, to in self._steps[place] if kind in kinds})
        self._table[at][character] = following = self._number(found) if found else -1
        return following

    def _closed(self, places: set[int]) -> frozenset[int]:
        """Returns the places, and all that are reached from them without a character."""
        left = list(places)
        while left:
            fresh = [one for one in self._freely[left.pop()] if one not in places]
            places.update(fresh)
            left += fresh
        return frozenset(places)


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> _Glob:
    if len(pattern) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(pattern)} characters, and at most {_MOST_CHARACTERS} are read")
    if (stars := pattern.count("*")) > _MOST_STARS:
        raise ValueError(f"it has {stars} stars, and at most {_MOST_STARS} are read")
    glob = _Glob(pattern)
    if _PARTIAL.search(pattern):
        raise ValueError("** stands for whole segments: put a . or / next to it, or write * for a part of one")
    return glob


def check(pattern: str) -> None:
    """Raises ValueError with the reason if a pattern is invalid."""
    if not pattern:
        raise ValueError("the pattern is empty")
    _compiled(pattern)


def matches(pattern: str, name: str) -> bool:
    return _compiled(pattern).matches(name)


_MAX_GUESSES = 6
_FLOATS = re.compile(r"(b?)float(?=\d)")  # torch's bfloat16 and float8 are bf16 and fp8 here


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Returns the known names that `name` was probably meant to be, best first; none if nothing is near.

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
    """Returns a hint for a name that is not known: which ones may be meant, else `otherwise`, else all known names."""
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
    """Returns the number of letters to be added, removed, replaced or swapped with their neighbour (Damerau 1964); for
    names of very different lengths, the difference of the lengths."""
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
