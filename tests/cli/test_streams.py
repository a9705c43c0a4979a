"""Standard streams that are closed, full or gone, and signals at any moment: the right exit code, nothing silent."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import COMMAND
from covering import covering, some

FULL = "error[output]: the report cannot be printed: No space left on device\nhint: free space where the output goes\n"
COMMANDS = {"recipes": 0, "--help": 0, "recipes nothing": 2, "recipes --json": 0, "recipes nothing --json": 2}


def ended(line: str, cwd: Path) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of a shell's line; of a pipe the last code that is not 0."""
    command = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", some(list(COMMANDS), 4))
def test_no_stream_changes_what_a_command_does_or_keeps_back_what_the_others_can_take(
    command: str, tmp_path: Path
) -> None:
    code, output, errors = ended(f"{shlex.join(COMMAND)} {command}", tmp_path)
    assert code == COMMANDS[command]
    assert output or errors
    line = f"{shlex.join(COMMAND)} {command}"
    full = (code or 7, "", errors + FULL) if output else (code, "", errors)
    expected = {
        "2>&-": (code, output, ""),
        ">&-": (code, "", errors),
        "<&-": (code, output, errors),
        "<&- >&- 2>&-": (code, "", ""),
        "2>/dev/full": (code, output, ""),
        ">/dev/full": full,
        "| head -c 1": (code, output[:1], errors),
        "2>&1 >/dev/null | head -c 1": (code, errors[:1], ""),
    }
    assert {how: ended(f"{line} {how}", tmp_path) for how in expected} == expected


def test_a_failed_check_stays_one_where_its_reader_is_gone(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "wrong.md5").write_text("0" * 32 + "  config.json\n")
    line = (
        f"{shlex.join(COMMAND)} verify {shlex.quote(str(tiny('wan2.1-t2v-1.3b')))} --sums wrong.md5 2>/dev/null | true"
    )
    assert ended(line, tmp_path)[0] == 4


@pytest.mark.exhaustive
@pytest.mark.parametrize("closed", some(["<&- >&- 2>&-", "2>&-"], 2))
def test_a_message_goes_into_no_weight_file_where_streams_are_closed(
    closed: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """The next file to be opened would take the number of a stream, and be written what is meant for that."""
    convert = f"{shlex.join(COMMAND)} convert {shlex.quote(str(tiny('wan2.1-t2v-1.3b')))} -r fp16 --progress json -o"
    assert ended(f"{convert} open", tmp_path)[0] == 0
    assert ended(f"{convert} closed {closed}", tmp_path)[0] == 0
    files = sorted(path.relative_to(tmp_path / "open") for path in (tmp_path / "open").rglob("*") if path.is_file())
    assert files
    for path in files:
        wanted, found = ((tmp_path / out / path).read_bytes() for out in ("open", "closed"))
        if path.name == "wanconv.json":
            assert json.loads(found)["files"] == json.loads(wanted)["files"]
        else:
            assert found == wanted


# Ctrl-C at a chosen moment

INTERRUPTED = {
    "while the command line is imported": "before('wanconv.cli.run')",
    "while a library is imported": "before('rich.console')",
    "while a verb is imported": "before('wanconv.commands.recipes')",
    "in a destructor": "before('wanconv.commands.recipes', lambda: Dying())",
    "while it prints": "sys.stdout = Interrupting(sys.stdout, 'write')",
    "at the last flush": "sys.stdout = Interrupting(sys.stdout, 'flush')",
    "at the exit": "atexit.register(interrupt)",
    "while modules are torn down": "sys.dying = Dying()",
}
LATE = ("at the exit", "while modules are torn down")
HOOKS = """
import atexit, os, signal, sys

def interrupt():
    signal.raise_signal({number})

class Dying:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, {number})

class Interrupting:
    def __init__(self, inner, name):
        self.inner, self.name = inner, name

    def __getattr__(self, name):
        if name == self.name:
            self.name = ""
            interrupt()
        return getattr(self.inner, name)

class before:
    def __init__(self, module, act=interrupt):
        self.module, self.act = module, act
        sys.meta_path.insert(0, self)

    def find_spec(self, module, path=None, target=None):
        if module == self.module:
            self.module = ""
            self.act()

sys.argv = ["wanconv", "recipes"]
from wanconv.cli import main
{hook}
main()
"""


@covering(("moment", "number"), list(INTERRUPTED), [signal.SIGINT, signal.SIGTERM], strength=1)
def test_an_interrupt_ends_with_130_or_0_and_no_traceback(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    script = HOOKS.replace("{number}", str(int(number))).replace("{hook}", INTERRUPTED[moment])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if moment in LATE:
        assert (done.returncode, done.stderr, done.stdout.count("fp8-plain")) == (0, "", 1)
    else:
        assert done.returncode == 130 or (moment == "in a destructor" and done.returncode == 0)


# Every instruction of `main` after the command has ended, in a process that is forked for each.
EVERYWHERE = """
import os, signal, sys
import wanconv.cli as cli, wanconv.cli.run as run

def ends(arguments):
    sys.exit({code})

run.run = ends
names = {cli.main.__code__, cli._deafen.__code__, cli._leave.__code__}

def child(number, writing):
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code not in names:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and sys.excepthook is cli._last_words:  # what comes before is Python's own beginning
            count += 1
            if count == number:
                sys.settrace(None)
                os.write(writing, b"!")
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    cli.main()

codes, number, said = [], 1, 1
while said:
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        child(number, writing)
    os.close(writing)
    said = os.read(reading, 1)
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    codes += [code] if said else []
    number += 1
print(codes)
"""


@pytest.mark.parametrize("code", some([4, 130], 2))
def test_an_interrupt_at_any_instruction_of_main_is_no_end_by_signal(code: int, tmp_path: Path) -> None:
    script = EVERYWHERE.replace("{code}", str(code))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    codes = json.loads(done.stdout)
    assert len(codes) > 50
    assert set(codes) <= {code, 130}
    assert "Traceback" not in done.stderr
