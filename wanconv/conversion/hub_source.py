"""A source on a hub: each of its weight files is downloaded when it is needed, checked, read and deleted.

With `keep` they stay, in a folder like one of `wanconv download`.
"""

import os
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wanconv.containers.writer import Fill, Journal
from wanconv.conversion.options import ConvertOptions
from wanconv.conversion.prefetch import Arrivals
from wanconv.conversion.replacing import check_not_home
from wanconv.conversion.schedule import Known, needs, peak_nbytes, ties
from wanconv.conversion.sources import other_numbers
from wanconv.conversion.workspace import downloads_folder, partial_folder, writing
from wanconv.downloads.fetch import check_way, fetch, folder_lock, part_nbytes, part_path
from wanconv.downloads.headers import Mirror
from wanconv.errors import InputError, Interrupted, UsageError
from wanconv.planning import Plan
from wanconv.provenance import download_record, manifest, twins
from wanconv.storage.digests import digest_file
from wanconv.storage.hubs import RemoteFile
from wanconv.storage.hubs.ranges import RangeReader
from wanconv.storage.local import sync_folders
from wanconv.types.documents import Json
from wanconv.types.figures import count
from wanconv.types.model import Model
from wanconv.types.progress import Advance, Progress, total
from wanconv.types.tensors import TensorRef
from wanconv.weights.source_files import Files, confirm_file

if TYPE_CHECKING:  # it imports torch, which a plan does not need
    from wanconv.conversion.encode import TensorEncoder


class HubSource:
    """An `Origin`: a repository: `mirror` has its headers, and `root` the local weight files."""

    compared = "its bytes are those once written; of the source, headers and the hub's digests were compared"

    def __init__(self, mirror: Mirror, out: Path, keep: bool) -> None:
        self._mirror, self._keep = mirror, keep
        self._root = kept_folder(out) if keep else downloads_folder(partial_folder(out))
        self._remote = {file.path: file for file in mirror.snapshot.files}
        self._right: set[str] = set()  # the files that this process has checked

    def same_experts(self, model: Model) -> InputError | None:
        return twins.listed(model, {path: file.digest for path, file in self._remote.items()})

    def begin(self, made: Plan) -> None:
        """Does nothing: no file is local yet. See `files` and `filling`."""

    def identity(self, made: Plan) -> object:
        return [[path, self._remote[path].digest] for path in made.model.checkpoint.weight_files]

    def disk_nbytes(self, made: Plan, options: ConvertOptions, journal: Journal | None) -> int:
        if self._keep:
            return sum(file.nbytes - self._here(file) for file in self._remote.values())
        known: Known = journal.known if journal is not None else lambda image, block: None
        return peak_nbytes(needs(made, options.block_nbytes, known), lambda file: self._of(file).nbytes)

    def files(self, made: Plan, options: ConvertOptions, journal: Journal, progress: Progress) -> Files:
        needed = needs(made, options.block_nbytes, journal.known)
        tell = total(progress, "downloading", sum(self._of(need.file).nbytes for need in needed))
        parts = {file: part.part for part in made.model.components.values() for file in part.part.files}

        def arrive(file: Path, stop: threading.Event) -> Path:
            remote = self._of(file)
            where = self._arrive(remote, stop, tell)
            confirm_file(parts[remote.path], file, where)
            return where

        def release(file: Path) -> None:
            if not self._keep:
                self._right.discard(self._of(file).path)
                with writing(self._root):
                    (self._root / self._of(file).path).unlink(missing_ok=True)

        if not self._keep:
            self._forget_others({self._of(need.file) for need in needed})
        return Arrivals(needed, arrive, release)

    def filling(self, made: Plan, mover: "TensorEncoder", fallen: Callable[[str], None]) -> Fill:
        """A tied copy is compared before the first byte of its tensor is written. An overflow does not end the pass, in
        which each file is downloaded once: all are known at its end, and the files affected are written, and their
        sources downloaded, once more."""
        from wanconv.conversion.encode import NeedsFallback

        copies = ties(made)
        pending: dict[str, list[tuple[TensorRef, str]]] = {
            key: [(copy, step.tensor.name) for step in output.steps for copy in copies.get(step.tensor.name, ())]
            for key, output in made.outputs.items()
            if any(step.tensor.name in copies for step in output.steps)
        }
        tensors, known, lock = made.model.tensors, set[str](), threading.Lock()

        def fill(key: str, start: int, view: memoryview) -> None:
            if key in pending:
                with lock:
                    for copy, name in pending.get(key, ()):
                        mover.compare_tied(copy, tensors[name])
                    pending.pop(key, None)
            try:
                mover.fill(key, start, view)
            except NeedsFallback as overflow:
                with lock:
                    if (name := str(overflow)) not in known:
                        known.add(name)
                        fallen(name)

        return fill

    def prove(self, made: Plan, folder: Path) -> None:
        known = manifest.read(folder) or {}
        entries = known.get("source")
        listed = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        digests = {entry.get("path"): entry.get("sha256") for entry in listed}
        for path in made.model.checkpoint.weight_files:
            if digests.get(path) is None or self._remote[path].algorithm != "sha256":
                message = f"{folder} does not say which digest its source's {path} had"
                raise UsageError(message, "choose another `out`, or `overwrite=True` to write it again")
            if digests[path] != self._remote[path].digest:
                raise other_numbers(folder, f"for instance in {path}")

    def listed(self, made: Plan, options: ConvertOptions, progress: Progress) -> list[Json]:
        """The digests are the hub's, which every file was checked against: nothing is hashed again."""
        return manifest.source_files(made.model.checkpoint)

    def end(self, progress: Progress) -> None:
        """With `keep`, downloads the remaining files, of which no byte was needed."""
        if not self._keep:
            return
        missing = [file for file in self._remote.values() if file.path not in self._right]
        tell = total(progress, "downloading the rest", sum(file.nbytes for file in missing))
        for file in missing:
            self._arrive(file, threading.Event(), tell)
        sync_folders(self._root)

    def _of(self, file: Path) -> RemoteFile:
        return self._remote[file.relative_to(self._mirror.root).as_posix()]

    def _here(self, file: RemoteFile) -> int:
        """Returns the local bytes of a file, complete or not."""
        target = self._root / file.path
        return file.nbytes if _size(target) == file.nbytes else part_nbytes(target, file)

    def _arrive(self, file: RemoteFile, stop: threading.Event, tell: Advance) -> Path:
        """Returns a file's path, checked: an earlier run's bytes are read again, the rest is fetched."""
        target = self._root / file.path
        check_way(self._root, file.path)
        if file.path not in self._right and not self._is_right(target, file, stop, tell):
            hub, snapshot = self._mirror.hub, self._mirror.snapshot
            fetch(RangeReader(self._mirror.patience, stop), hub.address(snapshot, file.path), file, self._root, tell)
        self._right.add(file.path)
        return target

    def _is_right(self, target: Path, file: RemoteFile, stop: threading.Event, tell: Advance) -> bool:
        """True if an earlier run has left the whole file."""
        if _size(target) != file.nbytes:
            return False

        def advance(more: int, kept: bool = False) -> None:
            if stop.is_set():
                raise Interrupted("stopped")
            tell(more, kept=True)

        with writing(target):
            if digest_file(target, file.algorithm, advance) == file.digest:
                return True
        tell(-file.nbytes, kept=True)
        return False

    def _forget_others(self, files: Set[RemoteFile]) -> None:
        """Removes an earlier run's files that are no longer needed: the disk space was computed without them."""
        targets = {self._root / file.path: file for file in files}
        kept = {path for target, file in targets.items() for path in (target, part_path(target, file))}
        with writing(self._root):
            for path in self._root.rglob("*"):
                if path.is_file() and path not in kept:
                    path.unlink()


def kept_folder(out: Path) -> Path:
    """Returns the folder that keeps the source's files with `keep_source`."""
    return out.with_name(out.name + ".source")


@contextmanager
def streamed(mirror: Mirror, out: Path, keep: bool) -> Iterator[HubSource]:
    """Yields the origin; kept files go into a locked folder, which is recorded as a download."""
    origin = HubSource(mirror, out, keep)
    download_record.write(mirror.root, mirror.snapshot)  # the mirror is a download, too: its digests go into manifests
    if not keep:
        yield origin
        return
    root = kept_folder(out)
    check_not_home(root)
    with folder_lock(root):
        before = download_record.read(root)
        mine = {file.path for file in before.files} if before is not None else set()
        snapshot = mirror.snapshot
        if before is not None and (before.hub, before.repository) != (snapshot.hub, snapshot.repository):
            message = f"{root} holds a download of {before.hub}://{before.repository}"
            raise UsageError(message, "move it away, or choose another `out`")
        if foreign := [
            file.path for file in snapshot.files if file.path not in mine and _size(root / file.path) is not None
        ]:
            message = f"{root} has {count(len(foreign), 'file')} that no download put there"
            raise UsageError(message, "move them away, or choose another `out`", foreign)
        download_record.write(root, snapshot)
        yield origin


def sidecars(made: Plan, mirror: Mirror) -> set[str]:
    """Returns the sidecars that are in the output, as files or as tensors."""
    attached = {wanted for _, wanted in made.layout.attached.values()}
    copied = {path.relative_to(mirror.root).as_posix() for path in made.copies.values()}
    return copied | {path for path in made.model.checkpoint.sidecars if os.path.basename(path) in attached}


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.lstat().st_size
    return None
