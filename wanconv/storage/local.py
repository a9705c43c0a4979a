"""Files and folders on disk: written, synced and renamed whole, with errors in words."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wanconv.errors import OutputError


@dataclass(frozen=True, slots=True)
class Written:
    """The digests of one written file: sha256 of the file, xxh3-128 of each tensor's payload by key."""

    path: str
    nbytes: int
    sha256: str
    tensors: Mapping[str, str]


def describe_output_error(error: OSError, path: Path) -> OutputError:
    """Returns the OutputError that says why `path` could not be written."""
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write {path}: {reason}", "free space or choose another folder, then run the same command"
    )


def write_file(path: Path, content: bytes) -> Written:
    """Writes a small file, synced."""
    return write_chunks(path, (content,))


def write_anew(path: Path, content: bytes) -> Written:
    """Writes a small file, synced, in place of an existing one; hard links to the old one keep their bytes."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise describe_output_error(error, path) from error
    return write_file(path, content)


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> Written:
    """Writes a file from chunks, synced."""
    digest, nbytes = hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            for chunk in chunks:
                pwrite_all(descriptor, memoryview(chunk), nbytes)
                digest.update(chunk)
                nbytes += len(chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise describe_output_error(error, path) from error
    return Written(path.name, nbytes, digest.hexdigest(), {})


def pwrite_all(descriptor: int, view: memoryview, offset: int) -> None:
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def sync_folders(root: Path) -> None:
    """Syncs the directory entries of `root` and everything below it."""

    def fail(error: OSError) -> None:  # by default, os.walk skips folders that it cannot list
        raise describe_output_error(error, root) from error

    for folder, _, _ in os.walk(root, topdown=False, onerror=fail):
        _sync_folder(Path(folder))


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise describe_output_error(error, folder) from error


def publish(folder: Path, target: Path) -> None:
    """Renames `folder` to `target`, synced."""
    try:
        folder.rename(target)
    except OSError as error:
        raise describe_output_error(error, target) from error
    _sync_folder(target.parent)
