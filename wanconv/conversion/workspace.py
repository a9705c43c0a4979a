"""OUT.partial, where a conversion works until OUT can appear at once: lock, journal, what a resumed run may reuse.

Files are recorded before they are written there. A file that no run has recorded belongs to someone else: it is never
removed, and the conversion does not finish around it.
"""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from wanconv.containers.writer import Journal
from wanconv.conversion import replacing
from wanconv.conversion.replacing import is_free, remove_if_empty
from wanconv.errors import InputError, Occupied, OutputError, UsageError
from wanconv.provenance import manifest
from wanconv.storage.local import describe_output_error, publish, sync_folders, write_file
from wanconv.storage.reading import JSON_NBYTES, parsed_json, read_small
from wanconv.types.documents import Json
from wanconv.types.progress import unheard

_PRIVATE = ".wanconv"
_SOURCE = "source"  # below the private folder: downloaded source files, as long as they are needed
_IN_PRIVATE = ("journal", "state.tmp", "state.json")  # in the order of their removal
_MOST_NAMED = 10


class Workspace:
    """An OUT.partial that this process owns.

    `found` is the key of the run that left it, `complete` says that only the rename is missing, `overflowing` are the
    tensors that are known to need their fallback, `files` are the files that this run and earlier ones may have
    written.
    """

    def __init__(self, folder: Path, key: str, reads: Iterable[Path] = ()) -> None:
        self.folder, self.key, self.complete = folder, key, False
        self.private = private_folder(folder)
        self._reads = tuple(reads)
        self._state = self.private / "state.json"
        self.found: str | None = None
        self.overflowing: frozenset[str] = frozenset()
        self.files: frozenset[str] = frozenset()
        try:
            saved = parsed_json(read_small(self._state, JSON_NBYTES))
            if not isinstance(saved, dict):
                return
            found, overflowing, files = str(saved["key"]), frozenset(saved["overflowing"]), frozenset(saved["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if all(isinstance(name, str) for name in overflowing | files):
            self.found, self.overflowing, self.files = found, overflowing, files

    def journal(self) -> Journal:
        return Journal(self.private / "journal")

    def start(self) -> None:
        """Starts again without anything of an earlier run, above all without its journal. Raises UsageError if others
        have put something there."""
        self.refuse_others()
        self._clear()
        self.private.mkdir()
        self.files = frozenset()
        self.remember(frozenset())

    def remember(self, overflowing: frozenset[str]) -> None:
        """Saves the state for a resumed run."""
        self.overflowing = overflowing
        saved = {"key": self.key, "overflowing": sorted(overflowing), "files": sorted(self.files)}
        temporary = self._state.with_suffix(".tmp")
        write_file(temporary, json.dumps(saved).encode())
        publish(temporary, self._state)

    def claim(self, files: Iterable[str]) -> None:
        """Records the files that will be written, before they exist."""
        if more := frozenset(files) - self.files:
            self.files |= more
            self.remember(self.overflowing)

    def discard(self) -> None:
        """Removes all files written: after a refusal because of data there is nothing to resume."""
        with writing(self.folder):
            self._clear()
            remove_if_empty(self.folder)

    def refuse_others(self) -> None:
        """Raises UsageError if the folder holds files that no run has written."""
        ours = self._ours()
        others = (path for path, status in self._entries() if path not in ours and not stat.S_ISDIR(status.st_mode))
        if named := list(islice(others, _MOST_NAMED)):
            message = f"{self.folder} holds what wanconv did not write"
            raise Occupied(message, "move it away by hand, and run the same command again", named)

    def finish(self, out: Path, force: bool) -> Path | None:
        """Makes the folder appear as OUT; `force` replaces a folder that is wanconv's alone. Returns the old folder's
        new path if others have put something into it while it was being removed."""
        with writing(out):
            self._check_room(out, force)  # a refusal leaves the state for resuming
        with writing(self.folder):
            self.refuse_others()
            self._prune(self._read_back())
            sync_folders(self.folder)
            self._clear_private()
            sync_folders(self.folder)
        with writing(out):
            replaced = self._moved_aside(out, force)
        publish(self.folder, out)
        if replaced is None:
            return None
        with writing(replaced):
            return None if replacing.remove(replaced, _listed(replaced)) else replaced

    def _moved_aside(self, out: Path, force: bool) -> Path | None:
        """Moves an existing OUT away and returns its new path; if it raises UsageError, OUT is unchanged."""
        self._check_room(out, force)
        if is_free(out):
            return None
        aside = _aside(out)
        publish(out, aside)
        if (obstacle := replacing.others_in(aside)) is None:
            return aside
        if not os.path.lexists(out):  # another process wrote to it between check and move
            publish(aside, out)
            raise Occupied(f"{out} changed while it was about to be replaced", obstacle.hint, obstacle.details)
        raise Occupied(f"{out} changed while it was replaced, and is {aside} now", obstacle.hint, obstacle.details)

    def _check_room(self, out: Path, force: bool) -> None:
        replacing.check_place(out, self._reads)
        if not (force or is_free(out)):
            raise Occupied(f"{out} appeared during the run", "move it away and run the same command again")
        replacing.check_replaceable(out)

    def _clear(self) -> None:
        """Removes the files of runs. The file that marks it as wanconv's is removed last, so that a run killed here can
        be forced again."""
        replacing.remove(self.folder, self._ours(), keep_root=True)
        self._clear_private()

    def _clear_private(self) -> None:
        if not self.private.exists():
            return
        if (self.private / _SOURCE).exists():
            shutil.rmtree(self.private / _SOURCE)
        for name in _IN_PRIVATE:
            (self.private / name).unlink(missing_ok=True)
        remove_if_empty(self.private)

    def _ours(self) -> frozenset[str]:
        """Returns the files of runs: the recorded ones, or the manifest's of a run that was killed at its very end."""
        return self.files | _listed(self.folder)

    def _entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yields the folder's entries except wanconv's private folder."""
        for path, status in replacing.entries(self.folder):
            first, *rest = path.split("/")
            if first != _PRIVATE or not (rest[:1] in ([], [_SOURCE]) or rest in [[name] for name in _IN_PRIVATE]):
                yield path, status

    def _read_back(self) -> set[str]:
        """Returns the files that the manifest lists; raises OutputError if it cannot be read, or if others have removed
        listed files."""
        known = _manifest(self.folder)
        if known is None:
            raise OutputError(f"{self.folder} cannot be read back", "check the disk, then run the same command again")
        changed = [file.path for file in manifest.files(known) if _size(self.folder / file.path) != file.nbytes]
        if changed:
            raise OutputError(
                f"{self.folder} was changed by others while it was written: {changed[0]} is not as it was",
                f"remove {self.folder}, and run the same command again when nothing else touches it",
            )
        return replacing.names(known)

    def _prune(self, listed: set[str]) -> None:
        """Removes files that the manifest does not list: shards of an attempt before a fallback changed their
        number."""
        stale = self._ours() - listed
        for path, status in reversed(list(self._entries())):  # a folder's content before the folder
            if not stat.S_ISDIR(status.st_mode):
                if path in stale:
                    (self.folder / path).unlink()
            elif not any((self.folder / path).iterdir()):
                (self.folder / path).rmdir()


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
    """Returns the folder in OUT.partial that never becomes a part of OUT."""
    return partial / _PRIVATE


def downloads_folder(partial: Path) -> Path:
    """Returns the folder for files of a source that is downloaded during the conversion."""
    return private_folder(partial) / _SOURCE


@contextmanager
def open_workspace(out: Path, key: str, done: str, force: bool, reads: Iterable[Path] = ()) -> Iterator[Workspace]:
    """Opens OUT.partial under a lock: new, or left by a run with the same `key` (or finished, with plan `done`).

    `reads` are the input paths, which OUT must not contain. Raises UsageError if another process holds the folder, if
    another conversion left it (`force` starts over) or if wanconv did not make it.
    """
    folder = partial_folder(out)
    with writing(folder):
        replacing.check_place(folder, reads)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise Occupied(f"{folder} is in the way: it is not a folder", "remove it, or choose another `out`")
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with writing(folder):
            _lock(descriptor, folder)
            if not (force or is_free(out)):  # another run has just finished it
                with suppress(OSError):
                    folder.rmdir()
                hint = "run the same command again, which looks at what it is"
                raise Occupied(f"{out} appeared during the run", hint)
            _refuse_links(folder)
            workspace = _resumed(Workspace(folder, key, reads), done, force)
        yield workspace
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    busy = UsageError(f"another wanconv is writing {folder}", "wait for it, or choose another `out`")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
        raise busy  # it has just finished, and the locked folder is its OUT


def _refuse_links(folder: Path) -> None:
    """Raises UsageError for links that would be written through: a file with a second name may be the source's."""
    hint = f"remove {folder}, or choose another folder for the output"
    is_mount = replacing.mounts_in(folder)
    for path, status in replacing.entries(folder):
        if is_mount(path, status):
            raise UsageError(f"{folder / path} is a mount point: wanconv does not write through it", hint)
        if not stat.S_ISDIR(status.st_mode) and not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1):
            message = f"{folder / path} is a link, or a file with a second name: wanconv does not write through it"
            raise UsageError(message, hint)


def _resumed(workspace: Workspace, done: str, force: bool) -> Workspace:
    folder = workspace.folder
    if workspace.found == workspace.key:
        workspace.refuse_others()
    # Without a state, the run was killed between its last two steps; the caller checks that the source is the same.
    if workspace.found == workspace.key or (workspace.found is None and not force):
        workspace.complete = _is_complete(folder, done)
    if workspace.found == workspace.key or workspace.complete:
        return workspace
    if any(entry != workspace.private for entry in folder.iterdir()):  # otherwise a run was killed before it began
        if workspace.found is None and not _listed(folder):
            raise Occupied(f"{folder} is in the way: wanconv did not make it", "move it, or choose another `out`")
        if not force:
            raise Occupied(
                f"{folder} was left by another conversion, or its source has changed since",
                "`overwrite=True` starts over; or choose another `out`",
            )
    workspace.start()
    return workspace


def _is_complete(folder: Path, done: str) -> bool:
    """True if a run of plan `done` was stopped after its last byte: only the rename is missing."""
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
    """Returns the files that a folder's manifest lists, and the manifest; empty if there is no manifest of wanconv."""
    known = _manifest(folder)
    return set() if known is None else replacing.names(known)


def _manifest(folder: Path) -> Json | None:
    """Returns a folder's manifest; None if it cannot be read."""
    try:
        return manifest.read(folder)
    except InputError:
        return None
