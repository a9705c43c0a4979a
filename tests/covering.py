"""Covering arrays: of a product of several axes, rows in which every pair of values meets at least once.

A product of family, recipe and layout grows with each of them, and a fault that needs three particular values at once
is rare. So the default run takes the rows of a covering array, and what is left of the product is marked `exhaustive`.
"""

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heapreplace
from itertools import combinations, product
from typing import Any

import pytest

from wanconv.layouts import LAYOUTS
from wanconv.models import DENOISERS
from wanconv.planning.files import not_held
from wanconv.recipe import load


def cover(rows: Sequence[Sequence[str]], strength: int = 2) -> list[int]:
    """Returns the numbers of rows that hold together what all rows do of every `strength` axes.

    With 2, every pair of values that stands in some row stands in a chosen one; with 1, every value does. Greedy and
    without chance: the row that adds most comes next, and of those the first.
    """
    parts = [set(_parts(row, strength)) for row in rows]
    missing = set().union(*parts)
    gains = [(-len(part), number) for number, part in enumerate(parts)]  # at most: what is missing only shrinks
    heapify(gains)
    chosen = []
    while missing:
        before, number = gains[0]
        gain = -len(parts[number] & missing)
        heapreplace(gains, (gain, number))
        if gain == before:
            missing -= parts[number]
            chosen.append(number)
    return sorted(chosen)


def _parts(row: Sequence[str], strength: int) -> Iterator[tuple[tuple[int, str], ...]]:
    return combinations(enumerate(row), strength)


def covering(
    names: Sequence[str],
    *axes: Sequence[Any],
    strength: int = 2,
    given: Callable[..., bool] = lambda *values: True,
) -> pytest.MarkDecorator:
    """Returns the mark that runs a test over a product: over a covering array by default, else over all of it.

    Args:
        names: the test's arguments, one for each axis.
        axes: their values; those with a `name` are called by it.
        strength: how many axes at a time are covered; 1 where they are known to be independent.
        given: whether a row is one at all.
    """
    rows = [row for row in product(*axes) if given(*row)]
    words = [tuple(map(name_of, row)) for row in rows]
    chosen = set(cover(words, strength))
    parameters = [
        pytest.param(*row, id="-".join(words[number]), marks=() if number in chosen else pytest.mark.exhaustive)
        for number, row in enumerate(rows)
    ]
    return pytest.mark.parametrize(tuple(names), parameters)


def some(values: Sequence[Any], every: int) -> list[Any]:
    """Returns the parameters of a long list, of which the default run takes the first, and every so many one more."""
    return [
        pytest.param(value, marks=() if number % every == 0 else pytest.mark.exhaustive)
        for number, value in enumerate(values)
    ]


def name_of(value: object) -> str:
    """Returns what a value is called in the name of a test."""
    if isinstance(value, tuple):
        return "/".join(map(name_of, value))
    return str(getattr(value, "name", value))


def takes(layout: str, recipe: str) -> bool:
    """Returns whether a layout's client reads all that a shipped recipe makes of denoisers."""
    to = LAYOUTS[layout]
    for rule in load(recipe).rules:
        if rule.scale == "none":
            container = next(place.container for name, place in to.places.items() if name in DENOISERS)
            if rule.format in to.unread or (rule.format != "keep" and not_held(container, rule.format)):
                return False
        elif not set(DENOISERS) & set(to.scaled) or not any(
            each.format == rule.format and rule.scale in ("auto", each.scale) for each in to.packings
        ):
            return False
    return True
