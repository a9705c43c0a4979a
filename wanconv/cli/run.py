"""One run of the command line: the command that its arguments name, and an exit code for every outcome."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import typer

from wanconv.cli.app import app
from wanconv.cli.console import SETTINGS, fail
from wanconv.cli.memory import end, shortage
from wanconv.cli.streams import guarded
from wanconv.errors import Interrupted, OutputError, UsageError, WanconvError
from wanconv.types.names import suggestion

_COMMAND = re.compile(r"No such command ['\"](.*)['\"]")


def run(arguments: Sequence[str]) -> NoReturn:
    """Runs one command and exits; every WanconvError becomes a sentence, a hint and its exit code."""
    SETTINGS.json = "--json" in arguments  # known before parsing: an error in the options is JSON, too
    SETTINGS.quiet, SETTINGS.verbose, SETTINGS.progress = False, False, "auto"
    with guarded() as output:
        code = _exit_code(lambda: _command(arguments))
        output.flush()
        if output.failure is not None:
            full = OutputError(
                f"the report cannot be printed: {output.failure.strerror}", "free space where the output goes"
            )
            SETTINGS.json = False
            said = _exit_code(lambda: fail(full))
            code = code or said
    sys.exit(code)


def _exit_code(action: Callable[[], NoReturn]) -> int:
    """Returns the exit code that an action ends with."""
    try:
        action()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)


def _command(arguments: Sequence[str]) -> NoReturn:
    try:
        _check_current_folder()
        code = app(arguments, prog_name="wanconv", standalone_mode=False)
    except WanconvError as error:
        fail(shortage(error) or error)
    except typer.TyperException as error:
        fail(_usage_error(error))
    except Exception as error:
        if (short := shortage(error)) is None:
            raise
        _fail_short(short)
    if code == Interrupted.exit_code:  # Typer's exception for Ctrl-C
        fail(Interrupted("stopped"))
    sys.exit(code)


def _fail_short(error: OutputError) -> NoReturn:
    """Fails for lack of memory; by other means if even the sentence does not fit."""
    try:
        fail(error)
    except Exception:  # noqa: BLE001  # whatever it was: what is to be said is known
        end(error)


def _check_current_folder() -> None:
    """Raises UsageError if the current folder has been removed."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(f"there is no current folder: {error.strerror}", "change to one that exists") from None


def _usage_error(error: typer.TyperException) -> UsageError:
    """Returns Typer's error about the arguments as a UsageError, with its suggestion as the hint."""
    option, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    message, _, _ = (error.message if option else error.format_message()).partition(" Did you mean ")
    message = message.rstrip(".").replace(": Value error, ", ": ")  # pydantic's word (Typer 0.29)
    command = context.command if context else None
    otherwise = f"run {context.command_path if context else 'wanconv'} --help"
    if command is not None and option:
        known = [name for parameter in command.get_params(context) for name in parameter.opts if name.startswith("-")]
        return UsageError(message, suggestion(option, known, otherwise))
    if (typed := _COMMAND.fullmatch(message)) and (commands := getattr(command, "commands", None)):
        return UsageError(message, suggestion(typed[1], commands))
    return UsageError(message, otherwise)
