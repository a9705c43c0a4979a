"""The command line: parse, call one verb, render its Report."""

import gc
import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Runs the command line; an interrupt is quiet from the first moment, while the libraries still load."""
    # libraries and headers are hundreds of thousands of objects that stay: to look through them for garbage again and
    # again is a sixth of importing torch
    gc.set_threshold(50_000)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from wanconv.cli.run import run

        run(sys.argv[1:])
    except KeyboardInterrupt:
        _leave()
    except SystemExit as ending:
        if ending.code != 130:
            raise
        _leave()


def _leave() -> None:
    """Ends an interrupted process at once: the end of the interpreter aborts it where a thread is still in torch."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(130)
