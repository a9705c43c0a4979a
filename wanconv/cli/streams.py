"""The standard streams of one run: never closed, never a traceback, and what others write to them is made safe."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, TextIO, cast

from wanconv.cli.text import safe_lines

_COLOUR = r"\x1b\[[\d;]*m"
_BARS = r"\r|\x1b\[[AK]"  # what a bar of a hub's client moves the cursor by


def open_closed() -> None:
    """Opens what the caller has closed (`>&-`) on /dev/null: the next file to be opened would take the number, and a
    message meant for stderr would be written into a weight file."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # for the process


class Stream(io.TextIOBase):
    """A text stream that never fails: what cannot be written is dropped, and `failure` is the first reason.

    A reader that has gone (`| head`) is no failure. Control characters go no further, but for what `passing` matches.
    """

    def __init__(self, inner: TextIO, passing: str | None = "") -> None:
        self.inner = inner
        self.failure: OSError | None = None
        self._passing, self._gone = passing, False

    def write(self, text: str) -> int:
        shown = text if self._passing is None else safe_lines(text, self._passing)
        self._attempt(lambda: self.inner.write(shown))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.inner.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            action()
        except BrokenPipeError:
            self._let_go()
        except OSError as error:
            self.failure = self.failure or error
            self._let_go()

    def _let_go(self) -> None:
        """What is left in the buffer goes to /dev/null: the interpreter writes it once more at its end."""
        self._gone = True
        with suppress(OSError, ValueError):
            number = self.inner.fileno()
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, number)
            os.close(null)

    def isatty(self) -> bool:
        return self.inner.isatty()

    def fileno(self) -> int:
        return self.inner.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute there, set by nobody
        return self.inner.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.inner.errors


@contextmanager
def guarded() -> Iterator[Stream]:
    """Puts guards before both streams of output in the block; yields that of stdout, whose failure is the command's.

    Help and reports come with colours; on stderr only the console's own text does, by `own_errors`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names need not be text in the terminal's encoding
    output, errors = Stream(sys.stdout, _COLOUR), Stream(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            yield output
        finally:
            output.flush()
            errors.flush()


def own_errors() -> IO[str]:
    """Returns stderr for what the console has made safe itself: colours, and the moves of a bar."""
    inner = sys.stderr.inner if isinstance(sys.stderr, Stream) else sys.stderr
    return cast(IO[str], Stream(inner, None))  # what Rich and lines of progress use of it


@contextmanager
def bars_of_others() -> Iterator[None]:
    """Lets a client draw its bars on stderr in the block; loggers keep the guarded stream that they have."""
    with redirect_stderr(Stream(sys.stderr.inner, _BARS) if isinstance(sys.stderr, Stream) else sys.stderr):
        yield
