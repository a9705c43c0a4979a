"""Files from a hub to disk: each is written next to its target, digested on the way, synced, and renamed.

An unfinished file is `.NAME.<digest>.part` next to its target: the name says which content it begins, so that
a later run can resume it. Bytes from an earlier run are digested again, since they are not trusted.
"""

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanconv.errors import DigestMismatch, UsageError
from wanconv.storage.hubs import Address, RemoteFile, hasher
from wanconv.storage.hubs.ranges import RangeReader
from wanconv.storage.local import describe_output_error
from wanconv.types.progress import Advance

_CHUNK_NBYTES = 1 << 20


@contextmanager
def folder_lock(root: Path) -> Iterator[None]:
    """Creates `root` if it is missing, and keeps other downloads out of it; the lock ends with the process."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise describe_output_error(error, root) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another download writes to {root}", "wait for it, or choose another folder") from error
        except OSError as error:
            raise describe_output_error(error, root) from error
        yield
    finally:
        os.close(descriptor)


def check_way(root: Path, path: str) -> None:
    """Raises UsageError if the way to `path` has a link or anything but folders, or `path` is not a regular file."""
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        here = root.joinpath(*parts[:depth])
        try:
            mode = here.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise describe_output_error(error, here) from error
        wanted = stat.S_ISREG if depth == len(parts) else stat.S_ISDIR
        if not wanted(mode):
            what = "a link" if stat.S_ISLNK(mode) else "in the way"
            raise UsageError(f"{here} is {what}", "move it away, or choose another folder with `local_dir`")


def part_path(target: Path, file: RemoteFile) -> Path:
    return target.with_name(f".{target.name}.{file.digest[:16]}.part")


def part_nbytes(target: Path, file: RemoteFile) -> int:
    """Returns the number of bytes of a file that an earlier run has left."""
    try:
        return min(part_path(target, file).lstat().st_size, file.nbytes)
    except OSError:
        return 0


def fetch(reader: RangeReader, address: Address, file: RemoteFile, root: Path, progress: Advance) -> None:
    """Puts a file below `root`, or raises: InputError, DigestMismatch, OutputError, Interrupted. `progress` receives
    the bytes gained; a negative number means bytes lost."""
    check_way(root, file.path)
    target = root / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_others(target, file)
        part = _Part(part_path(target, file), file, progress)
        try:
            part.fill(reader, address)
            os.fsync(part.descriptor)
        finally:
            part.close()
        part_path(target, file).rename(target)
        _sync(target.parent)
    except OSError as error:
        raise describe_output_error(error, target) from error


def _remove_others(target: Path, file: RemoteFile) -> None:
    """Removes the parts of other contents of the same name that earlier runs left."""
    own = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.part")
    for path in target.parent.iterdir():
        if own.fullmatch(path.name) and path != part_path(target, file):
            path.unlink()


class _Part:
    """An unfinished file: descriptor, position, and the digest of all bytes before the position."""

    def __init__(self, path: Path, file: RemoteFile, progress: Advance) -> None:
        self._path, self._file, self._progress = path, file, progress
        self.descriptor = self._open()
        self._position, self._kept, self._hasher = 0, 0, hasher(file.algorithm, file.nbytes)

    def _open(self) -> int:
        """Opens an earlier run's part if it is a regular file with one name; otherwise a new one."""
        with suppress(FileNotFoundError):
            status = self._path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size > self._file.nbytes:
                self._path.unlink()
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def fill(self, reader: RangeReader, address: Address) -> None:
        """Brings the file to its length and checks its digest; after a mismatch, an earlier run's part is fetched
        again, once."""
        self._digest_beginning()
        resumed = self._position > 0
        self._read(reader, address)
        if resumed and self._hasher.hexdigest() != self._file.digest:
            self._begin_again()
            self._read(reader, address)
        found = self._hasher.hexdigest()
        if found != self._file.digest:
            self._begin_again()
            self._path.unlink()
            raise DigestMismatch(
                f"{self._file.path}: {self._file.algorithm} is {found}, and the hub lists {self._file.digest}",
                "nothing was kept of it: run the command again, or try the other hub",
            )

    def close(self) -> None:
        os.close(self.descriptor)

    def _read(self, reader: RangeReader, address: Address) -> None:
        file = self._file
        for offset, chunk in reader.stream(address, file.path, file.nbytes, self._position):
            if offset != self._position:
                assert offset == 0
                self._begin_again()
            view = memoryview(chunk)
            while len(view):
                view = view[os.write(self.descriptor, view) :]
            self._advance(chunk)

    def _digest_beginning(self) -> None:
        while chunk := os.read(self.descriptor, _CHUNK_NBYTES):
            self._advance(chunk, kept=True)
        self._kept = self._position

    def _advance(self, chunk: bytes, kept: bool = False) -> None:
        self._hasher.update(chunk)
        self._position += len(chunk)
        self._progress(len(chunk), kept)

    def _begin_again(self) -> None:
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self._progress(self._kept - self._position)
        self._progress(-self._kept, kept=True)
        self._position, self._kept, self._hasher = 0, 0, hasher(self._file.algorithm, self._file.nbytes)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
