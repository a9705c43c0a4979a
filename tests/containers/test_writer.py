"""The writer: every byte in its place, digests that are true, a journal that is never believed."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import xxhash

from wanconv.containers.writer import Image, Journal, Payload, write_images
from wanconv.errors import Interrupted, OutputError
from wanconv.storage.local import Written, publish, write_file
from wanconv.types.progress import ProgressStep, total

BLOCK = 1 << 14
SIZES = {"a": 3 * BLOCK + 4, "b": 0, "c": 8, "d": BLOCK, "e": 2 * BLOCK - 100}


def values(key: str) -> bytes:
    return hashlib.shake_256(key.encode()).digest(SIZES[key])


def image(path: str, keys: str, trailer: bytes = b"") -> Image:
    """A file of a header, the tensors `keys` with a literal before each, and a trailer."""
    literals, payloads, offset = [(0, b"header " + path.encode())], [], 7 + len(path)
    for key in keys:
        literals.append((offset, b"<" + key.encode() + b">"))
        payloads.append(Payload(f"{path}/{key}", offset + 3, SIZES[key]))
        offset += 3 + SIZES[key]
    literals.append((offset, trailer))
    return Image(path, offset + len(trailer), tuple(literals), tuple(payloads))


def expected(made: Image) -> bytes:
    content = bytearray(made.nbytes)
    for offset, literal in made.literals:
        content[offset : offset + len(literal)] = literal
    for payload in made.payloads:
        content[payload.offset : payload.offset + payload.nbytes] = values(payload.key[-1])
    return bytes(content)


IMAGES = [
    image("one.bin", "abc", b"end"),
    image("below/two.bin", "de"),
    image("empty.bin", ""),
    image("three.bin", "b"),
]


def fill(key: str, start: int, view: memoryview) -> None:
    view[:] = values(key[-1])[start : start + len(view)]


def write(folder: Path, images: Sequence[Image] = IMAGES, jobs: int = 2, block: int = BLOCK) -> list[Written]:
    folder.mkdir(exist_ok=True)
    with closing(Journal(folder / "journal")) as journal:
        return write_images(folder, images, fill, journal, jobs=jobs, block_nbytes=block)


def check(folder: Path, written: Sequence[Written]) -> None:
    assert [one.path for one in written] == [one.path for one in IMAGES]
    for made, one in zip(IMAGES, written, strict=True):
        assert (folder / made.path).read_bytes() == expected(made)
        assert one.nbytes == made.nbytes
        assert one.tensors == {p.key: xxhash.xxh3_128_hexdigest(values(p.key[-1])) for p in made.payloads}
    listed = "".join(f"{one.sha256}  {one.path}\n" for one in written)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet"], cwd=folder, input=listed, text=True, check=True)


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("block", [4096, BLOCK, 1 << 20])
def test_every_byte_is_in_its_place_and_every_digest_true(tmp_path: Path, jobs: int, block: int) -> None:
    check(tmp_path, write(tmp_path, jobs=jobs, block=block))


def test_a_file_system_without_direct_writes_gets_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def without_direct(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", without_direct)
    check(tmp_path, write(tmp_path))


def test_a_file_system_that_opens_for_direct_writes_and_refuses_them_gets_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite

    def refused(descriptor: int, view: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return written(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", refused)
    check(tmp_path, write(tmp_path))


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, view, offset: written(descriptor, view[:4096], offset))
    check(tmp_path, write(tmp_path))


def test_nothing_to_write_is_written_at_once(tmp_path: Path) -> None:
    assert write(tmp_path, []) == []


def test_progress_ends_at_the_sum_of_the_files(tmp_path: Path) -> None:
    steps: list[ProgressStep] = []
    whole = sum(one.nbytes for one in IMAGES)
    for kept in (0, whole):  # the second time the journal knows every block
        with closing(Journal(tmp_path / "journal")) as journal:
            write_images(tmp_path, IMAGES, fill, journal, total(steps.append, "converting", whole), 5, 4096)
        assert steps[-1] == ProgressStep("converting", whole, whole, "bytes", kept)


class Filled:
    """fill() that notes what it was asked for."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def __call__(self, key: str, start: int, view: memoryview) -> None:
        if len(view):
            self.keys.add(key)
        fill(key, start, view)


def resume(folder: Path, images: Sequence[Image] = IMAGES) -> set[str]:
    """Writes again over what stands in `folder`; returns the tensors that were made anew."""
    filled = Filled()
    with closing(Journal(folder / "journal")) as journal:
        written = write_images(folder, images, filled, journal, block_nbytes=BLOCK)
    if images is IMAGES:
        check(folder, written)
    return filled.keys


def test_what_the_journal_knows_is_read_back_and_not_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    assert resume(tmp_path) == set()


def test_bytes_that_changed_behind_the_journals_back_are_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / "below/two.bin").open("r+b") as stream:
        stream.seek(BLOCK + 2000)
        stream.write(b"lie")
    assert resume(tmp_path) == {"below/two.bin/d", "below/two.bin/e"}  # the block holds the end of d


def test_a_file_that_was_cut_or_deleted_is_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    os.truncate(tmp_path / "below/two.bin", 100)
    (tmp_path / "one.bin").unlink()
    assert resume(tmp_path) == {key.key for one in IMAGES[:2] for key in one.payloads if key.nbytes}


def test_a_file_that_grew_is_cut(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / "one.bin").open("ab") as stream:
        stream.write(b"more")
    assert resume(tmp_path) == set()


@pytest.mark.parametrize(
    "line",
    [b'\n["0123', b"\n\xff\xfe", b"\n5", b"\n[]", b'\n{"a": 1, "b": 2, "c": 3}', b'\n[[], 0, "x"]', b"\n\0\0\0\0"],
)
def test_a_torn_or_strange_journal_line_costs_nothing_else(tmp_path: Path, line: bytes) -> None:
    write(tmp_path)
    with (tmp_path / "journal").open("ab") as stream:
        stream.write(line)
    assert resume(tmp_path) == set()
    journal = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(line + journal)
    assert resume(tmp_path) == set()


def test_blocks_of_another_header_are_not_reused(tmp_path: Path) -> None:
    write(tmp_path, [image("one.bin", "abc", b"end")])
    other = [image("one.bin", "acb", b"end")]
    assert resume(tmp_path, other) == {"one.bin/a", "one.bin/c"}
    assert (tmp_path / "one.bin").read_bytes() == expected(other[0])


def test_a_failed_sync_voids_what_the_journal_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache may hold bytes that never reached the disk, and reading back would find them right."""

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OutputError, match=r"cannot write .*one\.bin: Input/output error"):
            write(tmp_path, jobs=1)
    assert "one.bin/a" in resume(tmp_path)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_of_several_errors_the_first_in_file_order_is_raised(tmp_path: Path, jobs: int) -> None:
    def failing(key: str, start: int, view: memoryview) -> None:
        if key.endswith("a"):
            time.sleep(0.05)  # the later ones come first
        raise ValueError(key)

    with closing(Journal(tmp_path / "journal")) as journal, pytest.raises(ValueError, match=r"^one\.bin/a$"):
        write_images(tmp_path, IMAGES, failing, journal, jobs=jobs, block_nbytes=4096)


def test_a_target_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "below").write_text("a file where a folder must be")
    with pytest.raises(OutputError, match=r"cannot write .*below/two\.bin: File exists"):
        write(tmp_path)
    with pytest.raises(OutputError, match=r"cannot write .*README\.md: File exists"):
        write_file(tmp_path / "below" / "README.md", b"")
    with pytest.raises(OutputError, match=r"cannot write .*elsewhere/out"):
        publish(tmp_path, tmp_path / "elsewhere" / "out")


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "one.bin").symlink_to("precious")
    with pytest.raises(OutputError, match=r"one\.bin"):
        write(tmp_path)
    with pytest.raises(OutputError, match=r"one\.bin"):
        write_file(tmp_path / "one.bin", b"content")
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["journal", "missing/journal"])
def test_a_journal_that_cannot_be_opened_is_an_output_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "journal").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*journal"):
        Journal(tmp_path / name)


def test_ctrl_c_stops_and_keeps_what_is_written(tmp_path: Path) -> None:
    started = threading.Event()

    def slow(key: str, start: int, view: memoryview) -> None:
        started.set()
        time.sleep(0.02)
        fill(key, start, view)

    def interrupt() -> None:
        started.wait()
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with closing(Journal(tmp_path / "journal")) as journal, pytest.raises(Interrupted, match="what is written stays"):
        write_images(tmp_path, IMAGES, slow, journal, block_nbytes=4096)
    assert (tmp_path / "journal").stat().st_size
    with closing(Journal(tmp_path / "journal")) as journal:
        check(tmp_path, write_images(tmp_path, IMAGES, fill, journal, block_nbytes=4096))


def test_after_ctrl_c_no_thread_is_left_that_writes(tmp_path: Path) -> None:
    """CPython's Thread.join, interrupted, forgets the thread: it went on in torch, and the process ended by SIGABRT."""
    filling = [0]
    started = threading.Event()

    def slow(key: str, start: int, view: memoryview) -> None:
        filling.append(1)
        started.set()
        time.sleep(0.5)
        filling.pop()

    def interrupt() -> None:
        started.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with closing(Journal(tmp_path / "journal")) as journal, pytest.raises(Interrupted):
        write_images(tmp_path, IMAGES, slow, journal, block_nbytes=4096)
    assert filling == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_memory_stays_at_a_few_blocks() -> None:
    program = """
import resource, sys, tempfile
from pathlib import Path
from wanconv.containers.writer import Image, Journal, Payload, write_images
image = Image("big", 1 << 28, (), (Payload("key", 0, 1 << 28),))
with tempfile.TemporaryDirectory() as folder:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_images(Path(folder), [image], lambda key, start, view: None, Journal(Path(folder, "journal")))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10  # kB: four blocks of 8 MB, and room


def test_an_image_is_known_by_its_literals_without_being_written_out() -> None:
    literal = bytes(8 << 20)
    image, same, other = (
        Image("file", len(literal), ((0, one),), ()) for one in (literal, literal, literal[1:] + b"1")
    )
    tracemalloc.start()
    try:
        identity = image.identity
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(literal)
    assert identity == same.identity != other.identity
