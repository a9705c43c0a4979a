"""The command line: parse, call one verb, render its Report."""

import signal
import sys


def main() -> None:
    """Runs the command line; an interrupt is quiet from the first moment, while the libraries still load."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from wanconv.cli.app import run

        run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
