"""Covering arrays: every pair is there, the rest of the product is exhaustive, and the rows never change."""

from itertools import combinations, product

import pytest
from covering import cover, covering

AXES = [[f"{letter}{number}" for number in range(size)] for letter, size in (("a", 6), ("b", 5), ("c", 4), ("d", 2))]
ROWS = list(product(*AXES))


def test_every_two_values_of_two_axes_stand_together_in_a_row() -> None:
    chosen = [ROWS[number] for number in cover(ROWS)]
    for i, j in combinations(range(len(AXES)), 2):
        assert {(row[i], row[j]) for row in chosen} == set(product(AXES[i], AXES[j]))


def test_rows_are_few_and_the_same_each_time() -> None:
    assert cover(ROWS) == cover(ROWS)
    assert 30 <= len(set(cover(ROWS))) == len(cover(ROWS)) <= 36  # of 240


def test_two_axes_give_their_product_and_a_strength_of_one_every_value_once() -> None:
    two = list(product(AXES[2], AXES[3]))
    assert cover(two) == list(range(len(two)))
    once = [two[number] for number in cover(two, 1)]
    assert len(once) == 4
    assert [{row[axis] for row in once} for axis in (0, 1)] == [set(AXES[2]), set(AXES[3])]


def test_what_can_not_be_is_in_no_row_and_asks_for_none() -> None:
    rows = [row for row in ROWS if row[:2] != ("a0", "b0")]
    chosen = [rows[number] for number in cover(rows)]
    assert {row[:2] for row in chosen} == set(product(AXES[0], AXES[1])) - {("a0", "b0")}


def test_what_is_not_in_the_array_is_exhaustive_and_nothing_is_lost() -> None:
    mark = covering(("a", "b", "c", "d"), *AXES, given=lambda a, b, c, d: a != "a0").mark
    rows, parameters = [row for row in ROWS if row[0] != "a0"], mark.args[1]
    assert [one.values for one in parameters] == rows
    assert [number for number, one in enumerate(parameters) if not one.marks] == cover(rows)
    assert {each.name for one in parameters for each in one.marks} == {"exhaustive"} == {pytest.mark.exhaustive.name}
