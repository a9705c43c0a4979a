"""Paths as they are typed: empty ones, addresses of elsewhere, home folders, and names of files for folders."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from typer.core import TyperGroup
from typer.main import get_command

from wanconv.cli.app import app
from wanconv.cli.run import run
from wanconv.commands import validate
from wanconv.commands.convert import convert, preview
from wanconv.commands.inspect import inspect
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import UsageError
from wanconv.report import Report
from wanconv.storage.paths import local_path
from wanconv.storage.places import repository_of, scheme_of

EMPTY = "the path is empty"
# fmt: off
TAKES = {  # every option and argument that takes a path: the command with a place for it, what a refusal calls it
    "inspect":             ("inspect {}", "the model"),
    "recipes":             ("recipes {}", "the recipe"),
    "recipes --on":        ("recipes bf16 --on {}", "--on"),
    "convert":             ("convert {} -r bf16 -n", "the model"),
    "convert --recipe":    ("convert nowhere -r {}", "--recipe"),
    "convert --out":       ("convert nowhere -r bf16 -o {} --force", "--out"),
    "convert --report":    ("convert nowhere -r bf16 --report {}", "--report"),
    "download --local-dir": ("download owner/name --local-dir {}", "--local-dir"),
    "verify":              ("verify {}", "the model"),
    "verify --against":    ("verify nowhere --against {}", "--against"),
    "verify --sums":       ("verify nowhere --sums list --sums {}", "--sums"),
    "validate":            ("validate {}", "the model"),
    "validate --against":  ("validate nowhere --against {}", "--against"),
    "validate --profile":  ("validate nowhere --profile {}", "--profile"),
    "validate --image":    ("validate nowhere --image {}", "--image"),
    "validate --last-image": ("validate nowhere --last-image {}", "--last-image"),
    "validate --audio":    ("validate nowhere --audio {}", "--audio"),
    "validate --lpips":    ("validate nowhere --lpips {}", "--lpips"),
    "validate --recheck":  ("validate --recheck {}", "--recheck"),
    "validate --out":      ("validate nowhere -o {}", "--out"),
    "publish":             ("publish {} owner/name", "the folder"),
    "demo --dir":          ("demo --dir {}", "--dir"),
}
# fmt: on
TEXTS = {  # what takes no path
    "recipes layout",
    "convert layout",
    "convert shard_size",
    "convert exclude",
    "convert base_model",
    "convert token",
    "download repository",
    "download source",
    "download revision",
    "download include",
    "download exclude",
    "download only",
    "download token",
    "inspect exclude",
    "inspect token",
    "verify hub",
    "verify client",
    "verify token",
    "verify exclude",
    "validate numerics",
    "validate size",
    "validate prompt",
    "validate memory",
    "validate device",
    "validate exclude",
    "publish repository",
    "publish token",
    "convert lora",
    "verify lora",  # their text holds a path, which tests/weights/test_lora.py looks at
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the current folder, with a home folder beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Returns what became of a command: exit code, message, hint; asserts that it wrote nothing."""
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    captured = capsys.readouterr()
    first, *_, last = captured.err.splitlines()
    assert (captured.out, list(Path.cwd().iterdir())) == ("", [])
    return ended.value.code, first, last


def words(command: str, path: str) -> list[str]:
    return [path if word == "{}" else word for word in command.split()]


def test_every_option_and_argument_that_takes_text_takes_a_path_here_or_is_known_to_take_none() -> None:
    commands = get_command(app)
    assert isinstance(commands, TyperGroup)
    kinds = {
        f"{verb} {parameter.name}": type(parameter.type).__name__
        for verb, command in commands.commands.items()
        for parameter in command.params
    }
    assert {name for name, kind in kinds.items() if kind == "StringParamType"} == TEXTS
    paths = [name for name, kind in kinds.items() if kind == "FuncParamType"]
    assert len(paths) == len(TAKES), paths


@pytest.mark.parametrize("place", TAKES)
def test_an_empty_path_is_a_usage_error_and_not_the_current_folder(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, where = TAKES[place]
    for text in ("", " "):
        code, message, hint = said(words(command, text), capsys)
        assert (code, message) == (2, f"error[usage]: {where}: {EMPTY}")
        assert hint == "hint: name one; a variable that is not set leaves it empty"


@pytest.mark.parametrize("command", ["inspect", "convert -r bf16", "download owner/name", "verify", "validate"])
def test_an_empty_glob_is_a_usage_error_and_not_one_that_excludes_nothing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message, hint = said([*command.split(), "--exclude", "", "--exclude", "a"], capsys)
    assert (code, message) == (2, "error[usage]: --exclude: the glob is empty")
    assert hint == "hint: name one; a variable that is not set leaves it empty"


@pytest.mark.parametrize("place", TAKES)
def test_an_address_of_a_scheme_that_is_not_supported_is_refused_by_name_and_whole(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, where = TAKES[place]
    for address in ("s3://bucket/x", "https://host/a/b?c=d#e", "GS://bucket//x"):
        code, message, hint = said(words(command, address), capsys)
        scheme = address.partition("://")[0].lower()
        assert (code, message) == (2, f"error[usage]: {where}: {scheme}:// is not supported yet: {address}")
        assert hint.startswith("hint: give a path on this machine")
        assert ("hf://OWNER/NAME" in hint) == (place in ("inspect", "convert"))


@pytest.mark.parametrize("place", [place for place in TAKES if place not in ("inspect", "convert")])
def test_a_repository_is_refused_where_a_path_on_this_machine_is_wanted(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, _ = TAKES[place]
    for address in ("hf://owner/name", "ms://owner/name@v1"):
        code, message, hint = said(words(command, address), capsys)
        assert code == 2
        assert f"{address} is a repository, " in message
        if place in ("convert --out", "download --local-dir", "validate --out", "demo --dir"):
            assert hint == f"hint: write to a folder, then wanconv publish FOLDER {address}"
        else:
            assert "download" in hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("https://huggingface.co/Wan-AI/Wan2.2-T2V-A14B", "https:// is not", "write it as hf://Wan-AI/Wan2.2-T2V-A14B"),
        ("https://modelscope.cn/models/Wan-AI/Wan2.2/", "https:// is not", "write it as ms://Wan-AI/Wan2.2"),
        ("hf:/owner/name", "the model: hf:/owner/name lacks a slash", "write it as hf://owner/name"),
        ("s3:/bucket/x", "s3:// is not supported yet: s3:/bucket/x", "give a path on this machine"),
        ("file:///models/x", "file:// is not supported yet: file:///models/x", "give the path itself: /models/x"),
    ],
)
def test_what_was_probably_meant_is_hinted_at(
    text: str, message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, way = said(["inspect", text], capsys)
    assert (code, message in told, way.startswith(f"hint: {hint}")) == (2, True, True)


def test_a_hub_is_asked_for_no_address_of_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["download", "s3://bucket/x"],
        ["publish", ".", "s3://bucket/x"],
        ["verify", ".", "--hub", "s3://bucket/x"],
    ):
        code, message, hint = said(arguments, capsys)
        assert (code, "s3://bucket/x" in message or "no conversion" in message) == (2, True)
    code, message, hint = said(["download", "https://huggingface.co/owner/name"], capsys)
    assert (code, hint) == (2, "hint: write it as hf://owner/name")


def test_a_recipe_and_a_scheme_from_the_environment_are_read_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, message in (
        ("", "error[usage]: Missing option '--recipe'"),
        (" ", f"error[usage]: --recipe: {EMPTY}"),
        ("s3://bucket/x.toml", "error[usage]: --recipe: s3:// is not supported yet: s3://bucket/x.toml"),
        ("~/mine.toml", f"error[usage]: recipe {Path.home()}/mine.toml cannot be read"),
        ("./~/mine.toml", f"error[usage]: recipe {Path.cwd()}/~/mine.toml cannot be read"),
    ):
        monkeypatch.setenv("WANCONV_RECIPE", value)
        code, told, _ = said(["convert", "nowhere"], capsys)
        assert (code, told.startswith(message)) == (2, True), told


# fmt: off
READ = (
    ("~",            "{home}"),
    ("~/x",          "{home}/x"),
    ("./~",          "{here}/~"),
    ("./~/x",        "{here}/~/x"),
    ("./~root",      "{here}/~root"),
    (".//~root/x",   "{here}/~root/x"),
    ("x/~root",      "x/~root"),
    ("x/../~root",   "x/../~root"),
    ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
    ("./s3:/x",      "{here}/s3:/x"),
    ("./hf:/a/b",    "{here}/hf:/a/b"),
    ("./hf://a/b",   "{here}/hf:/a/b"),
    ("x:/y",         "x:/y"),
    ("models:/y",    "models:/y"),
    ("x/s3://y",     "x/s3:/y"),
    (".",            "."),
    ("x/",           "x"),
    ("/",            "/"),
)
# fmt: on


@pytest.mark.parametrize(("text", "path"), READ)
def test_a_path_is_read_from_its_text(text: str, path: str, here: Path) -> None:
    assert str(local_path(text, "it")) == path.format(home=here.parent / "home", here=here)


def test_a_home_folder_that_nobody_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does where it finds none
    with pytest.raises(UsageError, match=r"^--out: ~/x: this user has no home folder$"):
        local_path("~/x", "--out")


def test_an_address_is_one_by_its_scheme() -> None:
    assert [scheme_of(text) for text in ("hf://a/b", "S3://b", "s3:/b", "C://x", "C:/x", "a:b", "a/b")] == [
        "hf", "s3", "s3", None, None, None, None,
    ]  # fmt: skip
    assert [repository_of(text) for text in ("hf://a/b", "MS://a/b", "hf:/a/b", "s3://a/b")] == [
        "hf://a/b", "ms://a/b", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("address", ["s3://bucket/x", "https://host/x", "hf://owner/name"])
def test_the_library_refuses_an_address_that_became_a_path(address: str, here: Path) -> None:
    folded = Path(address)
    calls: list[Callable[[], Report]] = [
        lambda: inspect(folded),
        lambda: convert(folded, ConvertOptions("bf16")),
        lambda: validate.validate(here, validate.ValidateOptions(out=folded)),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=f"{folded.parts[0]}/"):
            call()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("suffix", ["safetensors", "gguf", "pth", "pt", "bin", "ckpt", "SafeTensors"])
def test_the_name_of_a_weight_file_is_refused_where_a_folder_is_written(
    suffix: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [["demo", "--dir", f"x.{suffix}"], ["validate", ".", "-o", f"x.{suffix}"]]
    for arguments in commands:
        code, message, hint = said(arguments, capsys)
        assert (code, message) == (2, f"error[usage]: x.{suffix} is the name of a file, and a folder is written there")
        assert hint == "hint: name a folder: x"


def test_a_report_is_a_folder_too(capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("html", "json", "mp4"):
        code, message, _ = said(["validate", ".", "-o", f"report.{suffix}"], capsys)
        assert (code, "is the name of a file" in message) == (2, True)


@pytest.mark.parametrize("force", [False, True])
def test_an_output_with_the_name_of_a_weight_file_is_refused(tiny_dit: Path, here: Path, force: bool) -> None:
    for make in (convert, preview):
        with pytest.raises(UsageError, match=r"x\.safetensors is the name of a file, and a folder is") as told:
            make(tiny_dit, ConvertOptions("bf16", out=Path("x.safetensors"), force=force))
        assert told.value.hint == "name a folder: x"
        with pytest.raises(UsageError, match=r"^s3:// is not supported yet: s3:/bucket/x$"):
            make(tiny_dit, ConvertOptions("bf16", out=Path("s3://bucket/x"), force=force))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\udcff"])
def test_an_output_with_a_name_that_no_command_reads_is_refused(tiny_dit: Path, here: Path, name: str) -> None:
    for make in (convert, preview):
        with pytest.raises(UsageError, match=r"^.a.* holds characters that no path should have$"):
            make(tiny_dit, ConvertOptions("bf16", out=Path(name)))
    assert list(here.iterdir()) == []


@pytest.fixture(scope="module")
def tiny_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("paths") / "dit", "wan2.1-t2v-1.3b", "dit")


# Where a report is written


@pytest.mark.parametrize("name", ["results.json", "validation.html", "reference/0000.png", "candidate.mp4"])
def test_a_report_is_not_written_over_the_files_of_others(tiny_dit: Path, here: Path, name: str) -> None:
    (here / "report" / name).parent.mkdir(parents=True)
    (here / "report" / name).write_text("precious")
    with pytest.raises(UsageError, match=r"report/.* is not from a report of validate, and is not replaced") as told:
        validate.validate(tiny_dit, validate.ValidateOptions(out=here / "report"))
    assert told.value.hint == "choose another folder for the report, or move it away by hand"
    assert (here / "report" / name).read_text() == "precious"


@pytest.mark.parametrize("name", ["results.json", "validation.html", "reference"])
def test_a_report_is_not_written_through_a_link(tiny_dit: Path, here: Path, name: str) -> None:
    (here / "report").mkdir()
    (here / "report" / name).symlink_to(here.parent / "home")
    with pytest.raises(UsageError, match=f"report/{name} is a link"):
        validate.validate(tiny_dit, validate.ValidateOptions(out=here / "report"))
    assert list((here.parent / "home").iterdir()) == []


def test_a_word_of_few_is_taken_in_any_case() -> None:
    commands = get_command(app)
    assert isinstance(commands, TyperGroup)
    choices = {
        f"{verb} {parameter.name}": parameter.type.case_sensitive
        for verb, command in commands.commands.items()
        for parameter in command.params
        if hasattr(parameter.type, "case_sensitive")
    }
    assert "convert expert" in choices
    assert [name for name, case_sensitive in choices.items() if case_sensitive] == []
