"""The mutations by which the tests are measured: each is one change that Python reads; a seed draws the same ones."""

import ast
from pathlib import Path

from mutations import Mutation, drawn, mutations, refreshed

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''"""A module."""

from typing import Final

LIMIT: Final = 3


def first(values: list[int], *, all_of: bool = True) -> int | None:
    """Returns something."""
    for value in values:
        if value < LIMIT and not all_of:
            continue
        print(f"{value + 1}", "said")
        if value is None:
            raise ValueError(value)
        return value
    return None
'''


def applied(mutation: Mutation, folder: Path) -> str:
    (folder / "module.py").write_text(MODULE)
    mutation.apply(folder)
    return (folder / "module.py").read_text()


def test_each_mutation_changes_one_place_of_what_runs(tmp_path: Path) -> None:
    found = {(one.line, one.what): applied(one, tmp_path) for one in mutations("module.py", MODULE)}
    assert found.keys() == {
        (5, "number + 1"), (8, "True/False"), (11, "comparison turned"), (11, "and/or"), (11, "not left out"),
        (12, "break/continue"), (13, "other text"), (13, "statement left out"), (14, "comparison turned"),
        (15, "statement left out"), (16, "returns None"),
    }  # fmt: skip
    for (line, _), text in found.items():
        ast.parse(text)
        before, after = MODULE.splitlines(), text.splitlines()
        assert [number for number, pair in enumerate(zip(before, after, strict=True), 1) if pair[0] != pair[1]] == [
            line
        ]
    assert "if (value <= LIMIT) and not all_of:" in found[11, "comparison turned"]
    assert "if (value < LIMIT or not all_of):" in found[11, "and/or"]
    assert "LIMIT: Final = (3 + 1)" in found[5, "number + 1"]


def test_a_change_leaves_what_a_copy_is_linked_to_and_can_be_undone(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "copy" / "module.py").hardlink_to(tmp_path / "module.py")
    whole = next(mutations("module.py", MODULE)).apply(tmp_path / "copy")
    assert (tmp_path / "module.py").read_text() == MODULE != (tmp_path / "copy" / "module.py").read_text()
    whole()
    assert (tmp_path / "module.py").samefile(tmp_path / "copy" / "module.py")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["module.py"]


def test_the_same_seed_draws_the_same_lines_of_all_rooms(tmp_path: Path) -> None:
    for room in ("types", "weights", "cli"):
        (tmp_path / "wanconv" / room).mkdir(parents=True)
        (tmp_path / "wanconv" / room / "module.py").write_text(MODULE)
    lines = drawn(tmp_path, 15, 0)
    assert lines == drawn(tmp_path, 15, 0) != drawn(tmp_path, 15, 1)
    assert len({(one.file, one.line) for one in lines}) == 15
    assert {one.room for one in lines} == {"tests/types", "tests/weights", "tests/cli"}


def test_a_copy_holds_what_git_knows(tmp_path: Path) -> None:
    (tmp_path / "copy" / "old").mkdir(parents=True)
    refreshed(ROOT, tmp_path / "copy")
    assert (tmp_path / "copy" / "wanconv" / "__init__.py").read_bytes() == (ROOT / "wanconv/__init__.py").read_bytes()
    assert not (tmp_path / "copy" / "old").exists()
    assert not (tmp_path / "copy" / ".venv").exists()
