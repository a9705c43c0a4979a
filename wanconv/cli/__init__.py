"""The command line: parse, call one verb, render its Report."""

import gc
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main() -> None:
    """Runs the command line; an interrupt is quiet from the first moment, while the libraries still load."""
    # libraries and headers are hundreds of thousands of objects that stay: to look through them for garbage again and
    # again is a sixth of importing torch
    gc.set_threshold(50_000)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _loaded()(sys.argv[1:])
    except KeyboardInterrupt:
        _leave()
    except SystemExit as ending:
        if ending.code != 130:
            raise
        _leave()


def _loaded() -> "Callable[[Sequence[str]], None]":
    """Returns the command line, or ends where there is no memory for it."""
    try:
        from wanconv.cli.memory import end, heed_limits, shortage
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and "failed to map" not in str(error):
            raise
        os.write(2, b"error[output]: out of memory\n")  # by what Python has at its start: there is no room for more
        os._exit(7)
    try:
        heed_limits()
        from wanconv.cli.run import run
    except Exception as error:
        if (short := shortage(error)) is None:
            raise
        end(short)
    return run


def _leave() -> None:
    """Ends an interrupted process at once: the end of the interpreter aborts it where a thread is still in torch."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(130)
