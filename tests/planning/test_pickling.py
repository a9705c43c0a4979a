"""What a plan is made of is equal by what it holds, in this process and, pickled, in another one."""

import ast
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make

from wanconv.containers import open_checkpoint
from wanconv.layouts import LAYOUTS, Layout
from wanconv.models import ARCHITECTURES, FAMILIES, identify
from wanconv.planning import Plan, plan
from wanconv.recipe import load, names
from wanconv.types.architecture import Architecture, Family

ROOT = Path(__file__).resolve().parents[2]
OF_IDENTITY = (  # objects of this process, which are not compared by what they hold
    *("threading.current_thread() is threading.main_thread()", "part is module", "args[0] is args[1]"),
    *("signal.getsignal(number) is signal.default_int_handler", "first is not claim", "wide is not part"),
    *("weights is self.reference", "self._tensor is not tensor", "self._scales[0] is not tensor"),
    *("self._held[0] is not tensor", "kind is bool", "type(error).__init__ is not WanconvError.__init__"),
    "sys._current_frames()[threading.main_thread().ident or 0].f_code is _in_passing.__code__",
)


def planned(source: Path, recipe: str = "fp8-scaled", layout: str = "comfyui") -> Plan:
    return plan(identify(open_checkpoint(source)), load(recipe), LAYOUTS[layout])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pickling") / "source", "wan2.2-t2v-a14b")


@pytest.mark.parametrize("value", [*FAMILIES, *ARCHITECTURES, *LAYOUTS.values()], ids=lambda value: value.name)
def test_a_value_of_a_table_is_pickled_as_its_name(value: Family | Architecture | Layout) -> None:
    pickled = pickle.dumps(value)
    assert pickle.loads(pickled) is value
    assert len(pickled) < 150


@pytest.mark.parametrize(
    ("known", "changed"),
    [
        (FAMILIES[0], replace(FAMILIES[0], name="another")),
        (FAMILIES[0], replace(FAMILIES[0], shift=9.0)),
        (ARCHITECTURES[0], replace(ARCHITECTURES[0], name="another")),
        (ARCHITECTURES[0], replace(ARCHITECTURES[0], source="elsewhere")),
    ],
)
def test_a_value_that_its_table_lacks_is_pickled_with_all_that_it_holds(
    known: Family | Architecture, changed: Family | Architecture
) -> None:
    again = pickle.loads(pickle.dumps(changed))
    assert again == changed
    assert hash(again) == hash(changed)
    assert again != known


@pytest.mark.parametrize("recipe", names())
def test_a_pickled_recipe_equals_itself(recipe: str) -> None:
    assert pickle.loads(pickle.dumps(load(recipe))) == load(recipe)


def test_a_pickled_plan_equals_itself_and_its_model(source: Path) -> None:
    made = planned(source)
    again = pickle.loads(pickle.dumps(made))
    assert again == made == planned(source)
    assert again.model == made.model
    assert again.identity == made.identity
    assert again != planned(source, "bf16")


def test_another_process_finds_the_plan_equal_to_the_one_that_it_makes(source: Path) -> None:
    made = planned(source)
    script = f"""
import pickle, sys
from pathlib import Path
from wanconv.containers import open_checkpoint
from wanconv.layouts import LAYOUTS
from wanconv.models import identify
from wanconv.planning import plan
from wanconv.recipe import load
given = pickle.load(sys.stdin.buffer)
own = plan(identify(open_checkpoint(Path({str(source)!r}))), load("fp8-scaled"), LAYOUTS["comfyui"])
assert given == own and given.model.family is own.model.family and given.layout is own.layout
sys.stdout.buffer.write(pickle.dumps(own))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(made), capture_output=True, check=True, env=environment
    )
    assert pickle.loads(done.stdout) == made


def test_no_module_compares_values_of_tables_by_identity() -> None:
    found = {
        ast.unparse(node)
        for path in (ROOT / "wanconv").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for operator, right in zip(node.ops, node.comparators, strict=True)
        if isinstance(operator, ast.Is | ast.IsNot)
        and not isinstance(right, ast.Constant)
        and not (isinstance(node.left, ast.Call) and ast.unparse(node.left.func) == "type")
    }
    assert found == set(OF_IDENTITY)
