"""Runs `wanconv` as a user does: in this process, or where the process is what is tested, in one of its own."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from math import nan
from pathlib import Path
from typing import NamedTuple

import pytest

COMMAND = (sys.executable, "-m", "wanconv")


def call(*arguments: object, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command in this process, which has the libraries already: what it says, and its exit code.

    Its environment comes too late for what libraries read when they are imported, such as the addresses of hubs.
    """
    from wanconv.cli.run import run as command_line  # no torch, and still too much for tests that do not call it

    words = list(map(str, arguments))
    with pytest.MonkeyPatch.context() as patch, chdir(cwd):
        patch.setattr(sys, "argv", ["wanconv", *words])
        for name, value in environment.items():
            patch.setenv(name, value)
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
            try:
                command_line(words)
            except SystemExit as ending:
                code = int(ending.code or 0)
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


def call_all(commands: Sequence[Sequence[str]], cwd: Path) -> "list[Done]":
    """Returns what became of each command in this process, one after the other."""
    done = [call(*arguments, cwd=cwd) for arguments in commands]
    return [Done(one.returncode, one.stdout, one.stderr) for one in done]


def run(*arguments: object, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command in a process of its own, started anew: its environment, its memory, its imports, its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Returns when a condition holds; fails where a process ends before that."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Done(NamedTuple):
    """`cpu_s` and `peak_nbytes` are what the command took beyond a process that has all modules loaded."""

    exit_code: int
    output: str
    errors: str
    cpu_s: float = nan
    peak_nbytes: float = nan


# Loads the command line once and forks for every command: processes of their own for the price of one start.
_FORKS = """
import contextlib, importlib, io, json, os, sys, tempfile
import wanconv.commands.convert, wanconv.commands.inspect
from wanconv.cli import main
from wanconv.cli.app import app

with contextlib.redirect_stdout(io.StringIO()):
    app(["--version"], standalone_mode=False)  # Typer loads the rest of itself at the first command
results = []
imports, commands = json.load(sys.stdin)
for module in imports:
    importlib.import_module(module)
bare = os.fork()
if not bare:
    os._exit(0)
before = os.wait4(bare, 0)[2]
for arguments in commands:
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.argv = ["wanconv", *arguments]
            main()
        _, status, used = os.wait4(child, 0)
        output.seek(0)
        errors.seek(0)
        cost = [used.ru_utime + used.ru_stime, (used.ru_maxrss - before.ru_maxrss) << 10]
        results.append([os.waitstatus_to_exitcode(status), output.read(), errors.read(), *cost])
print(json.dumps(results))
"""


def run_all(commands: Sequence[Sequence[str]], cwd: Path, imports: Sequence[str] = ()) -> list[Done]:
    """Returns what became of each command, one after the other; raises TimeoutExpired where one hangs.

    `imports` are modules that the commands share and that take long to load.
    """
    done = subprocess.run(
        [sys.executable, "-c", _FORKS],
        cwd=cwd,
        input=json.dumps([imports, commands]),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [Done(*result) for result in json.loads(done.stdout)]
