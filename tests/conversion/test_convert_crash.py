"""Killed, and every system call failing once: nothing is published before it is whole, nothing is lost, all goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
from battery import PARTS, Scale, calls
from convert_server import CALLS, Server
from covering import covering
from hub.server import files_below, running

from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import OutputError
from wanconv.samples import synthetic
from wanconv.types.progress import ProgressStep

_LINE_NBYTES = len(json.dumps(["0" * 32, 100, "0" * 32])) + 1
OPTIONS: dict[str, Any] = {"recipe": "fp16", "jobs": 2, "block_nbytes": 1 << 18}
BLOCK, JOBS = 1 << 18, 2
ADDRESS = "hf://owner/name"
ERRORS, KILL = ("EIO", "ENOSPC"), ("SIGKILL",)
LARGE: dict[str, Any] = {"recipe": "bf16", "jobs": JOBS, "block_nbytes": BLOCK}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


@dataclass(frozen=True)
class Case:
    """A source, the digests of its files, what an undisturbed run makes of it, and in how many blocks."""

    source: Path
    before: dict[str, str]
    whole: dict[str, str]
    blocks: int = 0


@pytest.fixture(scope="module")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Six blocks and a sidecar."""
    folder = tmp_path_factory.mktemp("small")
    source = tiny.make(folder / "source", "wan2.1-t2v-1.3b", "dit")
    (source / "google").mkdir()
    (source / "google" / "tokenizer.json").write_text("{}")
    assert server.convert(source, folder / "out", OPTIONS).code == 0
    return Case(source, tiny.digests(source), tiny.contents(folder / "out"))


def check_unharmed(case: Case, out: Path) -> None:
    """Right after a run broke off: no OUT or a whole one, and the source as it was."""
    assert not out.exists() or tiny.contents(out) == case.whole
    assert tiny.digests(case.source) == case.before


def check_whole(case: Case, out: Path) -> None:
    assert tiny.contents(out) == case.whole
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def failures(whats: Sequence[str], every: bool, numbers: Iterator[int]) -> Iterator[tuple[int, str]]:
    """Yields a call and how it fails, and the next …: in every way, or in one after the other."""
    for turn, number in enumerate(numbers):
        for what in whats if every else [whats[turn % len(whats)]]:
            yield number, what


@covering(("whats", "call"), [KILL, ERRORS], CALLS)
def test_any_call_may_fail_once_and_the_same_command_goes_on(
    server: Server,
    small: Case,
    in_memory: Path,
    call: str,
    whats: Sequence[str],
    scale: Scale,
    record_property: Callable[[str, object], None],
) -> None:
    cases = 0
    for number, what in failures(whats, scale.every_error, calls(scale)):
        out = in_memory / f"{number}-{what}" / "out"
        out.parent.mkdir()
        end = server.convert(small.source, out, OPTIONS, [call, number, what])
        if not end.fired:
            break
        if what == "SIGKILL":
            assert end.code == -signal.SIGKILL
        elif end.code != 0:  # 0: O_DIRECT is not needed
            assert (end.code, end.message[:13]) == (7, "cannot write ") or "cannot be read back" in end.message
        check_unharmed(small, out)
        assert server.convert(small.source, out, OPTIONS).code == 0, (number, end)
        check_whole(small, out)
        shutil.rmtree(out.parent)
        cases += 1
    assert cases
    assert end.code == 0
    check_whole(small, out)
    record_property("cases", cases)


@pytest.fixture(scope="module")
def remote(small: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """Returns a server that is led to a hub, and what an undisturbed run makes of the repository there."""
    with running(files_below(small.source)) as hub, Server(hub.environment()) as server:
        out = tmp_path_factory.mktemp("remote") / "out"
        assert server.convert(ADDRESS, out, OPTIONS).code == 0
        yield server, tiny.contents(out)


@pytest.mark.exhaustive
@covering(("whats", "call"), [KILL, ERRORS], [*CALLS, "write"], strength=1)
def test_any_call_may_fail_once_while_it_downloads_and_converts(
    remote: tuple[Server, dict[str, str]],
    in_memory: Path,
    call: str,
    whats: Sequence[str],
    scale: Scale,
    record_property: Callable[[str, object], None],
) -> None:
    server, whole = remote
    cases = 0
    for number, what in failures(whats, scale.every_error, calls(scale)):
        out = in_memory / f"{number}-{what}" / "out"
        out.parent.mkdir()
        end = server.convert(ADDRESS, out, OPTIONS, [call, number, what])
        if not end.fired:
            break
        if what == "SIGKILL":
            assert end.code == -signal.SIGKILL
        elif end.code != 0:  # 0: O_DIRECT is not needed
            said = ("cannot write ", "cannot be read back") if end.code == 7 else ("cannot be read: ",)
            assert end.code in (3, 7)  # 3: what came from the hub
            assert any(one in end.message for one in said), end
        assert not out.exists() or tiny.contents(out) == whole
        assert server.convert(ADDRESS, out, OPTIONS).code == 0, (number, end)
        assert tiny.contents(out) == whole
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        shutil.rmtree(out.parent)
        cases += 1
    assert cases
    assert (end.code, tiny.contents(out)) == (0, whole)
    record_property("cases", cases)


@pytest.mark.exhaustive
@covering(("whats", "call"), [KILL, ERRORS], ["rename", "fsync", "unlink", "rmdir"], strength=1)
def test_any_call_may_fail_while_a_finished_out_is_replaced(
    server: Server,
    small: Case,
    in_memory: Path,
    call: str,
    whats: Sequence[str],
    scale: Scale,
    record_property: Callable[[str, object], None],
) -> None:
    """What stood there is OUT or beside it until the new one is whole."""
    old = in_memory / "old"
    assert server.convert(small.source, old, {**OPTIONS, "recipe": "bf16"}).code == 0
    kept = tiny.contents(old)
    cases = 0
    for number, what in failures(whats, scale.every_error, calls(scale)):
        out = in_memory / f"{number}-{what}" / "out"
        out.parent.mkdir()
        shutil.copytree(old, out)
        end = server.convert(small.source, out, {**OPTIONS, "force": True}, [call, number, what])
        if not end.fired:
            break
        aside = out.parent / "out.replaced-1"
        if out.exists():
            assert tiny.contents(out) in (kept, small.whole)
        else:
            assert tiny.contents(aside) == kept
        assert tiny.digests(small.source) == small.before
        assert server.convert(small.source, out, {**OPTIONS, "force": True}).code == 0, (number, end)
        assert tiny.contents(out) == small.whole
        shutil.rmtree(out.parent)
        cases += 1
    assert cases
    record_property("cases", cases)


@pytest.mark.exhaustive
@pytest.mark.tools
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: calls made in C (the journal's) are unproven")
@pytest.mark.parametrize("call", ["openat", "mkdir", "write", "pwrite64", "fsync", "ftruncate", "rename"])
def test_any_system_call_on_the_target_may_fail_once(
    server: Server,
    small: Case,
    in_memory: Path,
    call: str,
    scale: Scale,
    record_property: Callable[[str, object], None],
) -> None:
    cases = 0
    for number, what in failures(["EIO", "ENOSPC", "SIGKILL"], scale.every_system_error, count(1)):
        out, log = in_memory / f"{number}-{what}" / "out", in_memory / "strace.log"
        out.parent.mkdir()
        partial = out.with_name("out.partial")
        names = ["wanconv.json", "README.md", "config.json", "google/tokenizer.json", ".wanconv/journal"]
        names += [
            "diffusion_pytorch_model.safetensors",
            "google",
            ".wanconv",
            ".wanconv/state.tmp",
            ".wanconv/state.json",
        ]
        paths = [out.parent, out, partial, *(partial / name for name in names)]
        strace = [
            "strace",
            "-f",
            *(() if what == "SIGKILL" else ("--seccomp-bpf",)),  # with it, strace 6.1 sends no signal
            "-o",
            str(log),
            *(part for path in paths for part in ("-P", str(path))),
        ]
        fault = "signal" if what == "SIGKILL" else "error"
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}={what}:when={number}"]
        command = [sys.executable, "-m", "wanconv", "convert", str(small.source), "-r", "fp16", "-o", str(out)]
        done = subprocess.run([*strace, *inject, *command], capture_output=True, text=True, check=False)
        killed = done.returncode == -signal.SIGKILL
        if not killed and "INJECTED" not in log.read_text():
            break
        assert killed == (what == "SIGKILL")
        assert killed or done.returncode in (0, 7), (number, done.stderr)
        assert "Traceback" not in done.stderr
        if done.returncode == 7:
            assert "error[output]: " in done.stderr, (number, done.stderr)
        elif not killed:
            check_whole(small, out)
        check_unharmed(small, out)
        assert server.convert(small.source, out, {"recipe": "fp16"}).code == 0, (number, done.stderr)
        check_whole(small, out)
        shutil.rmtree(out.parent)
        cases += 1
    assert cases
    assert done.returncode == 0
    check_whole(small, out)
    record_property("cases", cases)


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs: a disk that is really full is unproven")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_without_room_is_refused_before_the_first_byte(server: Server, small: Case, little_disk: Path) -> None:
    (little_disk / "filler").write_bytes(bytes(3 << 20))
    end = server.convert(small.source, little_disk / "out", OPTIONS)
    assert end.code == 7
    assert " free, and " in end.message
    assert not (little_disk / "out").exists()
    (little_disk / "filler").unlink()
    assert server.convert(small.source, little_disk / "out", OPTIONS).code == 0
    check_whole(small, little_disk / "out")


@pytest.mark.parametrize("spare", [0, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 3 << 18])
def test_a_disk_that_fills_up_during_the_run_ends_it_and_the_same_command_goes_on(
    server: Server, small: Case, little_disk: Path, spare: int
) -> None:
    def fill_up(step: ProgressStep) -> None:
        if step.done and not (little_disk / "filler").exists():
            with (little_disk / "filler").open("wb", buffering=0) as filler:
                with suppress(OSError):
                    while filler.write(bytes(4096)):
                        pass
                filler.truncate(filler.tell() - spare)

    out = little_disk / "out"
    options = ConvertOptions("fp16", out=out, jobs=1, block_nbytes=OPTIONS["block_nbytes"])
    with pytest.raises(OutputError, match="No space left on device") as caught:
        convert(small.source, options, fill_up)
    assert caught.value.exit_code == 7
    check_unharmed(small, out)
    (little_disk / "filler").unlink()
    assert server.convert(small.source, out, OPTIONS).code == 0
    check_whole(small, out)


def wait_for(partial: Path, nbytes: int) -> None:
    """Returns when the journal has grown to `nbytes`, or its run has ended."""
    journal, deadline = partial / ".wanconv" / "journal", time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            if journal.stat().st_size >= nbytes:
                return
        except FileNotFoundError:
            if partial.with_name("out").exists():
                return
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def large(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two hundred blocks."""
    folder = tmp_path_factory.mktemp("large")
    source = synthetic.make(folder / "source", synthetic.SampleOptions("wan2.1-t2v-1.3b", scale="full", blocks=1))
    assert server.convert(source, folder / "out", LARGE).code == 0
    blocks = sum(-(-path.stat().st_size // BLOCK) for path in tiny.weight_files(folder / "out"))
    return Case(source, tiny.digests(source), tiny.contents(folder / "out"), blocks)


def lost_nbytes(partial: Path) -> int:
    """Returns how much was written that the journal does not know: what the next run writes again."""
    written = sum(path.stat().st_blocks * 512 for path in tiny.weight_files(partial))
    return written - (partial / ".wanconv" / "journal").read_bytes().count(b"\n") * BLOCK


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_runs_killed_at_random_moments_go_on_to_the_same_bytes(
    part: int,
    scale: Scale,
    server: Server,
    large: Case,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """A moment is a number of blocks written, and some time more: on a busy machine a clock would miss most runs.

    No more is lost than each worker had in hand.
    """
    choose = random.Random(part)
    kills = len(range(part, scale.kills, PARTS))
    effective = 0
    for number in range(5 * kills):
        if effective == kills:
            break
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        partial = out.with_name("out.partial")
        process = os.pidfd_open(server.start(large.source, out, LARGE))
        wait_for(partial, int(choose.uniform(0, large.blocks) * _LINE_NBYTES))
        time.sleep(choose.uniform(0, 0.002))
        with suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)
        if server.end().code == -signal.SIGKILL and (partial / ".wanconv" / "journal").exists():
            effective += 1
            assert lost_nbytes(partial) <= JOBS * BLOCK + (1 << 16)
        check_unharmed(large, out)
        assert server.convert(large.source, out, LARGE).code == 0
        check_whole(large, out)
        shutil.rmtree(out.parent)
    assert effective == kills, "most runs ended before their kill"
    record_property("cases", effective)


def test_what_a_kill_costs_is_at_most_256_mb() -> None:
    assert ConvertOptions("bf16").jobs * ConvertOptions("bf16").block_nbytes <= 256 << 20
