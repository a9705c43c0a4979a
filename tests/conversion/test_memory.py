"""Checkpoints of 14B width under a memory limit that is set from outside: planned whole, and converted."""

import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sparse
from battery import Scale
from command import COMMAND

from wanconv.cli.memory import shortage
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers.writer import Image, Journal, Payload, write_images
from wanconv.errors import InputError

A14B = "wan2.2-t2v-a14b"
LIMIT_KIB = 3 << 19  # 1.5 GiB of data: heap, stacks and every private mapping that may be written to


def limited(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    words = ["bash", "-c", f'ulimit -d {LIMIT_KIB} && exec "$@"', "-", *command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=3600, check=False)


def test_the_limit_holds(tmp_path: Path) -> None:
    done = limited(sys.executable, "-c", f"bytearray({LIMIT_KIB << 10})", cwd=tmp_path)
    assert (done.returncode, "MemoryError" in done.stderr) == (1, True)


def test_a_14b_checkpoint_is_planned_within_the_limit(tmp_path: Path) -> None:
    source = sparse.make(tmp_path / "source", A14B, components=["expert.high"])
    assert sum(path.stat().st_size for path in source.rglob("*.safetensors")) > 57e9
    done = limited(*COMMAND, "convert", "source", "-r", "fp8-plain", "--dry-run", cwd=tmp_path)
    assert done.returncode in (0, 7), done.stderr  # 7: this disk has no room for the output, as the plan says


@pytest.mark.exhaustive
def test_blocks_of_14b_width_are_converted_within_the_limit(
    scale: Scale, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """As many as the scale asks for and a quarter of the free disk takes; of holes, which read as zeros."""
    block_nbytes = 360_000_000  # in fp8
    blocks = min(scale.blocks, shutil.disk_usage(tmp_path).free // 4 // block_nbytes)
    source = sparse.make(tmp_path / "source", A14B, components=["expert.high"], blocks=blocks)
    done = limited(*COMMAND, "convert", str(source), "-r", "fp8-plain", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "out", VerifyOptions()).exit_code == 0
    shutil.rmtree(tmp_path / "out")
    record_property("cases", blocks)


# fmt: off
SHORT = [  # as Python, the system, numpy and torch tell that memory is short, and how much was asked for
    (MemoryError(), ""),
    (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"), "8 GB"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    (RuntimeError("can't start new thread"), ""),
    (RuntimeError("std::bad_alloc"), ""),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                  "to allocate 1048576 bytes. Error code 12 (Cannot allocate memory)"), "1.05 MB"),
    (RuntimeError("unable to mmap 237382 bytes from file <a.pth>: Cannot allocate memory (12)"), "237 kB"),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139 GiB"), "21 MB"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), ""),
    (OSError("libgomp.so.1: failed to map segment from shared object"), ""),  # as ctypes says it
]
OTHER = [
    RuntimeError("shapes differ"), ValueError("out of memory"), OSError(errno.EIO, "Input/output error"),
    ImportError("No module named 'torch'"),
]
# fmt: on


@pytest.mark.parametrize(("error", "asked"), SHORT, ids=[f"{number}" for number in range(len(SHORT))])
def test_every_way_to_be_out_of_memory_is_one_sentence(error: Exception, asked: str) -> None:
    """Also where another error was made of it: a file whose reading fails so is not damaged."""
    told = shortage(error)
    assert told is not None
    assert told.message == (f"out of memory: {asked} more cannot be had" if asked else "out of memory")
    try:
        try:
            raise error
        except type(error) as caught:
            raise InputError("model.pth is refused by torch", "re-save it") from caught
    except InputError as refused:
        found = shortage(refused)
    assert found is not None
    assert (found.exit_code, found.message) == (7, told.message)


@pytest.mark.parametrize("error", OTHER, ids=[type(error).__name__ for error in OTHER])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert shortage(error) is None


def test_under_any_limit_a_command_is_done_or_says_that_memory_is_short(
    scale: Scale, tiny: Callable[..., Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Of address space, which stacks, libraries and mapped files take, too: from what Python starts with."""
    source, codes = tiny("wan2.1-t2v-1.3b"), []
    commands = {"inspect": [], "verify": [], "convert": ["-r", "bf16", "-o", str(tmp_path / "out")]}
    for number in range(scale.limits):
        name = ("convert", "inspect", "convert", "verify")[number % 4]
        largest = 1_000_000 if name == "convert" else 60_000
        kib = 20_000 + (largest - 20_000) * (number + 1) // (scale.limits + 1)
        words = ["bash", "-c", f'ulimit -v {kib} && exec "$@"', "-", *COMMAND, name, str(source), *commands[name]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode in (0, 7), (kib, name, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert done.stderr.startswith("error[output]: out of memory"), done.stderr
            assert len(done.stderr.splitlines()) <= 2
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
        codes.append(done.returncode)
    assert 7 in codes
    record_property("cases", scale.limits)


def test_a_thread_that_cannot_be_had_ends_those_that_could(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, start, before = [0], threading.Thread.start, threading.active_count()

    def few(thread: threading.Thread) -> None:
        started[0] += 1
        if started[0] > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    image = Image("model.safetensors", 1 << 20, (), (Payload("weight", 0, 1 << 20),))
    with pytest.raises(RuntimeError, match="can't start new thread"), closing(Journal(tmp_path / "journal")) as journal:
        write_images(tmp_path, [image], lambda key, at, view: None, journal, jobs=4, block_nbytes=1 << 16)
    assert (started[0], threading.active_count()) == (3, before)
