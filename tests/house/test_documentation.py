"""The documentation is right: commands run and print what it shows, tables are the code's, links lead somewhere."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import typer
from documentation import CHINESE, DEMO, DOCS, PAGES, ROOT, blocks, expected, matches, pages_to_run, run
from typer.core import TyperGroup

import wanconv
from wanconv.cli.app import app
from wanconv.cli.flags import as_flags
from wanconv.engine.numerics import PRESETS
from wanconv.layouts import LAYOUTS
from wanconv.quantization import FORMATS
from wanconv.verdict import EXIT_CODES

REPOSITORY = "https://github.com/wanconv/wanconv/blob/main/"
CONFIG = (ROOT / "mkdocs.yml").read_text()
TRANSLATED = [page for page in PAGES if page.name.endswith(CHINESE)]
COMMANDS = typer.main.get_command(app)
Build = Callable[[str], tuple["subprocess.CompletedProcess[str]", Path]]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """Returns the words in code of the first cells of tables."""
    return re.findall(r"^\| `([\w.-]+)[^|]*` \|", text, re.MULTILINE)


@pytest.mark.exhaustive
def test_every_command_of_every_page_runs_and_prints_what_the_page_shows(tmp_path: Path) -> None:
    pages = pages_to_run()
    found = run(pages, tmp_path, f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert (tmp_path / DEMO / "baked" / "wanconv.json").exists()
    failed, shown = [], 0
    for page, of_page in zip(pages, found, strict=True):
        for (block, said), commands in zip(expected(page), of_page, strict=True):
            printed = "".join(command.output for command in commands)
            failed += [f"{page}:\n{block}{one.errors}" for one in commands if one.exit_code or "error" in one.errors]
            failed += [f"{page}:\n{block}{printed}"] if said is not None and not matches(printed, said) else []
            shown += said is not None
    assert failed == []
    assert (len(pages) > 15, shown > 6) == (True, True)


@pytest.mark.parametrize(
    ("printed", "said", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\nc\n", "a\n…\n", True),
        ("a\nb\nc\n", "…\nc\n", True),
        ("a\nb\nc\n", "a\n…\nc\n", True),
        ("a\nc\n", "a\n…\nc\n", True),
        ("a\nb\n", "a\n", False),
        ("a\nb\n", "b\n", False),
        ("a\nb.c\n", "a\nbxc\n", False),
    ],
)
def test_a_line_of_an_ellipsis_stands_for_any_lines_and_all_others_for_themselves(
    printed: str, said: str, same: bool
) -> None:
    assert matches(printed, said) is same


def unknown_words(line: str) -> list[str]:
    """Returns the options, and the command, in a line of `wanconv` that do not exist."""
    words = shlex.split(line, comments=True)
    assert isinstance(COMMANDS, TyperGroup)
    command = COMMANDS.commands.get(words[1], COMMANDS)
    known = {name for each in (*command.params, *COMMANDS.params) for name in (*each.opts, *each.secondary_opts)}
    known |= {"--help", "-h"}
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("-") and not word.startswith("---")]
    wrong = [option for option in options if option not in known]
    return wrong + ([words[1]] if command is COMMANDS and not words[1].startswith("-") else [])


def lines_of_wanconv(page: Path) -> list[str]:
    """Returns the commands of a page, in blocks and in its sentences."""
    fenced = [
        line for block in blocks(page) if block.language in ("bash", "console") for line in block.text.splitlines()
    ]
    inline = re.findall(r"`(wanconv [^`]+)`", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S))
    found = [line for line in [*fenced, *inline] if line.startswith("wanconv ")]
    return [line for line in found if " COMMAND " not in line]


def test_every_command_and_option_that_a_page_names_exists() -> None:
    found = {f"{page.name}: {line}": unknown_words(line) for page in PAGES for line in lines_of_wanconv(page)}
    assert len(found) > 80
    assert {line: words for line, words in found.items() if words} == {}


def test_a_command_or_option_that_does_not_exist_is_found() -> None:
    assert unknown_words("wanconv convert SRC --recepi bf16 -o x") == ["--recepi"]
    assert unknown_words("wanconv bake SRC") == ["bake"]
    assert unknown_words("wanconv verify SRC --for=comfyui") == []


@by_page
def test_a_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= {"bash", "console", "text", "toml", "python", "json"}


@by_page
def test_links_and_scripts_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    own = [target.removeprefix(REPOSITORY) for target in targets if target.startswith(REPOSITORY)]
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []
    assert [target for target in own if not (ROOT / target).exists()] == []
    assert [name for name in re.findall(r"scripts/\w+", text) if not os.access(ROOT / name, os.X_OK)] == []


def test_the_formats_are_the_code() -> None:
    line = next(line for line in text_of("docs/reference/sources.md").splitlines() if line.startswith("Formats: "))
    assert re.findall(r"`(\w+)`", line) == list(FORMATS)


def test_every_command_has_its_row() -> None:
    rows = first_cells(text_of("docs/reference/commands.md").partition("\n## ")[0])
    assert sorted(rows) == sorted(command.callback.__name__ for command in app.registered_commands if command.callback)


def test_every_variable_of_the_environment_that_an_option_reads_is_named() -> None:
    assert isinstance(COMMANDS, TyperGroup)
    read = {str(option.envvar) for each in COMMANDS.commands.values() for option in each.params if option.envvar}
    assert read <= set(re.findall(r"`([A-Z_]+)`", section(text_of("docs/reference/commands.md"), "Environment")))


def test_the_readme_names_every_layout_that_comes_out() -> None:
    row = next(line for line in text_of("README.md").splitlines() if line.startswith("| names |"))
    assert re.findall(r"`([\w-]+)`", row) == sorted(LAYOUTS, key=re.findall(r"`([\w-]+)`", row).index)


def test_every_layout_has_its_page() -> None:
    table = text_of("docs/clients/index.md").partition("\n## ")[0]
    named = [
        name for cell in re.findall(r"\[([^\]]+)\]\(\w[\w-]*\.md\)", table) for name in re.findall(r"`([\w-]+)`", cell)
    ]
    assert sorted(named) == sorted(LAYOUTS)


def test_the_numerics_that_are_explained_exist() -> None:
    names = first_cells(text_of("docs/concepts/numerics.md"))
    assert len(names) > 3
    assert [name for name in names if name not in PRESETS] == []


def test_the_verdicts_have_their_exit_codes() -> None:
    rows = re.findall(r"^\| ([A-Z ]+) \| (\d) \|", text_of("docs/concepts/verdict.md"), re.MULTILINE)
    assert {verdict: int(code) for verdict, code in rows} == EXIT_CODES


def test_what_the_program_says_of_another_conversion_is_what_the_page_shows() -> None:
    (shown,) = [block.text for block in blocks(DOCS / "troubleshooting.md") if block.text.startswith("error[")]
    message, hint = shown.splitlines()
    code = as_flags(text_of("wanconv/commands/convert.py"))
    assert "holds another conversion (recipe " in message
    assert "source, --base-model or --lora has changed" in code
    assert hint.removeprefix("hint: ") in code


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_a_translation_has_the_commands_and_tables_of_its_page(page: Path) -> None:
    english = page.with_name(page.name.replace(CHINESE, ".md"))
    own, other = page.read_text(), english.read_text()
    assert f"]({english.name})" in own
    assert f"]({page.name})" in other
    assert blocks(page) == blocks(english)
    assert [line.count("|") for line in own.splitlines() if line.startswith("|")] == [
        line.count("|") for line in other.splitlines() if line.startswith("|")
    ]
    for cut in (r"`([^`\n]+)`", r"\]\(([^)\s]+)\)", r"^#+ "):  # words in code, links, headings
        links = {english.name, page.name, "quickstart.md", f"quickstart{CHINESE}", f"docs/quickstart{CHINESE}"}
        links |= {"docs/quickstart.md"}
        found = [[each for each in re.findall(cut, text, re.MULTILINE) if each not in links] for text in (own, other)]
        assert sorted(found[0]) == sorted(found[1])


def test_there_are_two_pages_in_chinese() -> None:
    assert [page.relative_to(ROOT).as_posix() for page in TRANSLATED] == ["README.zh-CN.md", "docs/quickstart.zh-CN.md"]


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    named = set(re.findall(r"([\w/.-]+\.md)$", CONFIG.partition("\nnav:\n")[2], re.MULTILINE))
    assert named == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_every_schema_is_linked_from_the_page_about_json() -> None:
    linked = re.findall(r"\]\(\.\./schemas/([^)]+)\)", text_of("docs/reference/json.md"))
    assert sorted(linked) == sorted(path.name for path in (DOCS / "schemas").glob("*.json"))


def test_every_extra_that_a_page_installs_exists() -> None:
    named = {name for page in PAGES for name in re.findall(r"pip install '\.\[(\w+)\]'", page.read_text())}
    table = text_of("pyproject.toml").partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    assert named
    assert named <= set(re.findall(r"^(\w+) = \[", table, re.MULTILINE))


def test_what_the_site_is_built_with_is_pinned() -> None:
    constraints = text_of("constraints.txt")
    extra = re.search(r"^docs = \[\n(.*?)^\]", text_of("pyproject.toml"), re.MULTILINE | re.DOTALL)
    assert extra is not None
    names = re.findall(r'"([\w-]+)>=', extra[1])
    assert "zensical" in names
    assert [name for name in names if not re.search(rf"^{name}==[\d.]+$", constraints, re.MULTILINE)] == []


def script() -> ModuleType:
    loader = SourceFileLoader("check_links", str(ROOT / "scripts" / "check_links"))
    spec = importlib.util.spec_from_loader("check_links", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


BROKEN: Mapping[str, str] = {
    "../nowhere/": "no such page",
    "../other/#nope": "no such anchor",
    "#nope": "no such anchor",
    "missing.png": "no such page",
    "http://example.org/": "not an https address",
    "ftp://example.org/": "not an https address",
    "https:///path": "not an https address",
    "https://[example": "Invalid IPv6 URL",
}


@pytest.mark.parametrize("target", BROKEN)
def test_a_link_of_the_site_that_leads_nowhere_is_found(target: str, tmp_path: Path) -> None:
    good = '<a href="../other/#there">x</a><a href="#here" id="here">x</a><a href="https://example.org/">x</a>'
    for name, text in {"page": f'{good}<a href="{target}">x</a>', "other": '<p id="there">x</p>'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(text)
    assert script().broken(tmp_path) == [f"page/index.html: {target}: {BROKEN[target]}"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Returns build(more): what became of this clone's site, built with `more` in a page; and where it is."""
    pytest.importorskip("zensical", reason="the extra docs is not installed here; .ci/run builds the site, too")
    folder = tmp_path_factory.mktemp("site")
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "recipes"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "wanconv").symlink_to(ROOT / "wanconv")

    def site(more: str) -> tuple["subprocess.CompletedProcess[str]", Path]:
        (folder / "docs" / "index.md").write_text((DOCS / "index.md").read_text() + more)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False
        ), folder / "build" / "site"

    return site


@pytest.mark.exhaustive
def test_the_site_builds_without_a_warning_and_all_of_its_links_lead_somewhere(build: Build) -> None:
    done, site = build("")
    assert (done.returncode, "No issues found" in done.stdout + done.stderr) == (0, True), done.stdout + done.stderr
    assert script().broken(site) == []
    pages = {path.parent.relative_to(site).as_posix(): path.read_text() for path in site.rglob("index.html")}
    assert "Unreleased" in pages["changelog"]  # pages of other places are in it
    assert "Adding things" in pages["contributing"]
    assert "--8&lt;--" not in "".join(pages.values())
    offered = getattr(wanconv, "__all__", ())
    assert [name for name in offered if f'id="wanconv.{name}"' not in pages["reference/api"]] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", ["nowhere.md", "quickstart.md#nowhere"])
def test_a_page_with_a_broken_link_is_not_built(target: str, build: Build) -> None:
    done, _ = build(f"\n[nowhere]({target})\n")
    assert done.returncode != 0
