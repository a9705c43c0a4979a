"""Runs a program without a network: none in its namespace where the system allows that, and every attempt noted."""

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

# Python imports this before anything else. An audit hook sees what sockets do, whichever library calls it.
_GUARD = """
import os, sys

EVENTS = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}

def guard(event, arguments):
    here = event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], (str, bytes))  # an AF_UNIX path
    if event in EVENTS and not here:
        with open(os.environ["WANCONV_TEST_ATTEMPTS"], "a") as stream:
            stream.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}\\n")
        raise OSError("no network here")

sys.addaudithook(guard)
"""


@cache
def namespace() -> tuple[str, ...]:
    """Returns the words that start a program where there is no network at all; none where the system forbids it."""
    words = ("unshare", "--map-root-user", "--net")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return ()
    return () if done.returncode else words


def run_isolated(command: Sequence[str], cwd: Path, notes: Path) -> tuple["subprocess.CompletedProcess[str]", str]:
    """Runs a Python program; returns how it ended, and its attempts to reach anybody, which all failed."""
    notes.mkdir(exist_ok=True)
    (notes / "sitecustomize.py").write_text(_GUARD)
    attempts = notes / "attempts"
    attempts.write_text("")
    paths = [str(notes), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "WANCONV_TEST_ATTEMPTS": str(attempts)}
    done = subprocess.run(
        [*namespace(), *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    return done, attempts.read_text()
