"""recipes: the list, one explained, and one explained on a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import command
import pytest

from wanconv import recipe as recipes
from wanconv.cli.run import run
from wanconv.commands.recipes import explain, list_recipes
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.errors import UsageError
from wanconv.planning import by_component, by_rule

PAGE = (Path(__file__).resolve().parents[2] / "recipes" / "README.md").read_text()


def test_the_list_has_every_recipe_and_its_summary() -> None:
    (table,) = list_recipes().tables
    assert [row[0] for row in table.rows] == list(recipes.names())
    assert all(isinstance(row[1], str) and row[1] == recipes.load(str(row[0])).summary for row in table.rows)


def test_a_recipe_is_explained_rule_by_rule() -> None:
    report = explain("fp8-plain")
    (table,) = report.tables
    assert table.rows[0] == (1, "{dit,expert.*}/blocks.** (linear)", "fp8_e4m3fn", "none", "nearest", "bf16")
    assert [row[0] for row in table.rows] == [1, 2, 3]
    assert report.text("families") == "**"


def test_on_a_model_it_says_which_rule_takes_what(tiny: Callable[..., Path]) -> None:
    source = tiny("wan2.2-t2v-a14b")
    report = explain("experts-bf16-rest-fp16", source, "diffusers")
    planned = prepare(source, ConvertOptions("experts-bf16-rest-fp16", layout="diffusers"))
    assert report.tables == (by_rule(planned), by_component(planned))
    assert report.findings == planned.findings
    rules = {row[1]: row for row in report.tables[0].rows}
    assert list(rules) == ["{dit,expert.*}/**", "**"]
    assert sum(row[4] for row in report.tables[0].rows) == len(planned.model.tensors)  # type: ignore[misc]  # numbers
    assert report.figures["layout"] == "diffusers"


def test_a_lone_expert_gets_its_role_from_the_flag(tiny: Callable[..., Path], tmp_path: Path) -> None:
    lone = tmp_path / "mine.safetensors"
    shutil.copy(tiny("wan2.2-i2v-a14b") / "low_noise_model" / "diffusion_pytorch_model.safetensors", lone)
    with pytest.raises(UsageError, match="is one of two experts") as asked:
        explain("bf16", lone)
    assert asked.value.hint == 'say `expert="high"` or `expert="low"`'
    assert explain("bf16", lone, expert="low").tables[1].rows[0][0] == "expert.low"
    done = command.run("recipes", "bf16", "--on", lone, "--expert", "low", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_recipe_of_ones_own_is_explained_from_its_file(tiny: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('schema = 1\nsummary = "mine"\n[[rule]]\nmatch = "**"\nblocks = [-1]\nformat = "bf16"\n')
    assert explain(str(path)).tables[0].rows == ((1, "** (blocks -1)", "bf16", "none", "nearest", ""),)
    with pytest.raises(UsageError, match=r"^recipe mine does not fit wan2\.1-t2v$"):
        explain(str(path), tiny("wan2.1-t2v-1.3b"))


def test_a_typo_gets_the_nearest_name(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"^there is no recipe 'fp8-plian'$") as raised:
        explain("fp8-plian")
    assert raised.value.hint == "did you mean fp8-plain?"
    with pytest.raises(UsageError, match=r"^there is no layout 'difusers'$") as raised:
        explain("keep", tiny("wan2.1-t2v-1.3b"), "difusers")
    assert raised.value.hint == "did you mean diffusers?"


def test_the_schema_is_printed_as_the_page_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["recipes", "--schema"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == PAGE
    with pytest.raises(SystemExit):
        run(["recipes", "--schema", "--json"])
    assert json.loads(capsys.readouterr().out)["details"]["text"] == PAGE


@pytest.mark.parametrize("more", [["bf16"], ["--on", "source"]])
def test_the_schema_is_asked_for_alone(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["recipes", "--schema", *more])
    assert ended.value.code == 2
    assert "--schema is about every recipe" in capsys.readouterr().err


@pytest.mark.parametrize("hint", ["schema = 2", "schema = ", 'schema = 1\nsummary = "s"\nruel = 1'])
def test_a_recipe_that_breaks_the_schema_is_told_where_it_is_printed(hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        recipes.parse("mine", hint)
    assert raised.value.hint == "wanconv `recipe.schema_page()` prints it"
