"""The only place that prints or exits: reports, errors and progress.

A verb's report goes to stdout, as tables or, with --json, as JSON; progress and errors go to stderr.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table as RichTable

from wanconv.errors import Interrupted, WanconvError
from wanconv.report import Finding, Report, Table

_SHOWN = 10
_STYLES = {"note": "dim", "warning": "yellow", "failure": "red"}
_UNITS = ("bytes", "kB", "MB", "GB", "TB")

Tell = Callable[[str, int, int], None]


@dataclass
class Settings:
    json: bool = False
    quiet: bool = False
    verbose: bool = False


SETTINGS = Settings()


def size(nbytes: int) -> str:
    """Returns a byte count with a decimal unit: 5.68 GB."""
    value, unit = float(nbytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return (
        f"{nbytes} bytes"
        if unit == 0
        else f"{value:.3g} {_UNITS[unit]}"
        if value < 100
        else f"{value:.0f} {_UNITS[unit]}"
    )


def show(report: Report) -> NoReturn:
    """Prints a report and ends the process with its exit code."""
    if SETTINGS.json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    elif not SETTINGS.quiet or report.exit_code:
        _print(report, _console())
    sys.stdout.flush()
    sys.exit(report.exit_code)


def _console() -> Console:
    """Returns stdout's console; where it is no terminal, lines are as wide as they need to be."""
    console = Console()
    return console if console.is_terminal else Console(width=240)


def _print(report: Report, console: Console) -> None:
    console.print(f"[bold]{escape(report.title)}[/bold]")
    for name, value in report.figures.items():
        label, shown = (
            (name[:-7], size(value)) if name.endswith("_nbytes") and isinstance(value, int) else (name, value)
        )
        console.print(f"  {escape(label.replace('_', ' ')):<18} {escape(str(shown))}")
    for table in report.tables:
        console.print()
        console.print(_table(table))
    failures = [finding for finding in report.findings if finding.severity == "failure"]
    others = [finding for finding in report.findings if finding.severity != "failure"]
    for group in (failures, others):
        if group:
            console.print()
        shown_findings = group if SETTINGS.verbose else group[:_SHOWN]
        for finding in shown_findings:
            console.print(_line(finding))
        if len(group) > len(shown_findings):
            console.print(f"  … and {len(group) - len(shown_findings)} more (-v shows them)")


def _line(finding: Finding) -> str:
    style = _STYLES[finding.severity]
    fix = f" [dim]– {escape(finding.fix)}[/dim]" if finding.fix else ""
    return f"[{style}]{finding.severity}[/{style}] {escape(finding.where)}: {escape(finding.message)}{fix}"


def _table(table: Table) -> RichTable:
    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold dim")
    columns = [index for index, name in enumerate(table.columns) if SETTINGS.verbose or name != "fingerprint"]
    for index in columns:
        name = table.columns[index]
        numeric = name.endswith("_nbytes") or any(isinstance(row[index], int) for row in table.rows)
        shown.add_column(
            name.removesuffix("_nbytes").replace("_", " "),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=index == 0,
        )
    for row in table.rows:
        cells = []
        for index in columns:
            value, name = row[index], table.columns[index]
            cells.append(escape(size(value) if name.endswith("_nbytes") and isinstance(value, int) else str(value)))
        shown.add_row(*cells)
    return shown


def fail(error: WanconvError) -> NoReturn:
    """Prints an error – what and where, then a hint – and ends the process with its exit code."""
    if SETTINGS.json:
        value = {"schema": "wanconv.error/1", "ok": False, "exit_code": error.exit_code}
        value["error"] = {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "details": list(error.details),
        }
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[red]error\\[{error.code}][/red]: {escape(error.message)}", highlight=False)
    details = error.details if SETTINGS.verbose else error.details[:_SHOWN]
    for line in details:
        console.print(f"  {escape(line)}", highlight=False)
    if len(error.details) > len(details):
        console.print(f"  … and {len(error.details) - len(details)} more (-v shows them)", highlight=False)
    hint = shlex.join(["wanconv", *sys.argv[1:]]) + " goes on" if isinstance(error, Interrupted) else error.hint
    if hint:
        console.print(f"[dim]hint[/dim]: {escape(hint)}", highlight=False)
    sys.exit(error.exit_code)


@contextmanager
def progress() -> Iterator[Tell]:
    """Yields a function that shows (what, bytes done, bytes in all) with rate and time left; only on a terminal."""
    console = Console(stderr=True)
    if SETTINGS.quiet or not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield tell
