"""What people install: the wheel, alone, outside the repository, offline."""

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.name for path in (ROOT / "recipes").iterdir())
RECIPE = """\
schema = 1
summary = "A recipe that lives outside the repository."

[[rule]]
match = "**"
format = "bf16"
"""


def python(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, out: Path) -> Path:
    python(
        "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, source, cwd=out
    )
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; its dependencies come from the environment that runs the tests."""
    site = tmp_path_factory.mktemp("site")
    python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel, cwd=site)
    return site


def test_the_wheel_holds_every_recipe_once_as_a_real_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = sorted(name for name in archive.namelist() if "recipes/" in name)
        assert packed == [f"wanconv/recipes/{name}" for name in RECIPES]
        for name in RECIPES:
            assert archive.read(f"wanconv/recipes/{name}") == (ROOT / "recipes" / name).read_bytes()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"wanconv", f"{wheel.name.split('-py3')[0]}.dist-info"}


@pytest.mark.parametrize("folder", ["evaluation/report/templates", "samples/tiny"])
def test_the_wheel_holds_the_templates_of_pages_and_the_small_model(folder: str, wheel: Path) -> None:
    paths = [path for path in (ROOT / "wanconv" / folder).rglob("*") if path.is_file()]
    assert len(paths) > 5
    with zipfile.ZipFile(wheel) as archive:
        for path in paths:
            assert archive.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()


def test_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert "wanconv/py.typed" in archive.namelist()


@pytest.mark.exhaustive
def test_a_type_checker_sees_the_installed_types(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from wanconv.types.names import nearest\n\nnumber: int = nearest('a', ['b'])\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "mine.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": ""} | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'expression has type "tuple[str, ...]"' in done.stdout, done.stdout


def test_the_page_of_the_package_index_leads_to_the_repository(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert urls.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    page = metadata.get_payload(decode=True)
    assert isinstance(page, bytes)
    tokens = [one for token in MarkdownIt().enable("table").parse(page.decode()) for one in token.children or ()]
    links = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
    images = [str(token.attrs["src"]) for token in tokens if token.type == "image"]
    readme = (ROOT / "README.md").read_text()
    own = [target for target in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in target]
    assert len(own) > 5
    assert {f"{urls['Repository']}/blob/main/{target}" for target in own} <= set(links)
    assert [link for link in links + images if not link.startswith("https://")] == []


@pytest.mark.exhaustive
def test_a_wheel_built_from_the_source_archive_is_the_same(wheel: Path, tmp_path: Path) -> None:
    python("-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build_wheel(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    assert again.read_bytes() == wheel.read_bytes()


def test_the_clone_and_the_wheel_find_the_same_recipes(site: Path, tmp_path: Path) -> None:
    probe = "from importlib.resources import files; print(*[p.name for p in (files('wanconv') / 'recipes').iterdir()])"
    assert sorted(python("-c", probe, cwd=ROOT).split()) == RECIPES
    assert sorted(python("-c", probe, cwd=tmp_path, PYTHONPATH=str(site)).split()) == RECIPES


def test_the_installed_wheel_runs_outside_the_repository(site: Path, tmp_path: Path) -> None:
    where = python("-c", "import wanconv; print(wanconv.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    listed = python("-m", "wanconv", "recipes", "--json", cwd=tmp_path, PYTHONPATH=str(site))
    json.loads(listed)
    for name in RECIPES:
        if name.endswith(".toml"):
            assert f'"{name.removesuffix(".toml")}"' in listed


def test_the_installed_wheel_uses_a_recipe_outside_the_repository(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    explained = python("-m", "wanconv", "recipes", "mine.toml", "--json", cwd=tmp_path, PYTHONPATH=str(site))
    json.loads(explained)
    assert "A recipe that lives outside the repository." in explained


def test_the_wanconv_command_is_installed(site: Path, tmp_path: Path) -> None:
    listed = python(site / "bin" / "wanconv", "recipes", "--json", cwd=tmp_path, PYTHONPATH=str(site))
    json.loads(listed)
