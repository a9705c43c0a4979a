"""Out of memory: the one place that knows the errors of Python, the system and torch.

It runs when memory is short, so it imports next to nothing.
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
# texts of RuntimeError, from torch and threading, and of ImportError and OSError, for a library that does not fit
_WORDS = re.compile(
    r"can't start new thread|std::bad_alloc|[Cc]annot allocate memory|can't allocate memory|not enough memory"
    r"|out of memory|failed to map segment from shared object"
)
# fmt: off
_ASKED = re.compile(r"(?:[Tt]ried to allocate|[Uu]nable to (?:mmap|allocate)) ([0-9.]+) (bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# fmt: on
_LINKS = 20  # most errors of a chain
_BLAS_NBYTES = 192 << 20  # mapped by numpy's library when it is loaded on one thread; without it, it ends the process


def shortage(error: BaseException) -> OutputError | None:
    """Returns the error to show if memory was short, at any depth below `error`; else None."""
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
    )  # OSError without a number: from a library that ctypes loads
    return isinstance(error, MemoryError) or (isinstance(error, kinds) and _WORDS.search(str(error)) is not None)


def _asked(text: str) -> str:
    """Returns the requested amount in words, if an error states it."""
    if not (match := _ASKED.search(text)):
        return ""
    return f": {size(round(float(match[1]) * _UNITS[match[2]]))} more cannot be had"


def end(error: OutputError) -> NoReturn:
    """Reports the shortage with as little memory as possible, and ends with the error's exit code."""
    os.write(2, f"error[{error.code}]: {error.message}\nhint: {error.hint}\n".encode())
    os._exit(error.exit_code)


class _BeforeNumpy(MetaPathFinder):
    """Raises MemoryError before numpy loads its library, if there is no room for it."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "numpy":
            sys.meta_path.remove(self)
            try:
                mmap.mmap(-1, _BLAS_NBYTES).close()
            except OSError as error:
                raise MemoryError(f"Unable to allocate {_BLAS_NBYTES} bytes for numpy") from error


def heed_limits() -> None:
    """If memory is limited, makes numpy's library use only what one thread needs, or does not load it."""
    if any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        sys.meta_path.insert(0, _BeforeNumpy())
