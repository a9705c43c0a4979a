"""Files that come while they are used: in turn, one ahead, gone when nobody needs them, and no wait without an end."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import wait_for

from wanconv.conversion.prefetch import Arrivals
from wanconv.conversion.schedule import Need, peak_nbytes
from wanconv.errors import InputError, Interrupted

A, B, C, D = (Path(name) for name in "abcd")
IN_TURN = [Need(A, 0, 10), Need(B, 10, 20), Need(C, 20, 30), Need(D, 30, 40)]


class Home:
    """A folder that files come to, and what became of them, in order."""

    def __init__(self, folder: Path, missing: Path | None = None) -> None:
        self.folder, self.missing, self.log = folder, missing, list[str]()

    def fetch(self, file: Path, stop: threading.Event) -> Path:
        if file == self.missing:
            raise InputError("gone")
        self.log.append(f"+{file}")
        (self.folder / file).write_bytes(str(file).encode())
        return self.folder / file

    def release(self, file: Path) -> None:
        self.log.append(f"-{file}")
        (self.folder / file).unlink()


@contextmanager
def arriving(home: Home, needed: list[Need]) -> Iterator[Arrivals]:
    arrivals = Arrivals(needed, home.fetch, home.release)
    try:
        yield arrivals
    finally:
        arrivals.close()


def read(arrivals: Arrivals, file: Path) -> str:
    return os.pread(arrivals.descriptor(file), 10, 0).decode()


def test_the_next_file_comes_while_one_is_used_and_goes_when_it_was(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with arriving(home, IN_TURN) as arrivals:
        assert read(arrivals, A) == "a"
        wait_for(lambda: home.log == ["+a", "+b"])
        assert read(arrivals, B) == "b"
        arrivals.written(9)
        time.sleep(0.05)
        assert home.log == ["+a", "+b"]  # c waits until a is gone
        arrivals.written(1)
        wait_for(lambda: home.log == ["+a", "+b", "-a", "+c"])
        wait_for(lambda: (tmp_path / "c").exists())
        arrivals.written(20)
        assert home.log[4:] == ["-b", "-c"]  # nobody has asked for c, so that d has not begun
    assert peak_nbytes(IN_TURN, lambda file: {A: 5, B: 7, C: 11, D: 1}[file]) == 18


def test_files_that_are_needed_together_come_together(tmp_path: Path) -> None:
    needed = [Need(A, 0, 20), Need(B, 0, 30), Need(C, 10, 20), Need(D, 30, 40)]
    home = Home(tmp_path)
    with arriving(home, needed) as arrivals:
        assert [read(arrivals, file) for file in (C, A, B)] == ["c", "a", "b"]
        assert home.log == ["+a", "+b", "+c"]
        arrivals.written(20)
        arrivals.written(10)
        wait_for(lambda: home.log[3:] == ["-a", "-c", "-b", "+d"])
    assert peak_nbytes(needed, lambda file: 1) == 3


def test_a_file_that_is_gone_comes_again_for_who_asks(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with arriving(home, IN_TURN) as arrivals:
        read(arrivals, A)
        arrivals.written(10)
        assert read(arrivals, A) == "a"
        assert home.log.count("+a") == 2


def test_a_file_comes_out_of_turn_when_nothing_else_moves(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with arriving(home, IN_TURN) as arrivals:
        assert read(arrivals, C) == "c"  # although a and b are still to be used
        assert home.log == ["+a", "+b", "+c"]
        for nbytes in (10, 10, 10):
            arrivals.written(nbytes)
        wait_for(lambda: home.log[3:] == ["-a", "-b", "-c", "+d"] or home.log[3:] == ["-a", "-b", "+d", "-c"])


def test_what_stops_a_download_is_told_to_those_who_wait(tmp_path: Path) -> None:
    with arriving(Home(tmp_path, missing=B), IN_TURN) as arrivals:
        assert read(arrivals, A) == "a"
        with pytest.raises(InputError, match="gone"):
            arrivals.descriptor(B)


def test_nobody_waits_when_all_has_stopped(tmp_path: Path) -> None:
    class Slow(Home):
        def fetch(self, file: Path, stop: threading.Event) -> Path:
            assert stop.wait(30)
            raise Interrupted("stopped")

    with arriving(Slow(tmp_path), IN_TURN) as arrivals:
        threading.Timer(0.05, arrivals.stop.set).start()
        with pytest.raises(Interrupted):
            arrivals.descriptor(A)
