"""docs/schemas says what every document of wanconv is: made from the code, and held against what commands print."""

import json
import tomllib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command import call
from hub.server import files_below, leading
from referencing import Registry, Resource
from tiny import make

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "schemas"
SCHEMAS: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
REGISTRY: Any = Registry().with_resources(
    (f"{name}.json", Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)


def faults(name: str, document: object) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY)
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    make(folder / "source", "wan2.1-t2v-1.3b")
    return folder


def commands(hub: str) -> Iterator[tuple[int, list[str]]]:
    """Yields what is run, one after the other in one folder, and the exit codes that are expected."""
    bake = ["convert", "source", "-r", "fp8-scaled", "--layout", "comfyui", "-o", "out"]
    yield 0, ["inspect", "source", "--tensors"]
    yield 0, ["inspect", hub]
    yield 0, ["recipes"]
    yield 0, ["recipes", "fp8-scaled"]
    yield 0, ["recipes", "fp8-scaled", "--on", "source", "--layout", "comfyui"]
    yield 0, ["recipes", "--schema"]
    yield 0, [*bake, "-n"]
    yield 0, ["convert", hub, "-r", "bf16", "-n"]
    yield 0, bake
    yield 0, bake
    yield 0, ["verify", "out", "--for", "comfyui"]
    yield 0, ["verify", "out", "--against", "source"]
    yield 1, ["verify", "out", "--for", "diffusers"]
    yield 0, ["validate", "out", "--against", "source", "--profile", "quick", "--steps", "1", "-o", "report"]
    yield 0, ["validate", "source", "--profile", "quick", "--steps", "1"]
    yield 0, ["download", hub, "-o", "here", "-n"]
    yield 0, ["download", hub, "-o", "here"]
    yield 2, ["convert", "source", "-r", "bf16", "-o", "out"]
    yield 2, ["convert", "source", "-r", "none"]
    yield 3, ["inspect", "nothing"]


def test_the_schemas_are_those_of_the_code() -> None:
    loader = SourceFileLoader("schemas", str(ROOT / "scripts" / "schemas"))
    spec = spec_from_loader("schemas", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == module.texts()


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


def test_what_commands_print_and_leave_is_what_the_schemas_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {}
    with leading(files_below(folder / "source"), monkeypatch, folder / "modelscope"):
        for exit_code, arguments in commands("hf://owner/name"):
            done = call(*arguments, "--json", cwd=folder, WANCONV_PROGRESS="json")
            document = json.loads(done.stdout)
            assert (done.returncode, document["exit_code"]) == (exit_code, exit_code), (arguments, document["findings"])
            wrong[" ".join(arguments)] = faults("report", document)
            lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
            wrong[f"{arguments} on stderr"] = [fault for line in lines for fault in faults("progress", line)]
    for name, path in {
        "manifest": "out/wanconv.json",
        "validation": "report/results.json",
        "download": "here/.wanconv-download.json",
    }.items():
        wrong[path] = faults(name, json.loads((folder / path).read_bytes()))
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_is_what_its_schema_says(path: Path) -> None:
    assert faults("recipe", tomllib.loads(path.read_text())) == []


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("recipe", {"schema": 1, "summary": "s", "rule": [{"match": "**", "format": "fp7"}]}, "'fp7' is not one of"),
        ("recipe", {"schema": 1, "summary": "s", "rule": []}, "[] should be non-empty"),
        ("report", {"schema": "wanconv.report/1"}, "'verb' is a required property"),
        ("download", {"schema": "wanconv.download/2"}, "'wanconv.download/1' was expected"),
    ],
)
def test_what_is_another_thing_is_found(name: str, document: object, said: str) -> None:
    assert any(said in fault for fault in faults(name, document))
