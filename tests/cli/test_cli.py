"""The command line as its users meet it: help, speed, exit codes, streams, JSON, signals."""

import hashlib
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from command import COMMAND, call, run

from wanconv import __version__, recipe
from wanconv.cli.app import app
from wanconv.cli.run import run as cli_run
from wanconv.engine.numerics import PRESETS
from wanconv.layouts import LAYOUTS
from wanconv.samples import synthetic

VERBS = tuple(command.callback.__name__ for command in app.registered_commands if command.callback)
OPTIONS = {
    "inspect": ("--tensors", "--expert", "--exclude", "--json", "--quiet", "-q", "--verbose", "-v"),
    "recipes": ("--on", "--layout", "--json", "--quiet", "--verbose"),
    "convert": (
        "--recipe", "-r", "--layout", "--out", "-o", "--output", "--dry-run", "-n", "--jobs", "-j", "--exclude",
        "--shard-size", "--force", "--expert", "--base-model", "--hash-source", "--json", "--quiet", "--verbose",
        "--allow-unsafe-fp16", "--report", "WANCONV_RECIPE", "WANCONV_LAYOUT", "WANCONV_JOBS",
    ),
    "download": (
        "--source", "--revision", "--include", "--exclude", "--only", "--local-dir", "--token", "--dry-run", "-n",
        "--jobs", "-j", "--force", "--json", "--quiet", "--verbose", "WANCONV_SOURCE",
    ),
    "verify": (
        "--against", "--sums", "--hub", "--for", "--token", "--expert", "--exclude", "--jobs", "--json", "--quiet",
        "--verbose",
    ),
    "validate": (
        "--against", "--profile", "--numerics", "--full-length", "--steps", "--size", "--frames", "--prompt", "--seed",
        "--memory", "--device", "--recheck", "--out", "-o", "--expert", "--exclude", "--json", "--quiet", "--verbose",
        "WANCONV_MEMORY", "WANCONV_DEVICE",
    ),
    "publish": ("--private", "--token", "--jobs", "--json", "--quiet", "--verbose"),
    "demo": ("--dir", "--json", "--quiet", "--verbose"),
}  # fmt: skip
HEAVY = ("torch", "numpy", "diffusers", "transformers", "safetensors", "huggingface_hub", "modelscope_hub", "requests")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """Returns a checkpoint, with a copy beside it that nothing converts: `whole`."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(tiny("wan2.1-t2v-1.3b"), folder / "whole")
    return Path(shutil.copytree(tiny("wan2.1-t2v-1.3b"), folder / "source"))


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a checkpoint of 0.4 GB: it takes long enough to convert to be stopped on the way."""
    folder = tmp_path_factory.mktemp("long") / "source"
    return synthetic.make(folder, synthetic.SampleOptions("wan2.1-t2v-1.3b", "full", blocks=1, components=("dit",)))


def test_the_bare_command_shows_its_help_and_is_a_usage_error(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 2
    assert all(verb in done.stdout for verb in VERBS)


def test_version(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wanconv {__version__}\n", "")


WINDOWS = """
import os, sys
from wanconv.cli import main

sys.modules |= dict.fromkeys(("fcntl", "grp", "pty", "pwd", "resource", "termios"))  # what Windows' Python lacks
os.name = "nt"
sys.argv = ["wanconv", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("json_too", [False, True])
def test_windows_is_told_of_wsl2_in_a_sentence(json_too: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WINDOWS, "inspect", "model", *["--json"][: int(json_too)]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    sentence, hint = "wanconv needs Linux; on Windows, it runs inside WSL2", "run wsl --install, then install it there"
    assert done.returncode == 2
    if json_too:
        (finding,) = json.loads(done.stdout)["findings"]
        assert {sentence, hint} <= set(finding.values())
    else:
        assert (done.stdout, done.stderr) == ("", f"error[usage]: {sentence}\nhint: {hint}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_the_options_and_ends_with_examples(verb: str, tmp_path: Path) -> None:
    done = call(verb, "--help", cwd=tmp_path, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert [
        option for option in OPTIONS.get(verb, ("--json", "--quiet", "--verbose")) if option not in done.stdout
    ] == []
    examples = [line.strip() for line in done.stdout.partition("Examples")[2].splitlines() if line.strip()]
    assert examples
    assert all(line.startswith(f"wanconv {verb}") for line in examples)


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "convert --help",
        "recipes",
        "recipes fp8-plain",
        "recipes bf16 --on source",
        "inspect source",  # text encoder and VAE are .pth
        "convert source -r bf16 --layout diffusers --dry-run",
        "verify source",
    ],
)
def test_what_reads_headers_only_starts_without_the_heavy_libraries(arguments: str, source: Path) -> None:
    probe = (
        "import atexit, sys; from wanconv.cli import main; "
        f"atexit.register(lambda: print('loaded:', *(set(sys.modules) & set({HEAVY})))); main()"
    )
    command = [sys.executable, "-c", probe, *shlex.split(arguments)]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert list(source.glob("*.pth"))


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("convrt", "No such command 'convrt'", "did you mean convert?"),
        ("frobnicate", "No such command 'frobnicate'", "known: inspect, recipes, convert, download"),
        (
            "convert source",
            "Missing option '--recipe' / '-r' (env var: 'WANCONV_RECIPE')",
            "run wanconv convert --help",
        ),
        ("convert source --recpe bf16", "No such option: --recpe", "did you mean --recipe?"),
        ("convert source --Recipes bf16", "No such option: --Recipes", "did you mean --recipe?"),
        (
            "convert source -r fp8",
            "there is no recipe 'fp8'",
            "did you mean fp8-plain, fp8-scaled or fp8-blocks-rest-bf16?",
        ),
        ("convert source -r Q8_0", "there is no recipe 'Q8_0'", "did you mean gguf-q8_0?"),
        ("convert source -r bf16 --layout ComfyUI", "there is no layout 'ComfyUI'", "did you mean comfyui?"),
        ("validate source --numerics bf16", "there are no numerics 'bf16'", "known: official, diffusers, comfyui-fp16"),
        ("validate source --numerics FP16", "there are no numerics 'FP16'", "did you mean fp16?"),
        ("validate source --profile fast", "there is no profile 'fast'", "known: quick, standard, full"),
        ("Inspekt source", "No such command 'Inspekt'", "did you mean inspect?"),
        ("inspect source more", "Got unexpected extra argument(s) (more)", "run wanconv inspect --help"),
        ("inspect --expert middle", "'middle' is not one of 'high', 'low'", "run wanconv inspect --help"),
        ("verify source -j 0", "0 is not in the range 1<=x<=64", "run wanconv verify --help"),
        ("convert source -r bf17", "there is no recipe 'bf17'", "did you mean bf16?"),
        ("convert source -r bf16 --layout difusers", "there is no layout 'difusers'", "did you mean diffusers?"),
        ("convert source -r bf16 --shard-size 5XB", "--shard-size: '5XB' is not a size", "write it as 5GB"),
        ("convert source -r bf16 --shard-size 0TB", "--shard-size 0TB is below 1 MB", "choose a larger one"),
        ("convert source -r bf16 --shard-size infGB", "--shard-size: 'infGB' is not a size", "write it as 5GB"),
        ("convert source -r bf16 --shard-size 9kB", "--shard-size 9kB is below 1 MB", "choose a larger one"),
        ("validate source --size ²x²", "--size: '²x²' is not a size", "write it as 832x480"),
        (f"validate source --size {'9' * 5000}x16", f"--size: '{'9' * 4000}", "write it as 832x480"),
        ("convert source -r bf16 --out source", "source source", "choose an --out next to the source"),
        (
            "convert source -r bf16 --base-model base",
            "--base-model 'base' is not a valid repository name",
            "write it as Wan-AI/Wan2.2",
        ),
        ("convert source -r bf16 --report none", "--report is for denoisers that break in fp16", "leave it out"),
        (f"validate source --seed {2**64}", f"{2**64} is not in the range", "run wanconv validate --help"),
        ("validate source --seed -1", "-1 is not in the range", "run wanconv validate --help"),
        ("validate source --steps 1001", "1001 is not in the range 1<=x<=1000", "run wanconv validate --help"),
        ("recipes --on source", "--on needs a recipe to explain", "name one: wanconv recipes NAME --on SRC"),
        (
            "verify hf://a/b",
            "hf://a/b is a repository, and this command reads what is here",
            "wanconv download hf://a/b",
        ),
        ("recipes none.toml", "recipe none.toml cannot be read", "check the path"),
    ],
)
def test_a_wrong_command_is_told_in_a_sentence_and_a_hint(
    arguments: str, message: str, hint: str, source: Path
) -> None:
    done = call(*arguments.split(), cwd=source.parent)
    assert (done.returncode, done.stdout) == (2, "")
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("error[usage]: ")
    assert message in first
    assert last.startswith("hint: " + hint)


def test_a_removed_current_folder_is_told_in_a_sentence(source: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    removed = 'cd gone && rmdir ../gone && exec "$@"'
    command = ["bash", "-c", removed, "-", *COMMAND, "convert", str(source), "-r", "bf16", "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error[usage]: there is no current folder: No such file or directory\nhint: change to one that exists\n"
    )


def test_a_tilde_that_the_shell_has_left_is_the_home_folder(source: Path, tmp_path: Path) -> None:
    Path(shutil.copytree(source, tmp_path / "model"))
    done = call("convert", "~/model", "-r", "bf16", "--out=~/out", "--dry-run", cwd=source.parent, HOME=str(tmp_path))
    assert done.stdout.splitlines()[0] == f"plan: {tmp_path}/model → {tmp_path}/out"
    done = call("inspect", "~nobody-of-that-name", cwd=source.parent)
    assert done.stderr.startswith("error[unreadable]: ~nobody-of-that-name does not exist")


def test_options_may_be_spelled_with_underscores(source: Path) -> None:
    done = call("convert", source, "--recipe=bf16", "--dry_run", "--base_model", "a/b_c", cwd=source.parent)
    assert done.returncode == 0
    assert done.stdout.startswith("plan: ")


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        ("inspect source --tensors", 0),
        ("recipes", 0),
        ("recipes keep", 0),
        ("recipes keep --on source", 0),
        ("convert source -r keep -n", 0),
        ("convert source -r keep -o converted", 0),
        ("verify whole --against source", 0),
        pytest.param("demo --dir demo --progress none", 0, marks=pytest.mark.exhaustive),
        ("verify source --sums wrong.md5", 4),
        ("inspect nowhere", 3),
        ("convert source -r nothing", 2),
        ("convert source", 2),
        ("convert source -r bf16 --frobnicate", 2),
        ("verify nowhere", 3),
        ("demo --dir source/config.json", 7),
    ],
)
def test_json_is_one_document_on_stdout_whatever_happens(arguments: str, exit_code: int, source: Path) -> None:
    (source.parent / "wrong.md5").write_text("0" * 32 + "  config.json\n")
    done = call(*arguments.split(), "--json", cwd=source.parent)
    report = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (done.returncode, report["exit_code"], report["ok"]) == (exit_code, exit_code, exit_code == 0)
    assert report["schema"] == "wanconv.report/1"
    assert report["verb"] == arguments.split()[0]
    assert {"title", "figures", "tables", "findings"} <= report.keys()
    assert all(finding["code"] for finding in report["findings"] if finding["severity"] == "failure")
    assert exit_code == 0 or [one for one in report["findings"] if one["severity"] == "failure"]
    assert (exit_code == 0) <= (done.stderr == "")


@pytest.mark.parametrize("arguments", ["recipes", "inspect .", "convert . -r bf16 -n", "verify ."])
def test_quiet_prints_nothing_when_all_is_well(arguments: str, source: Path) -> None:
    done = call(*arguments.split(), "-q", cwd=source)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_quiet_prints_failures(source: Path, tmp_path: Path) -> None:
    sums = tmp_path / "wrong.md5"
    sums.write_text("0" * 32 + "  config.json\n")
    done = call("verify", source, "-q", "--sums", sums, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("failure config.json: md5 is ")


def test_ten_lines_of_a_long_list_are_shown_and_all_with_v(source: Path, tmp_path: Path) -> None:
    sums = tmp_path / "missing.md5"
    sums.write_text("".join("0" * 32 + f"  file{number}\n" for number in range(12)))
    short, long = (call("verify", source, "--sums", sums, *more, cwd=tmp_path) for more in ([], ["-v"]))
    assert (short.stderr.count("is missing"), long.stderr.count("is missing")) == (10, 12)
    assert "… and 2 more (-v shows them)" in short.stderr


def test_results_go_to_stdout_and_findings_to_stderr(source: Path) -> None:
    done = call("verify", source, cwd=source.parent)
    assert "408" not in done.stdout
    assert "tensors, every one known" in done.stdout
    assert done.stderr.startswith("warning ")


def on_a_terminal(*arguments: str, cwd: Path, **environment: str) -> str:
    """Returns what a command shows where stdout and stderr are a terminal."""
    leader, follower = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**clean, "TERM": "xterm", **environment},
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    ):
        os.close(follower)
        shown = bytearray()
        while True:
            try:
                chunk = os.read(leader, 1 << 16)
            except OSError:  # Linux: EIO where the other side is closed
                break
            if not chunk:
                break
            shown += chunk
    os.close(leader)
    return shown.decode()


@pytest.fixture
def list_of_all(source: Path, tmp_path: Path) -> Path:
    """Returns a digest list that is right but for one file."""
    sums = tmp_path / "list.sha256"
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.rglob("*") if path.is_file()}
    lines = [f"{digest}  {path.relative_to(source)}\n" for path, digest in digests.items()]
    sums.write_text("".join(lines) + "0" * 64 + "  config.json\n")
    return sums


def test_a_terminal_gets_colour_and_progress_and_no_color_is_honoured(source: Path, list_of_all: Path) -> None:
    verify = ["verify", str(source), "--sums", str(list_of_all)]
    coloured, plain = on_a_terminal(*verify, cwd=source), on_a_terminal(*verify, cwd=source, NO_COLOR="1")
    assert "checking digests" in coloured
    assert re.search(r"\x1b\[[\d;]*3\dm", coloured)  # a colour
    assert not re.search(r"\x1b\[[\d;]*3\dm", plain)


def test_elsewhere_there_is_no_progress_and_no_escape_sequence(source: Path, list_of_all: Path) -> None:
    done = call("verify", source, "--sums", list_of_all, cwd=source)
    assert done.returncode == 4
    assert "\x1b" not in done.stdout + done.stderr
    assert "checking digests" not in done.stderr


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_broken_pipe_is_no_traceback(more: str, source: Path) -> None:
    line = f"{shlex.join(COMMAND)} inspect . --tensors {more} | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=source, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_full_disk_under_the_report_is_told(source: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.startswith("error[output]: the report cannot be printed: No space left on device\nhint: ")


def test_closed_output_is_no_traceback(source: Path) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        line = f"{shlex.join(COMMAND)} inspect {closed}"
        done = subprocess.run(["bash", "-c", line], cwd=source, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@pytest.mark.parametrize("name", ["[red]", ":smile:", "-under_score ü"])
def test_a_path_is_printed_as_it_is(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(source)
    done = call("inspect", f"./{name}", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, name)


def test_a_file_name_that_is_no_text_is_no_traceback(source: Path, tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/\xff"
    command = [os.fsencode(part) for part in (*COMMAND, "convert", str(source), "-r", "keep", "-n", "-o")]
    done = subprocess.run([*command, out], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2  # what was written there, no command would read
    assert "holds characters that no path should have" in done.stderr


def test_settings_come_from_the_environment(source: Path) -> None:
    environment = {"WANCONV_RECIPE": "fp32", "WANCONV_LAYOUT": "diffusers", "WANCONV_JOBS": "1"}
    done = call("convert", source, "-n", "--json", cwd=source.parent, **environment)
    figures = json.loads(done.stdout)["figures"]
    assert (figures["recipe"], figures["layout"]) == ("fp32", "diffusers")
    more = call("convert", source, "-n", "--json", cwd=source.parent, **environment | {"WANCONV_JOBS": "3"})
    assert json.loads(more.stdout)["figures"]["conversion_memory_nbytes"] > figures["conversion_memory_nbytes"]


def completions(line: str, cwd: Path) -> set[str]:
    """Returns what bash would offer after `line`."""
    words = line.split(" ")
    environment = {
        "_WANCONV_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    return set(call(cwd=cwd, **environment).stdout.split())


def test_the_shell_completes_commands_recipes_and_layouts(tmp_path: Path) -> None:
    assert completions("wanconv ", tmp_path) == set(VERBS)
    assert completions("wanconv convert --recipe ", tmp_path) == set(recipe.names())
    assert completions("wanconv convert -r fp8", tmp_path) == {name for name in recipe.names() if name[:3] == "fp8"}
    assert completions("wanconv recipes ", tmp_path) == set(recipe.names())
    assert completions("wanconv convert --layout ", tmp_path) == set(LAYOUTS)


def test_out_of_memory_is_told(tmp_path: Path) -> None:
    names = ",".join(
        f'"tensor{index:06}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for index in range(150_000)
    )
    header = ("{" + names + "}").encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (130 << 20, 130 << 20))

    done = subprocess.run(
        [*COMMAND, "inspect", "."], cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert done.returncode == 7
    assert done.stderr.startswith("error[output]: out of memory\nhint: ")


# A disk on which each write takes a fifth of a second: whoever sends the signal comes in time on a busy machine, too.
SLOW_DISK = """
import os, time
write = os.pwrite
os.pwrite = lambda *arguments: (time.sleep(0.2), write(*arguments))[1]
from wanconv.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_an_interrupted_convert_names_the_command_that_finishes_it(
    number: signal.Signals, long_job: Path, tmp_path: Path
) -> None:
    arguments = ["convert", str(long_job), "--recipe", "fp16", "--out", "a folder", "--jobs", "1"]
    command = [sys.executable, "-c", SLOW_DISK, *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_for(tmp_path / "a folder.partial" / ".wanconv" / "journal")
        running.send_signal(number)
        output, errors = running.communicate(timeout=300)
    assert (running.returncode, output) == (130, "")
    first, last = errors.splitlines()
    assert first.startswith("error[interrupted]: stopped")
    resume = last.removeprefix("hint: run the same command to go on: ")
    assert shlex.split(resume) == ["wanconv", *arguments]
    assert not (tmp_path / "a folder").exists()
    done = call(*shlex.split(resume)[1:], cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "a folder" / "wanconv.json").exists()


def wait_for(path: Path) -> None:
    """Waits until a file holds something."""
    until = time.monotonic() + 300
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.005)


def test_a_failure_in_json_has_the_code_message_hint_and_exit_code_of_its_kind(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    cases: dict[str, tuple[int, list[object]]] = {
        "usage": (2, ["convert", source, "-r", "none-of-that-name", "-o", tmp_path / "new"]),
        "occupied": (2, ["convert", source, "-r", "bf16", "-o", tmp_path / "out"]),
        "unreadable": (3, ["inspect", tmp_path / "absent"]),
        "unreachable": (3, ["inspect", "hf://owner/name"]),
    }
    for code, (exit_code, arguments) in cases.items():
        with pytest.raises(SystemExit) as ended:
            cli_run([*map(str, arguments), "--json"])
        document = json.loads(capsys.readouterr().out)
        (finding,) = document["findings"]
        assert (finding["code"], document["exit_code"], ended.value.code) == (code, exit_code, exit_code)
        assert document["ok"] is False
        assert finding["message"] == document["title"] != ""
        assert finding["fix"]


def test_the_help_of_validate_names_every_numerics_preset() -> None:
    command = typer.main.get_command(app).commands["validate"]  # type: ignore[attr-defined]  # a group
    (option,) = [one for one in command.params if one.name == "numerics"]
    assert re.split(r", | or ", option.help.partition(": ")[2].removesuffix(".")) == list(PRESETS)
