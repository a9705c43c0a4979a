"""A temporary folder for a process; the folder of a killed process is removed by the next one that needs a folder.

Its name shows whose it is: its end is random, from `tempfile`, and no two processes share one.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanconv.storage.local import describe_output_error

_PREFIX = "wanconv-headers-"
_COMPLETED = r"[a-z0-9_]{8}"  # by tempfile


@contextmanager
def scratch(home: Path | None = None, prefix: str = _PREFIX) -> Iterator[Path]:
    """Yields an empty folder in `home`, or in the system's temporary folder; it is removed afterwards."""
    home = home or Path(tempfile.gettempdir())
    _sweep(home, prefix)
    folder, lock = _make(home, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(home: Path, prefix: str) -> tuple[Path, int]:
    """Returns a new folder and the descriptor that locks it: an unlocked folder belongs to a dead process."""
    try:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
            with suppress(FileNotFoundError):  # another process removed it before it was locked
                lock = _opened(folder)
                with suppress(OSError):  # a file system without locks: no process removes folders there either
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if os.fstat(lock).st_nlink:
                    return folder, lock
                os.close(lock)
    except OSError as error:
        raise describe_output_error(error, home) from error


def _sweep(home: Path, prefix: str) -> None:
    """Removes the folders of this user's processes that have ended."""
    name = re.compile(re.escape(prefix) + _COMPLETED)
    with suppress(OSError):
        for entry in os.scandir(home):
            if not name.fullmatch(entry.name) or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
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
