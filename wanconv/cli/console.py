"""The only place that prints or exits: reports and errors; `progress.py` shows a command's progress.

A command's result goes to stdout, as tables or, with --json, as JSON; findings, progress and errors go to stderr. Every
text is made safe first (`text.py`): the layout below gets no control characters.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from wanconv.cli.flags import flags_in_error, flags_in_report
from wanconv.cli.streams import own_errors
from wanconv.cli.tables import STYLES, figure_lines, table_lines, wrap
from wanconv.cli.text import json_text, quoted, safe_error, safe_report
from wanconv.errors import Interrupted, WanconvError
from wanconv.report import Finding, Report

_SHOWN = 10
_WIDE = 100_000  # columns of a table for a file or a pipe: one line per row


@dataclass
class Settings:
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    progress: str = "auto"


SETTINGS = Settings()


def show(report: Report) -> NoReturn:
    """Prints a report and ends the process with its exit code."""
    report = flags_in_report(report)
    if SETTINGS.json:
        _print_json(report)
    else:
        report = safe_report(report)
        if not SETTINGS.quiet:
            _print_result(report)
        sys.stdout.flush()
        _print_findings(report.findings)
    sys.exit(report.exit_code)


def show_page(verb: str, title: str, text: str) -> NoReturn:
    """Prints a document unchanged and ends the process; with --json, as a report that holds it."""
    if SETTINGS.json:
        show(Report(verb, title, {}, details={"text": text}))
    print("" if SETTINGS.quiet else text, end="", flush=True)
    sys.exit(0)


def _print_json(report: Report) -> None:
    print(json_text(report.to_json()), flush=True)


def _print_result(report: Report) -> None:
    """Prints title, figures and tables on stdout; if that is not a terminal, lines are as long as needed."""
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    width = _width(console)
    for line in [report.title] if width is None else wrap(report.title, width):
        console.print(f"[bold {STYLES[report.tone]}]{escape(line)}[/]")
    for name, value in report.figures.items():
        for line in figure_lines(name, value, width):
            console.print(line)
    for table in report.tables:
        console.print()
        for line in table_lines(table, width or _WIDE, SETTINGS.verbose):
            console.print(line)


def _width(console: Console) -> int | None:
    """Returns the columns of a terminal; None without a terminal, where lines are not broken."""
    return console.width if console.is_terminal else None


def _print_findings(findings: Sequence[Finding]) -> None:
    """Prints failures, then warnings, then notes on stderr, the first ten of each; quiet: only the failures."""
    console = Console(file=own_errors(), highlight=False, emoji=False, soft_wrap=True)
    for severity in ("failure",) if SETTINGS.quiet else ("failure", "warning", "note"):
        group = [finding for finding in findings if finding.severity == severity]
        shown = group if SETTINGS.verbose else group[:_SHOWN]
        for finding in shown:
            fix = f"– {finding.fix}" if finding.fix else ""
            _print_line(console, severity, STYLES[severity], f"{finding.where}: {finding.message}", fix)
        if len(group) > len(shown):
            console.print(f"  … and {len(group) - len(shown)} more (-v shows them)")


def _print_line(console: Console, label: str, style: str, text: str, fix: str = "", indent: str = "") -> None:
    """Prints a sentence after its label, and its fix dimmed. On a terminal it is broken at words; a sentence with a
    command, which users copy, is broken by the terminal, without a newline."""
    width = _width(console)
    whole = width is None or "wanconv " in text + fix
    room = _WIDE if whole or width is None else max(width - len(indent) - 2, 1)  # two for the hanging indent
    plain = wrap(f"{label} {text}" if label else text, room)
    lines = [escape(line) for line in plain]
    if label:
        lines[0] = f"[{style}]{escape(label)}[/]{escape(plain[0].removeprefix(label))}"
    if fix and cell_len(plain[-1]) + 1 + cell_len(fix) <= room:
        lines[-1] += f" [dim]{escape(fix)}[/dim]"
    elif fix:
        lines += [f"[dim]{escape(line)}[/dim]" for line in wrap(fix, room)]
    for number, line in enumerate(lines):
        console.print(indent + ("  " if number else "") + line)


def fail(error: WanconvError) -> NoReturn:
    """Prints an error – what and where, details, then a hint – and ends the process with its exit code."""
    _print_error(flags_in_error(error))
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
    _print_line(console, f"error[{error.code}]:", "red", message)
    shown = lines if SETTINGS.verbose else lines[:_SHOWN]
    for line in shown:
        _print_line(console, "", "", line, indent="  ")
    if len(lines) > len(shown):
        console.print(f"  … and {len(lines) - len(shown)} more (-v shows them)")
    if hint:
        _print_line(console, "hint:", "dim", hint)


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without the value of --token, which must not be shown or logged."""
    shown = list(arguments)
    for position, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        if name == "--token":
            place = position if equals else position + 1
            shown[place : place + 1] = ["--token=…" if equals else "…"]
    return shown
