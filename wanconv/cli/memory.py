"""Memory that cannot be had: the one place that knows what Python, the system and torch call that.

It is asked when memory is short, so it imports next to nothing.
"""

import errno
import mmap
import os
import re
import resource
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from typing import NoReturn

from wanconv.errors import OutputError
from wanconv.types.figures import size

_HINT = "close other programs, raise the limit (ulimit -v), or lower --jobs"
# of RuntimeError, which torch and threading raise, and of ImportError and OSError, of a library larger than the room
_WORDS = re.compile(
    r"can't start new thread|std::bad_alloc|[Cc]annot allocate memory|can't allocate memory|not enough memory"
    r"|out of memory|failed to map segment from shared object"
)
# fmt: off
_ASKED = re.compile(r"(?:[Tt]ried to allocate|[Uu]nable to (?:mmap|allocate)) ([0-9.]+) (bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# fmt: on
_LINKS = 20  # of a chain of errors
_BLAS_NBYTES = 192 << 20  # what numpy's library maps as it is loaded on one thread; without, it ends the process


def shortage(error: BaseException) -> OutputError | None:
    """Returns the error to show where memory is what was missing, however deep below `error`; None where it was not."""
    for one in _chain(error):
        if _is_short(one):
            return OutputError(f"out of memory{_asked(str(one))}", _HINT)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(_LINKS):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _is_short(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    kinds = (
        RuntimeError | ImportError | SystemError | OSError
    )  # OSError without a number: of a library that ctypes loads
    return isinstance(error, MemoryError) or (isinstance(error, kinds) and _WORDS.search(str(error)) is not None)


def _asked(text: str) -> str:
    """Returns how much was asked for, in words, where an error tells it."""
    if not (match := _ASKED.search(text)):
        return ""
    return f": {size(round(float(match[1]) * _UNITS[match[2]]))} more cannot be had"


def end(error: OutputError) -> NoReturn:
    """Says that memory is short by as little as it takes, and ends with the error's exit code."""
    os.write(2, f"error[{error.code}]: {error.message}\nhint: {error.hint}\n".encode())
    os._exit(error.exit_code)


class _BeforeNumpy(MetaPathFinder):
    """Raises MemoryError where there is no room for what numpy loads, before it loads it."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "numpy":
            sys.meta_path.remove(self)
            try:
                mmap.mmap(-1, _BLAS_NBYTES).close()
            except OSError as error:
                raise MemoryError(f"Unable to allocate {_BLAS_NBYTES} bytes for numpy") from error


def heed_limits() -> None:
    """Where memory is limited, has numpy's library take no more of it than one thread needs, or nothing at all."""
    if any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        sys.meta_path.insert(0, _BeforeNumpy())
