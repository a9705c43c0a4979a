"""Numbers for people: nouns that agree, byte counts in units, figures without exponents."""

import re
from pathlib import Path

import pytest

from wanconv.types import figures


@pytest.mark.parametrize(("number", "said"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (12_345, "12,345 files")])
def test_a_noun_agrees_with_its_number(number: int, said: str) -> None:
    assert figures.count(number, "file") == said


def test_a_plural_may_have_its_own_word() -> None:
    assert [figures.count(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1 kB"), (999_999, "1 MB"), (57_153_000_000, "57.2 GB"),
     (123_456_789, "123 MB"), (10**16, "10000 TB"), (10**400, "over a million TB")],
)  # fmt: skip
def test_a_byte_count_has_a_decimal_unit(nbytes: int, said: str) -> None:
    assert figures.size(nbytes) == said


def test_a_byte_count_can_be_exact_as_well() -> None:
    assert figures.exact_size(12_345_678) == "12.3 MB (12,345,678 bytes)"
    assert figures.exact_size(999) == "999 bytes"
    assert figures.exact_size(10**400) == "over a million TB"


def test_two_byte_counts_that_differ_never_look_alike() -> None:
    assert figures.sizes(5_000_000, 1_000) == ("5 MB", "1 kB")
    assert figures.sizes(5_000_001, 5_000_000) == ("5 MB (5,000,001 bytes)", "5 MB (5,000,000 bytes)")
    assert figures.sizes(5_000_000, 5_000_000) == ("5 MB", "5 MB")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0, "0"), (0.0272, "0.0272"), (1e-05, "0.00001"), (0.0000123456, "0.0000123"), (2e-9, "2e-9"),
     (1.0, "1"), (38.4321, "38.4"), (2683.4, "2,683"), (65504, "65,504"), (1_234_567.0, "1,234,567"), (999.6, "1,000"),
     (1.93e35, "1.93e35"), (float("nan"), "not finite")],
)  # fmt: skip
def test_a_figure_has_no_exponent_that_people_would_have_to_reckon_with(value: float, said: str) -> None:
    assert figures.figure(value) == said


# Numbers that are never 1 where they are said, and those that a hub or a file wrote in its own way.
ALLOWED = (
    "tensors; at most", "entries in {exact_size", "files fit none", "keys names", "tensors is", " > 1 else ",
    "bytes there, and the hub", 'bytes"', "bytes for numpy",
    "files of a folder that has more", "tensors that are not zero", "tensors are the same in both",
)  # fmt: skip
COUNTED = re.compile(r"\{[^{}]*\} (?:files|tensors|bytes|failures|keys|entries|checks|weights)\b.*")


def test_no_message_says_1_files_or_a_byte_count_without_its_unit() -> None:
    """figures.count, figures.size and figures.exact_size are the ways to say them."""
    package = Path(figures.__file__).parents[1]
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "figures.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if (said := COUNTED.search(line)) and not any(part in said[0] for part in ALLOWED)
    ]
    assert found == []
