"""The only place that prints or exits: reports and errors; `progress.py` says how far a verb is.

A verb's result goes to stdout, as tables or, with --json, as JSON; findings, progress and errors go to stderr. Every
text that comes in is made safe first (`text.py`): what is laid out below has no control character left.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from wanconv.cli.streams import own_errors
from wanconv.cli.text import json_text, quoted, safe_error, safe_report
from wanconv.errors import Interrupted, WanconvError
from wanconv.report import Finding, Report, Table

_SHOWN = 10
_WIDE = 240  # columns of a table that goes into a file or a pipe
_STYLES = {"note": "dim", "warning": "yellow", "failure": "red"}
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass
class Settings:
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    progress: str = "auto"


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
        _print_json(report)
    else:
        report = safe_report(report)
        if not SETTINGS.quiet:
            _print_result(report)
        sys.stdout.flush()
        _print_findings(report.findings)
    sys.exit(report.exit_code)


def _print_json(report: Report) -> None:
    print(json_text(report.to_json()), flush=True)


def _print_result(report: Report) -> None:
    """Prints title, figures and tables on stdout; where it is no terminal, lines are as wide as they need to be."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=_WIDE)
    console.print(f"[bold]{escape(report.title)}[/bold]", soft_wrap=True)
    for name, value in report.figures.items():
        label, shown = (
            (name[:-7], size(value)) if name.endswith("_nbytes") and isinstance(value, int) else (name, value)
        )
        console.print(f"  {escape(label.replace('_', ' ')):<18} {escape(str(shown))}", soft_wrap=True)
    for table in report.tables:
        console.print()
        console.print(_table(table))


def _print_findings(findings: Sequence[Finding]) -> None:
    """Prints failures, then warnings, then notes on stderr, the first ten of each; quiet: the failures alone."""
    console = Console(file=own_errors(), highlight=False, emoji=False, soft_wrap=True)
    for severity in ("failure",) if SETTINGS.quiet else ("failure", "warning", "note"):
        group = [finding for finding in findings if finding.severity == severity]
        shown = group if SETTINGS.verbose else group[:_SHOWN]
        for finding in shown:
            console.print(_line(finding))
        if len(group) > len(shown):
            console.print(f"  … and {len(group) - len(shown)} more (-v shows them)")


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
    """Prints an error – what and where, details, then a hint – and ends the process with its exit code."""
    _print_error(error)
    sys.exit(error.exit_code)


def _print_error(error: WanconvError) -> None:
    hint = error.hint
    if isinstance(error, Interrupted):
        hint = f"run the same command to go on: {' '.join(map(quoted, ['wanconv', *_without_secrets(sys.argv[1:])]))}"
    if SETTINGS.json:
        verb = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
        finding = Finding("failure", "", error.message, hint, error.code)
        details = {"lines": error.details} if error.details else {}
        _print_json(Report(verb, error.message, {}, (), [finding], details, error.exit_code))
    console = Console(file=own_errors(), highlight=False, emoji=False, soft_wrap=True)
    message, lines, hint = safe_error(error, hint)
    console.print(f"[red]error\\[{error.code}][/red]: {escape(message)}")
    shown = lines if SETTINGS.verbose else lines[:_SHOWN]
    for line in shown:
        console.print(f"  {escape(line)}")
    if len(lines) > len(shown):
        console.print(f"  … and {len(lines) - len(shown)} more (-v shows them)")
    if hint:
        console.print(f"[dim]hint[/dim]: {escape(hint)}")


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without the value of --token, which belongs on no screen and in no log."""
    shown = list(arguments)
    for position, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        if name == "--token":
            place = position if equals else position + 1
            shown[place : place + 1] = ["--token=…" if equals else "…"]
    return shown
