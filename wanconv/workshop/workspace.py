"""OUT.partial, where a conversion works until OUT can appear at once: lock, journal, what a resumed run may reuse."""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanconv.checkpoint.output import describe_output_error, publish, sync_folders, write_file
from wanconv.checkpoint.writer import Journal
from wanconv.errors import InputError, OutputError, UsageError
from wanconv.progress import unheard
from wanconv.workshop import manifest

_PRIVATE = ".wanconv"


class Workspace:
    """An OUT.partial that this process owns.

    `found` is the key of the run that left it, `complete` says that only the rename is missing, `overflowing` are the
    tensors that are known to need their fallback.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key, self.complete = folder, key, False
        self.private = private_folder(folder)
        self._state = self.private / "state.json"
        self.found: str | None = None
        self.overflowing: frozenset[str] = frozenset()
        try:
            saved = json.loads(self._state.read_bytes())
            self.found, self.overflowing = str(saved["key"]), frozenset(saved["overflowing"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def journal(self) -> Journal:
        return Journal(self.private / "journal")

    def start(self) -> None:
        """Begins anew: nothing of an earlier run is left, its journal least of all."""
        self._clear()
        self.private.mkdir()
        self.remember(frozenset())

    def remember(self, overflowing: frozenset[str]) -> None:
        """Saves what a resumed run must know."""
        self.overflowing = overflowing
        temporary = self._state.with_suffix(".tmp")
        write_file(temporary, json.dumps({"key": self.key, "overflowing": sorted(overflowing)}).encode())
        publish(temporary, self._state)

    def discard(self) -> None:
        """Removes everything: after a refusal because of data there is nothing to go on from."""
        with writing(self.folder):
            self._clear()
            self.folder.rmdir()

    def finish(self, out: Path, force: bool) -> Path | None:
        """Makes the folder appear as OUT. Returns where `force` put what stood there and was not wanconv's alone."""
        with writing(self.folder):
            self._prune(self._read_back())
            sync_folders(self.folder)
            if self.private.exists():
                shutil.rmtree(self.private)
            sync_folders(self.folder)
        replaced = None
        with writing(out):
            if not is_free(out):
                if not force:
                    raise UsageError(f"{out} appeared during the run", "move it away and run the same command again")
                replaced = _aside(out)
                publish(out, replaced)
        publish(self.folder, out)
        if replaced is not None and _is_ours_alone(replaced):
            with writing(replaced):
                shutil.rmtree(replaced)
            return None
        return replaced

    def _clear(self) -> None:
        """Empties the folder. What marks it as ours goes last, so that a run killed here can be forced again."""
        for entry in sorted(self.folder.iterdir(), key=self.private.__eq__):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _read_back(self) -> set[str]:
        """Returns what the manifest lists; raises OutputError where it cannot be read, and where others have taken
        away, behind our back, what it lists."""
        known = _manifest(self.folder)
        if known is None:
            raise OutputError(f"{self.folder} cannot be read back", "check the disk, then run the same command again")
        gone = [file.path for file in manifest.files(known) if _size(self.folder / file.path) != file.nbytes]
        if gone:
            raise OutputError(
                f"{self.folder} was changed by others while it was written: {gone[0]} is not as it was",
                f"remove {self.folder}, and run the same command again when nothing else touches it",
            )
        return _names(known)

    def _prune(self, listed: set[str]) -> None:
        """Removes what the manifest does not list: shards of an attempt before a fallback changed their number."""
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path == self.private or self.private in path.parents:
                continue
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif str(path.relative_to(self.folder)) not in listed:
                path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into the OutputError that says why `path` could not be written."""
    try:
        yield
    except OSError as error:
        raise describe_output_error(error, path) from error


def partial_folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def private_folder(partial: Path) -> Path:
    """Returns what of an OUT.partial never becomes a part of OUT."""
    return partial / _PRIVATE


def is_free(out: Path) -> bool:
    """True where OUT can appear: nothing stands there, or an empty folder. Raises OSError."""
    return not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))


@contextmanager
def open_workspace(out: Path, key: str, done: str, force: bool) -> Iterator[Workspace]:
    """Opens OUT.partial under a lock: new, or left by a run with the same `key` (or finished, with plan `done`).

    Raises UsageError for one that another process holds, that another conversion left (`force` starts over) or that
    wanconv did not make.
    """
    folder = partial_folder(out)
    with writing(folder):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UsageError(f"{folder} is in the way: it is no folder", "remove it, or choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with writing(folder):
            _lock(descriptor, folder)
            if not (force or is_free(out)):  # another run has just finished it
                with suppress(OSError):
                    folder.rmdir()
                hint = "run the same command again, which looks at what it is"
                raise UsageError(f"{out} appeared during the run", hint)
            _refuse_links(folder)
            workspace = _resumed(folder, key, done, force)
        yield workspace
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    busy = UsageError(f"another wanconv is writing {folder}", "wait for it, or choose another --out")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
        raise busy  # it has just finished, and what we locked is its OUT


def _refuse_links(folder: Path) -> None:
    """Raises UsageError for what would be written through: a file with a second name may be the source's."""
    for path in folder.rglob("*"):
        mode, names = path.lstat().st_mode, path.lstat().st_nlink
        if not stat.S_ISDIR(mode) and not (stat.S_ISREG(mode) and names == 1):
            raise UsageError(
                f"{path} is a link, or a file with a second name: wanconv does not write through it",
                f"remove {folder}, or choose another --out",
            )


def _resumed(folder: Path, key: str, done: str, force: bool) -> Workspace:
    workspace = Workspace(folder, key)
    # Without a state, the run was killed between its last two steps; the caller looks whether the source is the same.
    if workspace.found == key or (workspace.found is None and not force):
        workspace.complete = _is_complete(folder, done)
    if workspace.found == key or workspace.complete:
        return workspace
    if any(entry != workspace.private for entry in folder.iterdir()):  # else a run was killed before it began
        if workspace.found is None and not _listed(folder):
            raise UsageError(f"{folder} is in the way: wanconv did not make it", "move it, or choose another --out")
        if not force:
            raise UsageError(
                f"{folder} was left by another conversion, or its source has changed since",
                "--force starts over; or choose another --out",
            )
    workspace.start()
    return workspace


def _is_complete(folder: Path, done: str) -> bool:
    """True where a run of plan `done` was stopped after its last byte: only the rename is missing."""
    known = _manifest(folder)
    return known is not None and known["plan"] == done and not manifest.check_files(folder, known, unheard)


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.lstat().st_size
    return None


def _aside(out: Path) -> Path:
    number = 1
    while os.path.lexists(aside := out.with_name(f"{out.name}.replaced-{number}")):
        number += 1
    return aside


def _listed(folder: Path) -> set[str]:
    """Returns the files that a folder's manifest lists, and itself; none where there is no manifest of ours."""
    known = _manifest(folder)
    return set() if known is None else _names(known)


def _manifest(folder: Path) -> manifest.Json | None:
    """Returns a folder's manifest; None where there is none that can be read."""
    try:
        return manifest.read(folder)
    except InputError:
        return None


def _names(known: manifest.Json) -> set[str]:
    return {manifest.NAME, *(file.path for file in manifest.files(known))}


def _is_ours_alone(folder: Path) -> bool:
    listed = _listed(folder)
    return bool(listed) and all(
        path.is_dir() or str(path.relative_to(folder)) in listed for path in folder.rglob("*") if path != folder
    )
