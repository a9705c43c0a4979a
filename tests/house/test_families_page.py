"""The page of families and commands: a cell is what the command does to a tiny checkpoint of the family."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Done, call_all

from wanconv.models import FAMILIES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "families.md").read_text()
VERBS = ("inspect", "convert", "verify", "validate")


@pytest.fixture(scope="module")
def done(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Done]:
    """Returns what became of each command, by family and verb."""
    commands: dict[tuple[str, str], tuple[str, ...]] = {}
    for family in FAMILIES:
        source, out = str(tiny(family.releases[0].name)), f"{family.name}-baked"
        of_verb = {
            "inspect": (source,),
            "convert": (source, "--recipe", "bf16", "--out", out),
            "verify": (out, "--against", source),
            "validate": (out, "--against", source, "--profile", "quick", "--size", "64x64"),
        }
        commands |= {(family.name, verb): (verb, *of_verb[verb], "--json") for verb in VERBS}
    found = call_all(list(commands.values()), tmp_path_factory.mktemp("verbs"))
    return dict(zip(commands, found, strict=True))


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_a_cell_of_the_table_is_what_the_command_does(family: str, done: dict[tuple[str, str], Done]) -> None:
    cells = []
    for verb in VERBS:
        found = done[family, verb]
        document = json.loads(found.output)
        reasons = document["details"]["results"]["cannot_judge"] if verb == "validate" else []
        assert found.exit_code == (1 if reasons else 0), found.output + found.errors
        cells.append(f"no: {reasons[0]}" if reasons else "yes")
    assert f"| {family} | {' | '.join(cells)} |\n" in PAGE


def test_the_table_has_every_family_once() -> None:
    head = f"| family | {' | '.join(f'`{verb}`' for verb in VERBS)} |\n|---|" + "---|" * len(VERBS) + "\n"
    _, _, table = PAGE.partition(head)
    rows = [line.split("|")[1].strip() for line in table.partition("\n\n")[0].splitlines()]
    assert rows == [family.name for family in FAMILIES]
