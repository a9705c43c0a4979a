"""What wanconv says: the library names its own arguments, and the command line turns each into one of its options."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main

from wanconv.cli.app import app
from wanconv.cli.flags import COMMANDS, FLAGS, SAME, as_flags, flags_in_error
from wanconv.errors import InputError, Refused, UsageError, argument, named

ROOT = Path(__file__).resolve().parents[2]
BELOW_CLI = sorted(path for path in (ROOT / "wanconv").rglob("*.py") if "cli" not in path.parts)
OPTION = re.compile(r"(?<![\w\-\\)])(?:--[a-z][\w-]*|-[a-z](?![\w\[]))")

# English that is read twice: "is no folder" for "is not a folder", and words with a plainer one.
# "there is no profile x", "no longer" and "such as" are plain.
TWICE = re.compile(
    r"(?<!there )\b(?:is|are|be|was|were) no\b(?! (?:longer|more)\b)|(?<!there )\b(?:is|are) none of\b"
    r"|\b(?:told|astray|gone)\b|\bbeside\b|(?<!^No )\bsuch\b(?! as\b)"
    r"|\bof what\b|\bwhat is none\b|(?<!there )\bis none$",
    re.IGNORECASE,
)

# What is a command line by itself: in a model card, in the demo's page, of pip, and in what numbers are named by.
COMMAND_LINES = {
    "wanconv/provenance/card.py",
    "wanconv/commands/demo.py",
    "wanconv/evaluation/backbone.py",
}


@cache
def texts(path: Path) -> list[tuple[int, str]]:
    """Returns line and text of every string that is not a docstring; of an f-string, with x for each value."""
    return list(_texts(path))


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented | parts:
            yield node.lineno, node.value


def options_in(path: Path) -> list[str]:
    where = path.relative_to(ROOT).as_posix()
    if where in COMMAND_LINES:
        return []
    return [f"{where}:{line}: {text}" for line, text in texts(path) if OPTION.search(text)]


def options_of_commands() -> set[str]:
    command = typer.main.get_command(app)
    commands = getattr(command, "commands")  # noqa: B009  # of Typer's own group class
    return {name for one in commands.values() for parameter in one.params for name in parameter.opts}


def test_no_message_below_the_command_line_names_an_option() -> None:
    assert len(BELOW_CLI) > 150
    assert [line for path in BELOW_CLI for line in options_in(path)] == []


def test_the_search_for_options_finds_one(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""--docstring"""\nraise ValueError(f"choose --{1}", "or -o")\n')
    found = [text for _, text in texts(tmp_path / "a.py") if OPTION.search(text)]
    assert sorted(found) == ["choose --x", "or -o"]


def twice_read(path: Path) -> list[str]:
    """Returns the messages of a module with English that is read twice; a word on its own is not a sentence."""
    found = [(line, text) for line, text in texts(path) if " " in text and TWICE.search(text)]
    return [f"{path.relative_to(path.anchor)}:{line}: {text}" for line, text in found]


def test_messages_say_it_in_the_words_of_the_field() -> None:
    everywhere = sorted((ROOT / "wanconv").rglob("*.py"))
    assert [line for path in everywhere for line in twice_read(path)] == []


def test_docstrings_say_it_in_the_words_of_the_field() -> None:
    modules = sorted((ROOT / "wanconv").rglob("*.py"))
    assert len(modules) > 150
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and TWICE.search(text := " ".join((ast.get_docstring(node) or "").split()))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("x is no folder", True),
        ("the entries are no tensors", True),
        ("its entry of x is none", True),
        ("put the config.json beside it", True),
        ("wanconv reads no such file", True),
        ("the first of what it holds", True),
        ("its role was told by its name", True),
        ("the revision may be gone", True),
        ("there is no profile x", False),
        ("is no longer read", False),
        ("a word such as high", False),
        ("there is none", False),
        ("is not a folder", False),
        ("No such command 'x'", False),  # Click's own
    ],
)
def test_the_search_for_english_that_is_read_twice(said: str, found: bool) -> None:
    assert bool(TWICE.search(said)) == found


def test_every_argument_that_a_message_names_is_an_option_of_a_command() -> None:
    known = options_of_commands()
    assert {FLAGS.get(name, f"--{name.replace('_', '-')}") for name in [*FLAGS, *SAME]} <= known
    spoken = {
        name
        for path in BELOW_CLI
        if path.name != "errors.py" and path.relative_to(ROOT).as_posix() not in COMMAND_LINES
        for _, text in texts(path)
        for name in named(text)
    }
    assert {"overwrite", "out", "exclude", "layout"} <= spoken
    assert spoken - set(FLAGS) - SAME == {"gunzip", "x"}  # a command of the system; a value


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("choose another `out`, or `overwrite=True` to replace it", "choose another --out, or --force to replace it"),
        ('say `expert="high"` or `expert="low"`', "say --expert high or --expert low"),
        ("`shard_nbytes` changes nothing", "--shard-size changes nothing"),
        (argument("exclude", ["a b/*", "c"]), "--exclude 'a b/*' --exclude c"),
        (argument("loras", ["high=x`y.safetensors"]), "--lora 'high=x`y.safetensors'"),
        (argument("exclude", ["\x1b[2J"]), "--exclude $'\\033[2J'"),
        ("fetch it: `git lfs pull`, `gunzip`, `unknown`", "fetch it: `git lfs pull`, `gunzip`, `unknown`"),
        ('a file named `out="\\x"`', 'a file named `out="\\x"`'),
    ],
)
def test_an_argument_becomes_an_option(said: str, shown: str) -> None:
    assert as_flags(said) == shown


@pytest.mark.parametrize("call", COMMANDS)
def test_a_call_that_a_message_advises_becomes_a_command(call: str) -> None:
    assert as_flags(f"run wanconv {call} now") == f"run wanconv {COMMANDS[call]} now"
    assert any(call in text for path in BELOW_CLI for _, text in texts(path))


def test_an_error_keeps_its_kind_and_names_options_in_all_of_its_lines() -> None:
    error = flags_in_error(Refused("`out` is full", "give `token`", ["without `lora_allow_unmatched`"]))
    assert (type(error), error.message, error.hint) == (Refused, "--out is full", "give --token")
    assert error.details == ("without --lora-allow-unmatched",)


def test_an_error_says_which_arguments_it_is_about() -> None:
    error = UsageError("`out` is taken", "choose another `out`, or `overwrite=True`")
    assert error.arguments == ("out", "overwrite")
    assert InputError("a file is damaged").arguments == ()
