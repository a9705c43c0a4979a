"""The command line: parse, call one command's function, render its Report."""

import _thread
import gc
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Runs the command line; an interrupt is quiet from the first moment, while the libraries still load, to the last,
    while the interpreter ends: the process ends with an exit code, never by the signal."""
    if os.name == "nt":  # its Python has no fcntl and no resource, which most modules need
        _refuse_windows()
    sys.excepthook, sys.unraisablehook = _last_words, _in_passing
    code: int | str | None = _INTERRUPTED
    try:
        try:
            # libraries and headers are hundreds of thousands of objects that stay: searching them for garbage
            # again and again is a sixth of importing torch
            gc.set_threshold(50_000)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            _loaded()(sys.argv[1:])
        except SystemExit as ending:
            code = ending.code
        _deafen()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    _deafen()
    if code == _INTERRUPTED:
        _leave()
    sys.exit(code)


def _refuse_windows() -> "NoReturn":
    """Ends with a sentence about where wanconv runs."""
    from wanconv.cli.console import SETTINGS, fail
    from wanconv.errors import UsageError

    SETTINGS.json = "--json" in sys.argv
    fail(UsageError("wanconv needs Linux; on Windows, it runs inside WSL2", "run wsl --install, then install it there"))


def _deafen() -> None:
    """Ignores interrupts from here on: the work is done, and the interpreter must end undisturbed."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _loaded() -> "Callable[[Sequence[str]], None]":
    """Returns the command line, or ends the process if there is no memory for it."""
    try:
        from wanconv.cli.memory import end, heed_limits, shortage
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and "failed to map" not in str(error):
            raise
        # with modules of Python's start: there is no memory for more
        os.write(2, b"error[output]: out of memory\n")
        os._exit(7)
    try:
        heed_limits()
        from wanconv.cli.streams import open_closed

        open_closed()
        from wanconv.cli.run import run
    except Exception as error:
        if (short := shortage(error)) is None:
            raise
        end(short)
    return run


def _leave() -> None:
    """Ends an interrupted process at once: the interpreter's end would abort it if a thread is still in torch."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_INTERRUPTED)


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends the process if an interrupt came between two steps of `main`; prints a bug's traceback, made safe."""
    if issubclass(kind, KeyboardInterrupt):
        os._exit(_INTERRUPTED)
    import traceback

    from wanconv.cli.text import safe_lines

    sys.stderr.write(safe_lines("".join(traceback.format_exception(kind, error, trace))))


def _in_passing(lost: "sys.UnraisableHookArgs") -> None:
    """Repeats an interrupt that came where Python drops exceptions, such as in a destructor."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        _thread.start_new_thread(_again, ())
    else:
        sys.__unraisablehook__(lost)


def _again() -> None:
    """Interrupts the main thread once it is out of the hook, where a second one would be dropped, too."""
    while sys._current_frames()[threading.main_thread().ident or 0].f_code is _in_passing.__code__:
        time.sleep(0.001)
    _thread.interrupt_main()
