"""OUT.partial, where a conversion works until OUT can appear at once: lock, journal, what a resumed run may reuse."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wanconv.checkpoint.writer import Journal, describe_output_error, publish, sync_folders, write_file
from wanconv.errors import InputError, UsageError
from wanconv.workshop import manifest

_PRIVATE = ".wanconv"


class Workspace:
    """An OUT.partial that this process owns. `overflowing` are the tensors that are known to need their fallback."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._private = folder / _PRIVATE
        self._state = self._private / "state.json"
        self.found: str | None = None
        self.overflowing: frozenset[str] = frozenset()
        try:
            saved = json.loads(self._state.read_bytes())
            self.found, self.overflowing = str(saved["key"]), frozenset(saved["overflowing"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def journal(self) -> Journal:
        return Journal(self._private / "journal")

    def remember(self, overflowing: frozenset[str]) -> None:
        """Saves what a resumed run must know."""
        self.overflowing = overflowing
        temporary = self._state.with_suffix(".tmp")
        write_file(temporary, json.dumps({"key": self.key, "overflowing": sorted(overflowing)}).encode())
        publish(temporary, self._state)

    def discard(self) -> None:
        """Removes everything: after a refusal because of data there is nothing to go on from."""
        shutil.rmtree(self.folder)

    def finish(self, out: Path) -> Path | None:
        """Makes the folder appear as OUT. Returns where --force put a folder that wanconv had not written."""
        sync_folders(self.folder)
        shutil.rmtree(self._private, ignore_errors=True)
        replaced = None
        if out.exists() and any(out.iterdir()) if out.is_dir() else out.exists():
            replaced = _aside(out)
            publish(out, replaced)
        publish(self.folder, out)
        if replaced is not None and (replaced / manifest.NAME).exists():
            shutil.rmtree(replaced)
            return None
        return replaced


def _aside(out: Path) -> Path:
    number = 1
    while (aside := out.with_name(f"{out.name}.replaced-{number}")).exists():
        number += 1
    return aside


@contextmanager
def open_workspace(out: Path, key: str, done: str, force: bool) -> Iterator[Workspace]:
    """Opens OUT.partial under a lock: new, or left by a run with the same `key` (or finished, with plan `done`).

    Raises UsageError for one that another process holds or another conversion left (`force` starts over).
    """
    folder = out.with_name(out.name + ".partial")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is in the way: it is no folder", "remove it, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise describe_output_error(error, folder) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another wanconv is writing {folder}", "wait for it, or choose another --out") from None
        workspace = Workspace(folder, key)
        if workspace.found != key and not is_complete(folder, done):
            if any(folder.iterdir()):
                if not force:
                    raise UsageError(
                        f"{folder} was left by another conversion, or its source has changed since",
                        "--force starts over; or choose another --out",
                    )
                for entry in list(folder.iterdir()):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            _start(workspace)
        yield workspace
    finally:
        os.close(descriptor)


def _start(workspace: Workspace) -> None:
    private = workspace.folder / _PRIVATE
    try:
        private.mkdir()
    except OSError as error:
        raise describe_output_error(error, private) from error
    workspace.remember(frozenset())


def is_complete(folder: Path, done: str) -> bool:
    """True where a run of plan `done` was stopped after its last byte: only the rename is missing."""
    try:
        known = manifest.read(folder)
    except InputError:
        return False
    return known is not None and known["plan"] == done and not manifest.check_files(folder, known, lambda nbytes: None)
