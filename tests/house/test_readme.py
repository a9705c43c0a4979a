"""The README says what is so: its commands run, its tables are the code's."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from wanconv.cli.app import app
from wanconv.quantization import FORMATS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "recipes" / "README.md"])


@pytest.mark.exhaustive
def test_the_tour_can_be_taken(tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -euo pipefail\n" + "".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr
    assert "digests            14 files by wanconv.json" in done.stdout
    assert "digests            2 files by SHA256SUMS" in done.stdout
    assert (tmp_path / "demo-output" / "baked" / "wanconv.json").exists()


def test_every_command_of_the_tour_is_one() -> None:
    """Its options are taken as they stand; that the tour can be taken is exhaustive."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for line in "".join(blocks).splitlines() if line.startswith("wanconv ")]
    assert len(lines) >= 10
    for _, verb, *arguments in lines:
        commands[verb].make_context(verb, arguments)


def test_the_formats_are_the_code() -> None:
    line = next(line for line in README.splitlines() if line.startswith("Formats: "))
    assert re.findall(r"`(\w+)`", line) == list(FORMATS)


def test_every_command_has_its_row() -> None:
    section = README.partition("\n## Commands\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)[^|]*` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(command.callback.__name__ for command in app.registered_commands if command.callback)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_scripts_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []
    assert [name for name in re.findall(r"scripts/\w+", text) if not os.access(ROOT / name, os.X_OK)] == []
