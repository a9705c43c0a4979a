"""A repository's headers in place of the repository: a folder of sparse files with the right names and sizes.

The parts that readers of headers need are fetched in ranges of some 100 KB; tensors are not. Readers treat it like any
other folder.
"""

import os
import threading
from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from wanconv.containers.files import Header, OpenFile
from wanconv.containers.index import check_size
from wanconv.containers.open import INDEX, WEIGHTS, header_of
from wanconv.downloads.fetch import fetch
from wanconv.downloads.selection import Wish, select
from wanconv.errors import InputError, WanconvError
from wanconv.quantization.packings import is_constant
from wanconv.storage.hubs import Hub, Patience, RemoteFile, Snapshot, open_hub, parse
from wanconv.storage.hubs.names import check_names
from wanconv.storage.hubs.ranges import RangeReader
from wanconv.storage.local import describe_output_error, pwrite_all
from wanconv.storage.reading import read_at
from wanconv.storage.tempdir import scratch
from wanconv.types.exclusion import unmatched
from wanconv.types.figures import exact_size, size

_EDGE_NBYTES = 100_000  # bytes of a file's beginning and end, where headers are
_STEP_NBYTES = 4096  # read ahead between records: those of a .pth have headers of their own
_WHOLE_NBYTES = 1_000_000  # sidecars up to this size are fetched whole, digests checked
_ALL_WHOLE_NBYTES = 500_000_000  # limit of their sum; a released model has some 40 MB
_JOBS = 8
_HINT = "try again; `exclude` leaves files out"


@dataclass(frozen=True, slots=True)
class Mirror:
    """`root` is the folder that stands for `snapshot`, a repository's wanted files; `unmatched` are globs that were to
    leave files out and match none."""

    root: Path
    hub: Hub
    snapshot: Snapshot
    patience: Patience
    counts: list[int] = field(default_factory=list)
    unmatched: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        return self.snapshot.uri

    def count(self, more: int, kept: bool = False) -> None:
        self.counts.append(more)

    @property
    def read_nbytes(self) -> int:
        return sum(self.counts)


@contextmanager
def mirrored(
    repository: str, wish: Wish, token: str | None = None, patience: Patience | None = None
) -> Iterator[Mirror]:
    """Yields the mirror of a repository's wanted files; errors in the block name the repository, not the folder."""
    reference = parse(repository)
    hub = open_hub(reference.hub, token, patience)
    snapshot = hub.snapshot(reference.repository, reference.revision)
    wanted, _ = select(snapshot.files, wish)
    check_names((file.path for file in wanted), snapshot.uri)
    _check_sidecars(wanted, snapshot.uri)
    idle = unmatched(wish.exclude, [file.path for file in snapshot.files])
    with scratch() as folder:
        root = folder / reference.repository.split("/")[1]
        mirror = Mirror(root, hub, replace(snapshot, files=tuple(wanted)), patience or Patience(), unmatched=idle)
        try:
            _make(mirror, mirror.snapshot.files, _WHOLE_NBYTES)
            yield mirror
        except WanconvError as error:
            texts = [
                text.replace(str(mirror.root), snapshot.uri) for text in (error.message, error.hint, *error.details)
            ]
            raise type(error)(texts[0], texts[1], texts[2:]) from error


def _check_sidecars(files: Iterable[RemoteFile], where: str) -> None:
    """Raises InputError if the files that would be fetched whole are too many: headers alone are wanted."""
    nbytes = sum(file.nbytes for file in files if _is_small(file))
    if nbytes > _ALL_WHOLE_NBYTES:
        most = size(_ALL_WHOLE_NBYTES)
        message = (
            f"{where} has {exact_size(nbytes)} in small files; of a model that is not here, at most {most} are read"
        )
        raise InputError(message, "leave some out with `exclude`, or download the model first")


def _is_small(file: RemoteFile) -> bool:
    return file.nbytes <= _WHOLE_NBYTES and not file.path.endswith(WEIGHTS)


def complete(mirror: Mirror, paths: Collection[str]) -> None:
    """Also fetches sidecars whose bytes are needed."""
    holes = [file for file in mirror.snapshot.files if file.path in paths and file.nbytes > _WHOLE_NBYTES]
    _make(mirror, holes, max((file.nbytes for file in holes), default=0))


def _make(mirror: Mirror, files: Iterable[RemoteFile], whole_nbytes: int) -> None:
    """Makes the files: small ones and every index whole, weight files with their headers, others with their length
    only."""
    stop = threading.Event()

    def make(file: RemoteFile) -> InputError | None:
        reader = RangeReader(mirror.patience, stop)
        try:
            if file.path.endswith(INDEX):
                hint = "leave it out with `exclude`, or try the other hub"
                check_size(mirror.root / file.path, file.nbytes, hint)
            if file.path.endswith(INDEX) or (file.nbytes <= whole_nbytes and not file.path.endswith(WEIGHTS)):
                address = mirror.hub.address(mirror.snapshot, file.path)
                fetch(reader, address, file, mirror.root, mirror.count)
                return None
            with _far_file(mirror, file, reader) as far:
                if file.path.endswith(WEIGHTS):
                    _read_constants(far, header_of(far))
        except InputError as error:
            return error
        return None

    with ThreadPoolExecutor(_JOBS) as pool:
        try:
            errors = [error for error in pool.map(make, files) if error is not None]
        except BaseException:
            stop.set()
            raise
    if errors:
        details = [line for error in errors[1:] for line in (error.message, *error.details)]
        raise type(errors[0])(errors[0].message, errors[0].hint or _HINT, (*errors[0].details, *details))


def _read_constants(far: OpenFile, header: Header) -> None:
    """Fetches the few bytes after a header that identify scales, neighbouring ones in one request."""
    spans = sorted((ref.offset, ref.offset + ref.nbytes) for ref in header.tensors.values() if is_constant(ref))
    runs: list[tuple[int, int]] = []
    for start, end in spans:
        if runs and start - runs[-1][1] <= _EDGE_NBYTES:
            start = runs.pop()[0]
        runs.append((start, end))
    for start, end in runs:
        far.read(start, end - start)


class _FarFile:
    """An OpenFile whose bytes come from a hub and are kept in a sparse file."""

    def __init__(self, path: Path, size: int, descriptor: int, span: "_Span") -> None:
        self.path, self.size = path, size
        self._descriptor, self._span = descriptor, span
        self._known: list[tuple[int, int]] = []  # (start, end) of the bytes present, ascending, apart

    def read(self, offset: int, nbytes: int) -> bytes:
        end = offset + nbytes
        if end > self.size:
            raise InputError(f"{self.path} ends at byte {self.size}, inside its header", _HINT)
        if not self._has(offset, end):
            start, stop = self._around(offset, end)
            pwrite_all(self._descriptor, memoryview(self._span(start, stop)), start)
            insort(self._known, (start, stop))
        return read_at(self._descriptor, nbytes, offset)

    def _has(self, start: int, end: int) -> bool:
        place = bisect_right(self._known, start, key=lambda span: span[0]) - 1
        return start == end or (place >= 0 and self._known[place][1] >= end)

    def _around(self, start: int, end: int) -> tuple[int, int]:
        """Returns the range to request: more than needed, since a request takes longer than its bytes."""
        if start < _EDGE_NBYTES:
            return 0, min(self.size, max(end, _EDGE_NBYTES))
        if end > self.size - _EDGE_NBYTES:
            return min(start, max(0, self.size - _EDGE_NBYTES)), self.size
        return start, min(self.size, max(end, start + _STEP_NBYTES))


class _Span:
    """Reads (start, end) of one remote file."""

    def __init__(self, reader: RangeReader, mirror: Mirror, file: RemoteFile) -> None:
        self._reader, self._file, self._counts = reader, file, mirror.counts
        self._address = mirror.hub.address(mirror.snapshot, file.path)

    def __call__(self, start: int, end: int) -> bytes:
        content = bytearray(end - start)
        for offset, chunk in self._reader.stream(self._address, self._file.path, self._file.nbytes, start, end):
            if offset < start:
                message = f"{self._file.path}: its server gives whole files only, and headers alone are wanted"
                raise InputError(message, "download the model, or try the other hub")
            content[offset - start : offset - start + len(chunk)] = chunk
            self._counts.append(len(chunk))
        return bytes(content)


@contextmanager
def _far_file(mirror: Mirror, file: RemoteFile, reader: RangeReader) -> Iterator[_FarFile]:
    path = mirror.root / file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(descriptor, file.nbytes)
            yield _FarFile(path, file.nbytes, descriptor, _Span(reader, mirror, file))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise describe_output_error(error, path) from error
