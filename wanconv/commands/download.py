"""download: files of a hub, planned before a byte, resumed, digested while they are written."""

import os
import threading
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from wanconv.conversion.replacing import check_not_home
from wanconv.downloads.fetch import check_way, fetch, folder_lock, part_nbytes
from wanconv.downloads.selection import Wish, owners, select
from wanconv.errors import Interrupted, OutputError, UsageError
from wanconv.planning import without_match
from wanconv.provenance import download_record
from wanconv.report import Cell, Finding, Report, Table
from wanconv.storage.digests import digest_files
from wanconv.storage.disk import free_nbytes
from wanconv.storage.hubs import Hub, Patience, RemoteFile, Snapshot, open_hub, parse
from wanconv.storage.hubs.names import check_names
from wanconv.storage.hubs.ranges import RangeReader
from wanconv.storage.local import sync_folders
from wanconv.storage.paths import check_target
from wanconv.types.exclusion import unmatched
from wanconv.types.figures import count, sizes
from wanconv.types.progress import Advance, Progress, silent, total

_MAX_SHOWN = 200  # most characters of an unchecked name


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """The options of `download`. `force` replaces files that hold other bytes and were not downloaded."""

    source: str | None = None
    revision: str | None = None
    wish: Wish = field(default_factory=Wish)
    local_dir: Path | None = None
    token: str | None = field(default=None, repr=False)
    force: bool = False
    jobs: int = 4
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class _Job:
    """A planned download: `snapshot` has only the wanted files, `skipped` the reason for each of the others.
    `unmatched` are globs of `exclude` that match no file."""

    hub: Hub
    snapshot: Snapshot
    skipped: dict[str, tuple[RemoteFile, str]]
    root: Path
    unmatched: tuple[str, ...] = ()


def preview(repository: str, options: DownloadOptions) -> Report:
    """Returns what would be downloaded and whether it fits on the disk; requests only the list and writes nothing."""
    job = _prepare(repository, options)
    here = {file for file in job.snapshot.files if _size(job.root / file.path) == file.nbytes}
    needed, free = _needed(job, here), free_nbytes(job.root)
    findings = _skipped(job)
    if needed > free:
        message = "{} are needed and {} are free".format(*sizes(needed, free))
        findings.append(Finding("failure", str(job.root), message, "free space, or another `local_dir`", "output"))
    figures = _figures(job) | {"to_download_nbytes": needed, "disk_free_nbytes": free}
    title = f"plan: {job.snapshot.repository} → {job.root}"
    exit_code = OutputError.exit_code if needed > free else 0
    return Report("download", title, figures, (_table(job, here),), findings, exit_code=exit_code)


def download(repository: str, options: DownloadOptions, progress: Progress = silent) -> Report:
    """Downloads the wanted files that are missing; returns the result. If it raises WanconvError, complete and partial
    files stay."""
    job = _prepare(repository, options)
    with folder_lock(job.root):
        before = _record_of(job)
        here = _found(job, before, options, progress)
        missing = [file for file in job.snapshot.files if file not in here]
        needed, free = _needed(job, here), free_nbytes(job.root)
        if needed > free:
            room, more = sizes(free, needed)
            message = f"{job.root} has {room} free, and {more} are needed"
            raise OutputError(message, "free space, choose another `local_dir`, or take less with `only` or `include`")
        download_record.write(job.root, _merged(job, before))
        tell = total(progress, "downloading", sum(file.nbytes for file in missing))
        _fetch_all(job, missing, options, tell)
        sync_folders(job.root)
    figures = _figures(job) | {
        "out": str(job.root),
        "fetched": Cell(
            {"fetched": len(missing), "present": len(here)},
            f"{count(len(missing), 'file')}, {len(here)} were there; every digest is the hub's",
        ),
        "fetched_nbytes": sum(file.nbytes for file in missing),
    }
    title = f"{job.root.name}: complete, every digest right"
    return Report("download", title, figures, (_table(job, here),), _skipped(job), tone="success")


def _prepare(repository: str, options: DownloadOptions) -> _Job:
    """Returns the job; raises before anything is written, for an invalid name."""
    reference = parse(repository, options.source, options.revision)
    folder = options.local_dir if options.local_dir is not None else Path(reference.repository.split("/")[1])
    root = Path(os.path.realpath(folder))
    check_target(folder)
    check_not_home(root)
    hub = open_hub(reference.hub, options.token, options.patience)
    listing = hub.snapshot(reference.repository, reference.revision)
    wanted, reasons = select(listing.files, options.wish)
    check_names((file.path for file in wanted), listing.uri)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{folder} is not a folder", "choose another `local_dir`")
    for file in wanted:
        check_way(root, file.path)
    by_path = {file.path: file for file in listing.files}
    skipped = {path: (by_path[path], why) for path, why in reasons.items()}
    idle = unmatched(options.wish.exclude, by_path.keys())
    return _Job(hub, replace(listing, files=tuple(wanted)), skipped, root, idle)


def _record_of(job: _Job) -> Snapshot | None:
    """Returns an earlier run's record; raises UsageError if it is about another repository."""
    record = download_record.read(job.root)
    if record is not None and (record.hub, record.repository) != (job.snapshot.hub, job.snapshot.repository):
        message = f"{job.root} holds a download of {record.hub}://{record.repository}"
        raise UsageError(message, "choose another folder with `local_dir`")
    return record


def _merged(job: _Job, before: Snapshot | None) -> Snapshot:
    """Returns the files to record: the wanted ones, and those of an earlier download that are unchanged in this
    revision."""
    wanted = {file.path for file in job.snapshot.files}
    listed = {file for file, _ in job.skipped.values()}
    kept = [file for file in (before.files if before else ()) if file.path not in wanted and file in listed]
    return replace(job.snapshot, files=tuple(sorted((*job.snapshot.files, *kept), key=lambda file: file.path)))


def _found(job: _Job, before: Snapshot | None, options: DownloadOptions, progress: Progress) -> set[RemoteFile]:
    """Returns the wanted files that exist already, by their digests; raises UsageError if other files are in the way
    that no earlier download wrote."""
    there = [file for file in job.snapshot.files if _size(job.root / file.path) is not None]
    whole = [file for file in there if _size(job.root / file.path) == file.nbytes]
    tell = total(progress, "checking what is there", sum(file.nbytes for file in whole))
    right = set[RemoteFile]()
    for algorithm in ("sha256", "git-sha1"):
        files = [file for file in whole if file.algorithm == algorithm]
        found = digest_files(job.root, [file.path for file in files], algorithm, tell, options.jobs)
        right |= {file for file in files if found[file.path] == file.digest}
    ours = {file.path for file in before.files} if before else set()
    if foreign := [file.path for file in there if file not in right and file.path not in ours and not options.force]:
        raise UsageError(
            f"{job.root} has {count(len(foreign), 'file')} with other bytes than {job.snapshot.uri}",
            "choose another `local_dir`, or `overwrite=True` to replace them",
            foreign,
        )
    return right


def _fetch_all(job: _Job, files: Sequence[RemoteFile], options: DownloadOptions, tell: Advance) -> None:
    """Fetches files on several threads, the largest first; raises the first error when the others have stopped."""
    stop, lock = threading.Event(), threading.Lock()
    queue = iter(sorted(files, key=lambda file: -file.nbytes))
    errors: list[BaseException] = []

    def next_file() -> RemoteFile | None:
        with lock:
            return next(queue, None)

    def work() -> None:
        reader = RangeReader(options.patience, stop)
        try:
            while not stop.is_set() and (file := next_file()) is not None:
                fetch(reader, job.hub.address(job.snapshot, file.path), file, job.root, tell)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that waits, which raises it
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(options.jobs, len(files)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
    except KeyboardInterrupt:  # threads that wait for a server are not waited for: downloads resume from any point
        stop.set()
        raise Interrupted("stopped; what is downloaded stays", "run the same command to go on") from None
    if errors:
        raise errors[0]


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.lstat().st_size
    return None


def _needed(job: _Job, here: Set[RemoteFile]) -> int:
    """Returns the remaining bytes: all, without complete files and the parts of earlier runs."""
    missing = (file for file in job.snapshot.files if file not in here)
    return sum(file.nbytes - part_nbytes(job.root / file.path, file) for file in missing)


def _figures(job: _Job) -> dict[str, object]:
    snapshot = job.snapshot
    listed = len(snapshot.files) + len(job.skipped)
    return {
        "source": Cell(f"{snapshot.hub}://{snapshot.repository}", f"{job.hub.title}, {snapshot.repository}"),
        "revision": Cell(
            {"name": snapshot.revision, "commit": snapshot.commit},
            f"{snapshot.revision} ({snapshot.commit or 'no commit: pinned by the digest of every file'})",
        ),
        "files": Cell({"wanted": len(snapshot.files), "listed": listed}, f"{len(snapshot.files)} of {listed}"),
        "total_nbytes": sum(file.nbytes for file in snapshot.files),
    }


def _table(job: _Job, here: Set[RemoteFile]) -> Table:
    rows = tuple(
        (
            file.path,
            ", ".join(sorted(owners(file.path))),
            file.nbytes,
            "there" if file in here else "",
            file.digest[:16],
        )
        for file in job.snapshot.files
    )
    return Table("files", ("path", "component", "size_nbytes", "before", "digest"), rows)


def _skipped(job: _Job) -> list[Finding]:
    """Returns a note for each reason to skip files, with their number and size; a warning for each glob that skips
    none."""
    groups: dict[str, list[RemoteFile]] = {}
    for file, why in job.skipped.values():
        groups.setdefault(why, []).append(file)
    return [
        Finding("note", f"{count(len(files), 'file')} skipped", f"{why}: {_examples(files)}", "`include` takes them")
        for why, files in groups.items()
    ] + without_match(job.unmatched)


def _examples(files: Sequence[RemoteFile]) -> str:
    shown = ", ".join(file.path[:_MAX_SHOWN] for file in files[:3])
    return shown if len(files) <= 3 else f"{shown} …"
