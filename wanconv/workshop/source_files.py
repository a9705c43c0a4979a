"""Where the files of a source are, for those who read tensors from them."""

import os
import threading
from pathlib import Path
from typing import Protocol

from wanconv.checkpoint import pth
from wanconv.tensors import Part


class Files(Protocol):
    """Where the source files are; `stop` is set when nobody needs them any more."""

    stop: threading.Event

    def descriptor(self, file: Path) -> int:
        """Returns what to read a file with, as soon as it is there, on any thread; raises OSError and WanconvError."""

    def written(self, nbytes: int) -> None:
        """Hears of further bytes of output that are on disk, in their order."""

    def close(self) -> None: ...


class FilesHere:
    """Source files on this machine, each opened once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]

    def written(self, nbytes: int) -> None:
        """They stay."""

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def confirm_file(part: Part, file: Path, where: Path) -> None:
    """Has torch itself read the table of a .pth file of a part, which lies at `where`; raises InputError."""
    if part.container == "pth":
        pth.confirm(where, {name: ref for name, ref in part.tensors.items() if ref.file == file})
