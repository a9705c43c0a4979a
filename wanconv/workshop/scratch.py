"""A folder for as long as a process lives; what one that was killed has left is removed by the next that needs one."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanconv.checkpoint.output import describe_output_error

_PREFIX = "wanconv-headers-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")  # as tempfile completes it


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields an empty folder among the system's temporary ones, which is removed afterwards."""
    home = Path(tempfile.gettempdir())
    _sweep(home)
    folder, lock = _make(home)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(home: Path) -> tuple[Path, int]:
    """Returns a new folder and the descriptor that locks it: a folder that nobody has locked is a dead process's."""
    try:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
            with suppress(FileNotFoundError):  # another process has swept it away before it was locked
                lock = _opened(folder)
                with suppress(OSError):  # a file system without locks: nobody can sweep there either
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if os.fstat(lock).st_nlink:
                    return folder, lock
                os.close(lock)
    except OSError as error:
        raise describe_output_error(error, home) from error


def _sweep(home: Path) -> None:
    """Removes the folders of this user's processes that are no more."""
    with suppress(OSError):
        for entry in os.scandir(home):
            if not _NAME.fullmatch(entry.name) or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            with suppress(OSError):
                lock = _opened(Path(entry.path))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(lock)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
