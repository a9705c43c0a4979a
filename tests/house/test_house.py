"""The rules that hold the house up: floors, light imports, documented errors, honest dependencies."""

import ast
import importlib.util
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from wanconv import errors
from wanconv.quantization import FORMATS
from wanconv.types.dtypes import DTYPES
from wanconv.types.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
JUDGING = ("engine", "generation", "evaluation")  # the rooms that only a validation enters
MODULES = sorted(path for path in (ROOT / "wanconv").rglob("*.py") if "recipes" not in path.parts)

# A module imports lower floors only, never its own floor sideways, never up. Inside one room (a package) it is free.
FLOORS = [
    ["errors", "report", "metrics"],
    ["types"],
    ["storage"],
    ["containers", "quantization"],
    ["models", "engine"],
    ["layouts", "recipe", "verdict"],
    ["planning", "weights"],
    ["provenance", "samples"],
    ["downloads"],
    ["conversion", "verification", "generation"],
    ["evaluation"],
    [f"commands.{command}" for command in ("download", "inspect", "convert", "verify", "validate", "recipes")],
    ["commands.demo", "commands.publish", "library", "testing"],
    ["cli"],
    ["__init__", "__main__", "commands.__init__"],
]
FLOOR = {"__version__": -1} | {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_contributing_draws_the_floors_as_they_are() -> None:
    drawn = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        if row := re.match(r"\| (\d+) \| (`[^|]+) \|", line):
            rooms = {room.rstrip("/").replace("/", ".") for room in re.findall(r"`([^`]+)`", row[2])}
            drawn[int(row[1])] = rooms
    held = {
        number: {"commands"} if number == 11 else set(rooms)
        for number, rooms in enumerate(FLOORS)
        if "__init__" not in rooms
    }
    assert drawn == held


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(module: str, source: str) -> Iterator[str]:
    """Whole dotted names: `from wanconv.commands import convert` is wanconv.commands.convert."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """The commands are rooms of their own; elsewhere a package is one room."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["commands"] else parts[:1])


def floor_faults(module: str, source: str) -> list[str]:
    here = room_of(module)
    if here not in FLOOR:
        return [f"{module} stands on no floor: add its room to FLOORS in {Path(__file__).name}"]
    rooms = {room_of(name): name for name in imports(module, source) if name.split(".")[0] == "wanconv"}
    return [
        f"{module} (floor {FLOOR[here]}) imports {name} (floor {FLOOR.get(room, 'unknown')})"
        for room, name in rooms.items()
        if room != here and FLOOR.get(room, 99) >= FLOOR[here]
    ]


def test_a_module_imports_lower_floors_only() -> None:
    assert [fault for path in MODULES for fault in floor_faults(module_name(path), path.read_text())] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wanconv.errors", "from wanconv.report import Finding"),
        ("wanconv.quantization.fp8", "import wanconv.models.wan"),
        ("wanconv.containers.reader", "from ..plan import Plan"),
        ("wanconv.commands.convert", "def late():\n    from wanconv.commands import verify"),
        ("wanconv.commands.convert", "from . import demo"),
        ("wanconv.planning", "import wanconv"),
        ("wanconv.cellar", ""),
        ("wanconv.commands.cellar", ""),
    ],
)
def test_an_import_sideways_or_up_or_from_nowhere_is_found(module: str, source: str) -> None:
    assert len(floor_faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wanconv.quantization.fp8", "from .plain import Plain\nfrom wanconv.errors import Overflow\nimport torch"),
        ("wanconv.commands.demo", "from wanconv.commands import convert\nfrom .verify import verify"),
        ("wanconv.commands.convert", "from wanconv import __version__, planning"),
    ],
)
def test_imports_down_and_within_a_room_are_free(module: str, source: str) -> None:
    assert floor_faults(module, source) == []


# What moves numbers; everything else, so every room up to planning that decides and reads headers, is free of torch.
WITH_TORCH = {"engine", "generation", "evaluation", "metrics", "quantization", "weights"}
WITH_TORCH_ALONE = {"wanconv.conversion.encode", "wanconv.samples.synthetic", "wanconv.verification.bounds"}
FREE_OF_TORCH = {"wanconv.quantization", "wanconv.quantization.packings", "wanconv.weights", "wanconv.weights.lora"}


def loads(module: str, direct: Mapping[str, set[str]], known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Returns what importing a module imports: modules of wanconv, packages above them, and the tops of libraries."""
    parts = module.split(".")
    for name in (".".join(parts[:count]) for count in range(1, len(parts) + 1)):
        if name in direct and name not in known:
            known |= {name}
            for other in direct[name]:
                known = loads(other, direct, known) | {other.partition(".")[0]}
    return known


def test_what_decides_and_reads_headers_imports_no_torch() -> None:
    direct = {}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        first = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        name = module_name(path)
        direct[name.removesuffix(".__init__")] = set(imports(name, ast.unparse(first)))
    heavy = {module for module in direct if "torch" in loads(module, direct)}
    assert {module for module in heavy if room_of(module) not in WITH_TORCH} == WITH_TORCH_ALONE
    assert not heavy & FREE_OF_TORCH
    rooms = [room for floor in FLOORS[: FLOOR["planning"] + 1] for room in floor if room not in WITH_TORCH]
    assert {"storage", "containers", "models", "layouts", "recipe", "verdict", "planning"} <= set(rooms)
    script = "import sys, " + ", ".join(f"wanconv.{room}" for room in rooms) + "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# Beside quantization/, tables may name formats: of dtypes, of what a file or a client has; the demo names recipes.
KNOW_FORMATS = (
    "wanconv.quantization.",
    "wanconv.types.dtypes",
    "wanconv.containers.pickled",
    "wanconv.layouts.",
    "wanconv.commands.demo",
)


def test_no_other_room_names_a_quantized_format_or_asks_for_blocks() -> None:
    stored = [each for each in FORMATS.values() if each.storage is not None]
    quantized = tuple(each.name for each in stored if len(each.scales) > 1 or DTYPES[str(each.storage)].blocked)
    assert len(quantized) == 6
    found = [
        f"{module}:{node.lineno}"
        for path in MODULES
        if not f"{(module := module_name(path))}.".startswith(KNOW_FORMATS)
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(quantized))
        or (isinstance(node, ast.Compare) and ast.unparse(node).endswith(".block > 1"))
    ]
    assert found == []


def test_every_module_opens_with_its_docstring() -> None:
    def opens_with_docstring(path: Path) -> bool:
        tree = ast.parse(path.read_text())
        return ast.get_docstring(tree) is not None and tree.body[0].lineno == 1

    tests = (ROOT / "tests").rglob("*.py")
    assert [str(path.relative_to(ROOT)) for path in [*MODULES, *tests] if not opens_with_docstring(path)] == []


def test_importing_wanconv_imports_no_library() -> None:
    probe = "import sys; before = set(sys.modules); import wanconv; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert "wanconv" in loaded
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"wanconv"}
    assert foreign == set()


def test_the_dependencies_are_what_the_code_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names, extra = declared(project["dependencies"]), declared(project["optional-dependencies"]["validate"])
    imported = imported_by(MODULES)
    assert imported | {"numpy"} == names | extra  # torch warns on import when numpy is missing
    assert names & extra == set()
    assert extra == set(EXTRAS["validate"].values())
    judging = [path for path in MODULES if path.relative_to(ROOT / "wanconv").parts[0] in JUDGING]
    assert extra & imported_by([path for path in MODULES if path not in judging]) == set()


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", one, maxsplit=1)[0].lower().replace("_", "-") for one in requirements}


def imported_by(paths: list[Path]) -> set[str]:
    """Returns the distributions that modules import from."""
    tops = {name.partition(".")[0] for path in paths for name in imports(module_name(path), path.read_text())}
    distributions = packages_distributions()
    return {
        distributions.get(top, [top])[0].lower().replace("_", "-")
        for top in tops - sys.stdlib_module_names - {"wanconv"}
    }


def test_every_error_is_raised_somewhere() -> None:
    named = {
        node.id
        for path in MODULES
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert [error.__name__ for error in errors.REGISTRY.values() if error.__name__ not in named] == []


def test_the_tree_at_the_top_of_errors_is_the_tree_of_classes() -> None:
    drawn, parents = set(), {0: "WanconvError"}
    for line in (errors.__doc__ or "").splitlines():
        if row := re.match(r"^([ │├└─]+)(\w+) +(\d+) +([\w-]+)  ", line):
            depth = len(row[1])
            drawn.add(
                (row[2], max((indent, name) for indent, name in parents.items() if indent < depth)[1], row[3], row[4])
            )
            parents = {indent: name for indent, name in parents.items() if indent < depth} | {depth: row[2]}
    classes = errors.REGISTRY.values()
    assert drawn == {(error.__name__, error.__mro__[1].__name__, str(error.exit_code), error.code) for error in classes}


@pytest.mark.parametrize("error", errors.REGISTRY.values(), ids=lambda error: error.code)
def test_the_documentation_has_every_error_code_in_the_row_of_its_exit_code(error: type[errors.WanconvError]) -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    assert re.search(rf"^\| *`?{error.exit_code}`? *\|.*`{error.code}`", page, re.MULTILINE)


def test_tests_cannot_reach_the_network() -> None:
    with socket.socket() as connection, pytest.raises(OSError, match="offline"):
        connection.connect(("192.0.2.1", 80))  # an address reserved for documentation


def hints(tree: ast.Module) -> Iterator[str]:
    """Yields what is written of every hint of an error or finding: literals, also those behind a module's constant."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    places = {error.__name__: 1 for error in errors.REGISTRY.values()} | {"Finding": 3}
    for node in ast.walk(tree):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if not isinstance(node, ast.Call) or name not in places or len(node.args) <= places[name]:
            continue
        hint = node.args[places[name]]
        hint = constants.get(hint.id, hint) if isinstance(hint, ast.Name) else hint
        for part in (hint.body, hint.orelse) if isinstance(hint, ast.IfExp) else (hint,):
            if isinstance(part, ast.Constant | ast.JoinedStr):
                yield ast.unparse(part).lstrip("f")[1:-1]


def test_a_hint_starts_small_and_ends_without_a_full_stop() -> None:
    found = [hint for path in MODULES for hint in hints(ast.parse(path.read_text()))]
    assert len(found) > 150
    assert [hint for hint in found if hint[:1].isupper() or hint.endswith(".")] == []


def named_in(path: Path) -> set[str]:
    """Returns wanconv's modules that a module names in its imports, also those for types alone."""
    own = {module_name(module).removesuffix(".__init__") for module in MODULES}
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & own
            named |= whole or {node.module} & own
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names} & own
    return named


def test_no_modules_import_each_other_in_a_circle_not_even_for_types() -> None:
    """Of wanconv itself, all ask for `__version__`; its public names, for type checkers, stand above all."""
    left = {module_name(path).removesuffix(".__init__"): named_in(path) for path in MODULES}
    del left["wanconv"]
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert {module: needs & left.keys() for module, needs in left.items()} == {}


# Aliases of plain types, each room's own, and the state of two networks.
OF_SEVERAL_ROOMS = {"Clock", "Fetch", "Frames", "State"}


def test_a_class_has_a_name_of_its_own() -> None:
    rooms: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) or (
                isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
            ):
                name = node.name if isinstance(node, ast.ClassDef) else ast.unparse(node.targets[0])
                if name[0].isupper() and not name.isupper():
                    rooms.setdefault(name, set()).add(room_of(module_name(path)))
    assert {name for name, found in rooms.items() if len(found) > 1} <= OF_SEVERAL_ROOMS


# Rooms of many small files: a table for each network, a module for each command, two hubs, networks block by block.
LARGER = {"models": (21, 3100), "cli": (20, 2300), "storage": (19, 2000), "engine": (17, 3000)}


def test_a_room_has_at_most_15_files_and_2500_lines() -> None:
    rooms: dict[str, list[int]] = {}
    for path in MODULES:
        room = module_name(path).split(".")[1]
        rooms.setdefault(room, []).append(len(path.read_text().splitlines()))
    for room, lengths in rooms.items():
        files, lines = LARGER.get(room, (15, 2500))
        assert len(lengths) <= files, room
        assert sum(lengths) <= lines, room
