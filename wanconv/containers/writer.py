"""Writes weight files block by block on several threads: journaled, hashed on the way, synced, resumable.

The place of every output byte is known before the first one is read: an `Image` is literals (headers) and payloads.
The files' bytes are cut into blocks. A worker takes the next block, fills it, writes it at its offset and records its
digest in the journal. It writes with O_DIRECT if the file system has it, so that written bytes do not push the source
out of the page cache. Blocks are hashed in file order by whichever worker completes the run, so digests need no second
pass and memory stays at a few blocks. A block that an earlier run recorded is read back and compared, never trusted.
"""

import errno
import hashlib
import json
import mmap
import os
import signal
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import xxhash

from wanconv.errors import Interrupted
from wanconv.storage.local import Written, describe_output_error, pwrite_all
from wanconv.storage.reading import fill_at
from wanconv.types.progress import Advance, unheard

BLOCK_NBYTES = 8 << 20
_ALIGNMENT = 4096
# Address space, which may be limited, for the stacks and for what libraries keep per thread: without it, libraries end
# the process.
_ROOM_NBYTES, _ROOM_OF_A_THREAD_NBYTES = 64 << 20, 12 << 20

Fill = Callable[[str, int, memoryview], None]


@dataclass(frozen=True, slots=True)
class Payload:
    """`nbytes` at `offset` of an image that belong to the tensor `key`."""

    key: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Image:
    """The layout of a weight file without its payload: `path` below the output folder, literals as (offset, bytes)."""

    path: str
    nbytes: int
    literals: tuple[tuple[int, bytes], ...]
    payloads: tuple[Payload, ...]

    @property
    def identity(self) -> str:
        """Returns a digest of everything that decides where bytes go; blocks are reused only if it is the same."""
        table = [
            self.path,
            self.nbytes,
            [[offset, len(literal), hashlib.sha256(literal).hexdigest()] for offset, literal in self.literals],
            [[payload.key, payload.offset, payload.nbytes] for payload in self.payloads],
        ]
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:32]


class Journal:
    """Digests of the blocks that were written, one JSON line each; a torn line is ignored."""

    def __init__(self, path: Path) -> None:
        self._known: dict[tuple[str, int], str] = {}
        self._path = path
        try:
            self._stream = path.open("a+b", buffering=0)
            self._stream.seek(0)
            lines = self._stream.read().split(b"\n")
        except OSError as error:
            raise describe_output_error(error, path) from error
        for line in lines:
            self._recall(line)

    def _recall(self, line: bytes) -> None:
        try:
            image, block, digest = json.loads(line)
            if digest is None:
                self._known = {key: value for key, value in self._known.items() if key[0] != image}
            else:
                self._known[image, block] = digest
        except (ValueError, TypeError, RecursionError):
            pass  # torn or invalid: the block is made again

    def known(self, image: str, block: int) -> str | None:
        return self._known.get((image, block))

    def forget(self, image: str) -> None:
        """Voids an image's blocks: after a failed fsync the page cache may hold bytes that the disk never got."""
        self.note(image, 0, None)

    def note(self, image: str, block: int, digest: str | None) -> None:
        line = b"\n" + json.dumps([image, block, digest]).encode()
        try:
            self._stream.write(line)
        except OSError as error:
            raise describe_output_error(error, self._path) from error

    def close(self) -> None:
        self._stream.close()


class _File:
    """One output file: its descriptors, and its digests, which grow in file order."""

    def __init__(self, folder: Path, image: Image, block_nbytes: int) -> None:
        self.image, self.identity = image, image.identity
        self.path = folder / image.path
        self.block_nbytes = block_nbytes
        self.blocks = max(1, -(-image.nbytes // block_nbytes))
        self.sha256 = hashlib.sha256()
        self.tensors: dict[str, str] = {}
        self._payload_hash = xxhash.xxh3_128()
        self._payload_index = 0
        self._plain = self._direct = -1
        self._opening = threading.Lock()

    def open(self) -> None:
        """Opens the file for the first worker that needs it: only a few of many shards are open at a time."""
        with self._opening:
            if self._plain < 0:
                self._open()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._plain = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._plain, self.image.nbytes)
        except OSError as error:
            raise describe_output_error(error, self.path) from error
        try:
            self._direct = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:  # the file system has no O_DIRECT: use the page cache
            self._direct = -1

    def span(self, block: int) -> tuple[int, int]:
        start = block * self.block_nbytes
        return start, min(start + self.block_nbytes, self.image.nbytes)

    def write(self, start: int, view: memoryview) -> None:
        """Writes `view` at `start`; aligned runs bypass the page cache, an unaligned tail does not."""
        direct = len(view) // _ALIGNMENT * _ALIGNMENT if self._direct >= 0 else 0
        try:
            try:
                pwrite_all(self._direct, view[:direct], start)
            except OSError as error:
                if error.errno != errno.EINVAL:  # some file systems open with O_DIRECT and refuse its writes
                    raise
                direct = 0
            pwrite_all(self._plain, view[direct:], start + direct)
        except OSError as error:
            raise describe_output_error(error, self.path) from error

    def read(self, start: int, view: memoryview) -> bool:
        """Reads back what an earlier run wrote; False if it is incomplete."""
        try:
            return fill_at(self._plain, view, start) == len(view)
        except OSError:
            return False

    def hash(self, start: int, view: memoryview) -> None:
        """Takes the next bytes of the file, in order."""
        self.sha256.update(view)
        end = start + len(view)
        payloads = self.image.payloads
        while self._payload_index < len(payloads):
            payload = payloads[self._payload_index]
            first, last = max(start, payload.offset), min(end, payload.offset + payload.nbytes)
            if first < last:
                self._payload_hash.update(view[first - start : last - start])
            if payload.offset + payload.nbytes > end:
                return
            self.tensors[payload.key] = self._payload_hash.hexdigest()
            self._payload_hash = xxhash.xxh3_128()
            self._payload_index += 1

    def finish(self, journal: Journal) -> Written:
        try:
            os.fsync(self._plain)
        except OSError as error:
            journal.forget(self.identity)
            raise describe_output_error(error, self.path) from error
        return Written(self.image.path, self.image.nbytes, self.sha256.hexdigest(), self.tensors)

    def close(self) -> None:
        for descriptor in (self._plain, self._direct):
            if descriptor >= 0:
                os.close(descriptor)
        self._plain = self._direct = -1


@dataclass
class _State:
    """The workers' shared state, under one lock."""

    lock: threading.Condition = field(default_factory=threading.Condition)
    next_ticket: int = 0
    next_hashed: int = 0
    hashing: bool = False
    ready: dict[int, tuple[mmap.mmap, int, bool]] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    written: list[Written] = field(default_factory=list)


@contextmanager
def _interrupts(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Makes Ctrl-C call `stop` instead of raising, and yields the list of received signals.

    A KeyboardInterrupt inside Thread.join would make CPython treat a running thread as ended.
    """
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if _raises(number)]
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        stop()

    for number in numbers:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)


def _raises(number: int) -> bool:
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) is signal.default_int_handler


class _Writer:
    def __init__(
        self,
        files: Sequence[_File],
        fill: Fill,
        journal: Journal,
        progress: Advance,
        jobs: int,
        stopped: threading.Event,
    ) -> None:
        self._files, self._fill, self._journal, self._progress, self._stopped = files, fill, journal, progress, stopped
        self._tickets = [(file, block) for file in files for block in range(file.blocks)]
        self._state = _State()
        self._jobs = jobs
        self._window = 2 * jobs
        self._buffers = [mmap.mmap(-1, files[0].block_nbytes) for _ in range(self._window)] if files else []

    def run(self) -> list[Written]:
        try:
            return self._run()
        finally:
            for file in self._files:
                file.close()

    def _run(self) -> list[Written]:
        mmap.mmap(-1, _ROOM_NBYTES + self._jobs * _ROOM_OF_A_THREAD_NBYTES).close()  # fails here, not in C
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        with _interrupts(self._stop) as interrupted:
            try:
                for thread in threads:
                    thread.start()
            except RuntimeError:  # no further thread can be started
                self._stop()
                raise
            finally:
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
        if interrupted:
            raise Interrupted("stopped; what is written stays", "run the same command to go on")
        if self._state.errors:
            raise self._state.errors[min(self._state.errors)]
        return self._state.written

    def _stop(self) -> None:
        self._stopped.set()
        with self._state.lock:
            self._state.lock.notify_all()

    def _work(self) -> None:
        state = self._state
        while True:
            with state.lock:
                while not self._stopped.is_set() and state.next_ticket < len(self._tickets) and not self._buffers:
                    state.lock.wait()
                if self._stopped.is_set() or state.next_ticket >= len(self._tickets):
                    return
                ticket, buffer = state.next_ticket, self._buffers.pop()
                state.next_ticket += 1
            try:
                nbytes, kept = self._produce(*self._tickets[ticket], buffer)
                with state.lock:
                    state.ready[ticket] = (buffer, nbytes, kept)
                self._hash_ready()
            except BaseException as error:  # noqa: BLE001  # handed to the thread that waits, which raises it
                with state.lock:
                    if not (self._stopped.is_set() and isinstance(error, Interrupted)):  # `fill` saw `stop`
                        state.errors[ticket] = error
                self._stop()
                return

    def _produce(self, file: _File, block: int, buffer: mmap.mmap) -> tuple[int, bool]:
        """Brings one block to the buffer and to disk: read back if it matches the journal's digest, else made again."""
        file.open()
        start, end = file.span(block)
        view = memoryview(buffer)[: end - start]
        known = self._journal.known(file.identity, block)
        if known is not None and file.read(start, view) and xxhash.xxh3_128_hexdigest(view) == known:
            return end - start, True
        self._fill_block(file.image, start, view)
        file.write(start, view)
        self._journal.note(file.identity, block, xxhash.xxh3_128_hexdigest(view))
        return end - start, False

    def _fill_block(self, image: Image, start: int, view: memoryview) -> None:
        """Fills the bytes of an image from `start` on: literals as they are, payloads by the caller's `fill`."""
        end = start + len(view)
        first = bisect_right(image.literals, start, key=lambda literal: literal[0] + len(literal[1]))
        for offset, literal in image.literals[first:]:
            if offset >= end:
                break
            low, high = max(start, offset), min(end, offset + len(literal))
            view[low - start : high - start] = literal[low - offset : high - offset]
        first = bisect_right(image.payloads, start, key=lambda payload: payload.offset + payload.nbytes)
        for payload in image.payloads[first:]:
            if payload.offset >= end:
                break
            low, high = max(start, payload.offset), min(end, payload.offset + payload.nbytes)
            self._fill(payload.key, low - payload.offset, view[low - start : high - start])

    def _hash_ready(self) -> None:
        """Hashes every block that is next in order; one worker at a time, while the others go on converting."""
        state = self._state
        while True:
            with state.lock:
                if state.hashing or state.next_hashed not in state.ready:
                    return
                state.hashing = True
                buffer, nbytes, kept = state.ready.pop(state.next_hashed)
            file, block = self._tickets[state.next_hashed]
            with memoryview(buffer) as whole, whole[:nbytes] as view:
                file.hash(file.span(block)[0], view)
            done = file.finish(self._journal) if block == file.blocks - 1 else None
            if done is not None:
                file.close()
            with state.lock:
                if done is not None:
                    state.written.append(done)
                state.hashing = False
                state.next_hashed += 1
                self._buffers.append(buffer)
                state.lock.notify_all()
            self._progress(nbytes, kept)


def write_images(
    folder: Path,
    images: Sequence[Image],
    fill: Fill,
    journal: Journal,
    progress: Advance = unheard,
    jobs: int = 2,
    block_nbytes: int = BLOCK_NBYTES,
    stop: threading.Event | None = None,
) -> list[Written]:
    """Writes `images` below `folder` and returns their digests, in order.

    `fill(key, start, view)` puts the bytes of a tensor's payload from `start` on into `view`, on any of `jobs` threads.
    `progress` receives the finished bytes, in the order of the images, and whether an earlier run wrote them.
    `stop` is set when the work ends early, for a `fill` that waits for something. Raises what `fill` raises (of
    several errors, the first in file order), OutputError where a file cannot be written, Interrupted on Ctrl-C.
    """
    assert block_nbytes % _ALIGNMENT == 0
    files = [_File(folder, image, block_nbytes) for image in images]
    return _Writer(files, fill, journal, progress, jobs, stop or threading.Event()).run()
