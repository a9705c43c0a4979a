"""The pages of the documentation, their blocks of code, and what becomes of the commands in them.

A block of `bash` is run in the folder that `wanconv demo` fills; the quickstart begins above it. A block of `text`
right after it is what its commands print on stdout; a line `…` stands for any lines. A block of `console` needs
the network, an environment or a released model and is not run. Commands and options of each block are tested to exist.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CHINESE = ".zh-CN.md"
TOUR = DOCS / "quickstart.md"  # the first that is run: it makes what the others work on
DEMO = "demo-output"
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "recipes" / "README.md", *DOCS.rglob("*.md")])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN_BLOCK = re.compile(r"^```bash\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page: its language and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall(page.read_text())]


def pages_to_run() -> list[Path]:
    """Returns the pages with commands, the quickstart first; translations have the same ones."""
    pages = [page for page in PAGES if any(block.language == "bash" for block in blocks(page))]
    return [TOUR, *(page for page in pages if page != TOUR and not page.name.endswith(CHINESE))]


def expected(page: Path) -> list[tuple[str, str | None]]:
    """Returns every block that is run and what it prints, None where the page does not say."""
    return [(found[1], found[2]) for found in _RUN_BLOCK.finditer(page.read_text())]


def matches(printed: str, said: str) -> bool:
    """Returns whether text is what a page says, in which a line `…` is any lines, also none."""
    parts = ["(?:.*\n)*?" if line == "…" else re.escape(line.rstrip()) + " *\n" for line in said.splitlines()]
    return re.fullmatch("".join(parts), printed) is not None


# Runs every command of `wanconv` in this one process, whose libraries load once, and what else there is by bash.
_RUN = r"""
import contextlib, io, json, os, shlex, subprocess, sys
from wanconv.cli import main

def wanconv(words):
    sys.argv = words
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as ending:
            code = ending.code
    return code, output.getvalue(), errors.getvalue()

def run(command):
    words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
    marks = [word for word in words if set(word) <= set("();<>|&")]
    if words[0] == "wanconv" and marks in ([], [">"]) and ">" in ([words[-2]] if marks else [">"]):
        arguments = shlex.split(command)
        code, output, errors = wanconv(arguments[:-2] if marks else arguments)
        if marks:
            with open(words[-1], "w") as file:
                file.write(output)
        return [code, "" if marks else output, errors]
    if words[0] == "cd":
        os.chdir(words[1])
        return [0, "", ""]
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]

start = os.getcwd()
results = []
for folder, blocks in json.load(sys.stdin):
    os.chdir(os.path.join(start, folder))
    results.append([[run(line) for line in block.splitlines()] for block in blocks])
print(json.dumps(results))
"""


class Ran(NamedTuple):
    """What became of one command."""

    exit_code: int
    output: str
    errors: str


def run(pages: Sequence[Path], folder: Path, path: str) -> list[list[list[Ran]]]:
    """Returns what became of every command, by page and block; `path` is the environment's PATH."""
    asked = [("" if page == TOUR else DEMO, [block for block, _ in expected(page)]) for page in pages]
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        cwd=folder,
        input=json.dumps(asked),
        env={"PATH": path, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [[[Ran(*each) for each in block] for block in page] for page in json.loads(done.stdout)]
