"""The standard streams of one run: never closed, never a traceback, and output of other libraries is made safe."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, TextIO, cast

from wanconv.cli.text import safe_lines

_COLOUR = r"\x1b\[[\d;]*m"
_BARS = r"\r|\x1b\[[AK]"  # the cursor moves of a hub client's bar


def open_closed() -> None:
    """Opens streams that the caller has closed (`>&-`) on /dev/null: otherwise the next opened file would get the
    number, and a message for stderr would be written into a weight file."""
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
    """A text stream that never fails: output that cannot be written is dropped, and `failure` is the first reason.

    A closed reader (`| head`) is not a failure. Control characters are stopped, except those that `passing` matches.
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
        """Sends the rest of the buffer to /dev/null: the interpreter writes it again at its end."""
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
    def encoding(self) -> str:  # type: ignore[override]  # an attribute there, never set
        return self.inner.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.inner.errors


@contextmanager
def guarded() -> Iterator[Stream]:
    """Guards both output streams within the block; yields that of stdout, whose failure is the command's.

    Help and reports come with colours; on stderr only the console's own text has colours, by `own_errors`.
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
    """Returns stderr for text that the console has made safe: colours, and the moves of a bar."""
    inner = sys.stderr.inner if isinstance(sys.stderr, Stream) else sys.stderr
    return cast(IO[str], Stream(inner, None))  # the part of it that Rich and progress lines use


@contextmanager
def bars_of_others() -> Iterator[None]:
    """Lets a client draw its bars on stderr within the block; loggers keep their guarded stream."""
    with redirect_stderr(Stream(sys.stderr.inner, _BARS) if isinstance(sys.stderr, Stream) else sys.stderr):
        yield
