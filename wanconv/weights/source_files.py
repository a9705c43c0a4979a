"""Access to the files of a source, for readers of tensors."""

import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from wanconv.containers import header_digest, pth
from wanconv.containers.files import explained
from wanconv.errors import InputError
from wanconv.quantization.packings import is_constant
from wanconv.storage.reading import open_regular
from wanconv.types.tensors import Part, TensorRef


class Files(Protocol):
    """The source files; `stop` is set when they are not needed any more."""

    stop: threading.Event

    def descriptor(self, file: Path) -> int:
        """Returns a file's descriptor once the file has arrived, on any thread; raises OSError and WanconvError."""

    def written(self, nbytes: int) -> None:
        """Called with the number of further output bytes on disk, in their order."""

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
                self._descriptors[file] = open_regular(file)
            return self._descriptors[file]

    def written(self, nbytes: int) -> None:
        """Does nothing: local files stay."""

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def confirm_file(part: Part, file: Path, where: Path) -> None:
    """Confirms a part's file at `where`: its content agrees with what was read from `file`, and torch reads a .pth the
    same way. Raises InputError if not."""
    tensors = {name: ref for name, ref in part.tensors.items() if ref.file == file}
    if where != file and not _says_the_same(file, where, tensors.values()):
        raise InputError(
            f"{file} is not the file whose header was read", "`overwrite=True` starts over; or try the other hub"
        )
    if part.container == "pth":
        pth.confirm(where, tensors)


def _says_the_same(file: Path, other: Path, tensors: Iterable[TensorRef]) -> bool:
    """True if two files agree in their headers and in the constants among their tensors."""
    with explained(other):
        return header_digest(file) == header_digest(other) and all(
            ref.read() == replace(ref, file=other).read() for ref in tensors if is_constant(ref)
        )
