"""Source files that are downloaded during the conversion: in the order they are needed, and deleted after use.

One thread fetches, and converting threads wait for their file. While one file is used, the next one is downloaded.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wanconv.conversion.schedule import Need, blocking
from wanconv.errors import Interrupted
from wanconv.storage.reading import open_regular

_WAKE_S = 0.2  # how long a wait continues after `stop` was set
_STALL_S = 2.0  # after this long without progress, a file is fetched out of turn: an earlier run's block was invalid
_FAREWELL_S = 2.0  # how long an idle connection may delay the end

Fetch = Callable[[Path, threading.Event], Path]


class Arrivals:
    """`Files` for a writer that goes through the positions of `needed`. `fetch` puts a file on disk, checked, and
    returns its path; `release` is called with each file that is not needed any more."""

    def __init__(self, needed: Sequence[Need], fetch: Fetch, release: Callable[[Path], None]) -> None:
        self.stop = threading.Event()
        self._needed, self._fetch, self._release = list(needed), fetch, release
        self._numbers = {need.file: number for number, need in enumerate(needed)}
        self._changed = threading.Condition()
        self._open: dict[Path, int] = {}
        self._begun = self._asked = 0  # counts in `needed`: fetched or being fetched, and requested
        self._urgent: list[Path] = []  # requested out of turn
        self._coming: Path | None = None
        self._written, self._moves = 0, 0
        self._over: set[Path] = set()
        self._gone: set[Path] = set()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def descriptor(self, file: Path) -> int:
        with self._changed:
            if self._asked <= (number := self._numbers.get(file, -1)):
                self._asked = number + 1
                self._changed.notify_all()
            moves, since = self._moves, time.monotonic()
            while file not in self._open:
                if self._error is not None:
                    raise self._error
                if self.stop.is_set():
                    raise Interrupted("stopped")
                if moves != self._moves or self._coming is not None:
                    moves, since = self._moves, time.monotonic()
                out_of_turn = number < 0 or file in self._over or time.monotonic() - since > _STALL_S
                if out_of_turn and file not in (self._coming, *self._urgent):
                    self._urgent.append(file)
                    self._changed.notify_all()
                self._changed.wait(_WAKE_S)
            return self._open[file]

    def written(self, nbytes: int) -> None:
        with self._changed:
            self._written, self._moves = self._written + nbytes, self._moves + 1
            over = [need.file for need in self._needed if need.end <= self._written and need.file not in self._over]
            self._over.update(over)
            descriptors = [self._open.pop(file) for file in over if file in self._open]
        for descriptor in descriptors:
            os.close(descriptor)
        for file in over:
            self._release(file)
        with self._changed:
            self._gone.update(over)
            self._changed.notify_all()

    def close(self) -> None:
        self.stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_FAREWELL_S)
        with self._changed:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def _work(self) -> None:
        try:
            while (file := self._next()) is not None:
                descriptor = open_regular(self._fetch(file, self.stop))
                with self._changed:
                    self._open[file], self._coming, self._moves = descriptor, None, self._moves + 1
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  # handed to the threads that wait, which raise it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> Path | None:
        """Waits until a file may be fetched, and returns it; None at the end."""
        with self._changed:
            while not self.stop.is_set():
                while self._begun < len(self._needed) and self._needed[self._begun].file in {*self._over, *self._open}:
                    self._begun += 1
                if self._urgent:
                    self._coming = self._urgent.pop(0)
                elif self._begun < len(self._needed) and self._begun <= self._asked and not self._is_blocked():
                    self._begun += 1
                    self._coming = self._needed[self._begun - 1].file
                if self._coming is not None:
                    return self._coming
                self._changed.wait(_WAKE_S)
            return None

    def _is_blocked(self) -> bool:
        return any(need.file not in self._gone for need in blocking(self._needed, self._begun))
