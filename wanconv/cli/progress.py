"""A command's progress on stderr: bars on a terminal, elsewhere a line from time to time, or JSON for a program."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from wanconv.cli.console import SETTINGS
from wanconv.cli.streams import own_errors
from wanconv.cli.text import json_text, safe
from wanconv.types.figures import count, size
from wanconv.types.progress import Progress, ProgressStep, silent

SCHEMA = "wanconv.progress/1"

Mode = Literal["bars", "plain", "json", "none"]
Clock = Callable[[], float]

_FIRST_S = 2.0  # a task that ends earlier has no line
_EVERY_S = 10.0
_JSON_EVERY_S = 1.0
_TICK_S = 0.5
_WINDOW_S = 60.0  # window for a rate of bytes; for fewer and longer units, the whole task
_SAMPLE_S = 1.0
_BESIDE = 3  # columns of a bar's line without words: two gaps, and the rest of the bar


@dataclass
class Running:
    """A running task: its position, and its speed since its first new work."""

    step: ProgressStep
    begun_s: float
    said_s: float | None = None
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def hear(self, step: ProgressStep, now_s: float) -> None:
        self.step = step
        new = step.done - step.kept
        if new <= 0:
            self.samples = deque([(now_s, 0)])
        elif now_s - self.samples[-1][0] >= _SAMPLE_S:
            self.samples.append((now_s, new))
            while step.unit == "bytes" and len(self.samples) > 1 and self.samples[1][0] <= now_s - _WINDOW_S:
                self.samples.popleft()

    def rate(self, now_s: float) -> float | None:
        """Returns units a second of this run's own work; None before there is any."""
        since_s, before = self.samples[0]
        new, elapsed_s = self.step.done - self.step.kept - before, now_s - since_s
        return new / elapsed_s if new > 0 and elapsed_s > 0 else None

    def left_s(self, now_s: float) -> float | None:
        rate = self.rate(now_s)
        return None if rate is None else max(self.step.total - self.step.done, 0) / rate

    def amounts(self, now_s: float, room: int | None = None) -> str:
        """Returns the progress in words: 1.2 of 5.7 GB (21 %), 310 MB/s, 0:15 left. If they take more than
        `room`, the rate is left out, then the amounts, and at last the time."""
        step, rate, left_s = self.step, self.rate(now_s), self.left_s(now_s)
        share = f"{100 * step.done // step.total} %"
        kept = [f"{_amount(step.kept, step.unit)} from before"] if step.kept > 0 else []
        fast = [] if rate is None else [_rate(rate, step.unit)]
        so_far = f"{_duration(now_s - self.begun_s)} so far"
        time = so_far if left_s is None else f"{_duration(left_s)} left"
        whole = f"{_of(step)} ({share})"
        ways = ([whole, *kept, *fast, time], [whole, *kept, time], [whole, time], [share, time], [share])
        told = [", ".join(parts) for parts in ways]
        return next((text for text in told if room is None or len(text) <= room), share)

    def last_words(self, now_s: float) -> str:
        step, elapsed_s = self.step, now_s - self.begun_s
        kept = f", {_amount(step.kept, step.unit)} from before" if step.kept > 0 else ""
        whole = (step.done - step.kept) / elapsed_s if elapsed_s > 0 else 0
        rate = f", {_rate(whole, step.unit)}" if whole > 0 else ""
        return f"done, {_amount(step.done, step.unit)} in {_duration(elapsed_s)}{kept}{rate}"


def begin(step: ProgressStep, now_s: float) -> Running:
    return Running(step, now_s, samples=deque([(now_s, max(step.done - step.kept, 0))]))


def _amount(number: int, unit: str) -> str:
    return size(number) if unit == "bytes" else count(number, unit.removesuffix("s"))


def _of(step: ProgressStep) -> str:
    if step.unit != "bytes":
        return f"{step.done} of {_amount(step.total, step.unit)}"
    done, total = size(max(step.done, 0)), size(step.total)
    same = done.partition(" ")[2] == total.partition(" ")[2]
    return f"{done.partition(' ')[0] if same else done} of {total}"


def _rate(rate: float, unit: str) -> str:
    if unit == "bytes":
        return f"{size(int(rate))}/s"
    return f"{rate:.3g} {unit}/s" if rate >= 1 else f"{1 / rate:.3g} s each"


def _duration(seconds: float) -> str:
    """Returns hours, minutes and seconds: 0:07, 12:30, 3:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines:
    """Writes a line for a task that lasts, when it has lasted `first_s`, then every `every_s`, and when it is done.

    `line` makes it from the task, its state and the time; None for no line. Threads report steps, and `tick` is called
    from time to time, since a step may take minutes.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        line: Callable[[Running, str, float], str],
        first_s: float = _FIRST_S,
        every_s: float = _EVERY_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._write, self._line, self._clock = write, line, clock
        self._first_s, self._every_s = first_s, every_s
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}

    def __call__(self, step: ProgressStep) -> None:
        with self._lock:
            now_s = self._clock()
            one = self._running.get(step.what)
            if one is None or step.done == 0:
                one = self._running[step.what] = begin(step, now_s)
            one.hear(step, now_s)
            if step.done >= step.total:
                del self._running[step.what]
                if one.said_s is not None or self._first_s <= 0:
                    self._write(self._line(one, "done", now_s))
            else:
                self._say_if_due(one, now_s)

    def tick(self) -> None:
        """Writes the lines that are due."""
        with self._lock:
            for one in self._running.values():
                self._say_if_due(one, self._clock())

    def close(self) -> None:
        """Writes, for a program, that the running tasks have stopped."""
        with self._lock:
            for one in self._running.values():
                if self._first_s <= 0:
                    self._write(self._line(one, "stopped", self._clock()))
            self._running.clear()

    def _say_if_due(self, one: Running, now_s: float) -> None:
        due_s = one.begun_s + self._first_s if one.said_s is None else one.said_s + self._every_s
        if now_s >= due_s:
            self._write(self._line(one, "running", now_s))
            one.said_s = now_s


def plain_line(one: Running, state: str, now_s: float) -> str:
    told = one.last_words(now_s) if state == "done" else one.amounts(now_s)
    return f"{safe(one.step.what)}: {told}\n"


def json_line(one: Running, state: str, now_s: float) -> str:
    """Returns one JSON object; docs/reference/commands.md describes its fields."""
    rate, left_s, step = one.rate(now_s), one.left_s(now_s), one.step
    return (
        json_text(
            {
                "schema": SCHEMA,
                "task": step.what,
                "state": state,
                "unit": step.unit,
                "done": step.done,
                "total": step.total,
                "kept": step.kept,
                "elapsed_s": round(now_s - one.begun_s, 3),
                "rate": None if rate is None else round(rate, 3),
                "left_s": 0 if state == "done" else None if left_s is None else round(left_s, 1),
            },
            indent=None,
        )
        + "\n"
    )


class _Amounts(ProgressColumn):
    """The part of a line after the names of the tasks; the bar between them shrinks."""

    def __init__(self, clock: Clock, room: Callable[[], int]) -> None:
        super().__init__(Column(no_wrap=True))
        self._clock, self._room = clock, room

    def render(self, task: Task) -> Text:
        one: Running = task.fields["running"]
        return Text(one.amounts(self._clock(), self._room()), no_wrap=True, overflow="ellipsis")


class Bars:
    """Draws a bar for each running task, and none for finished ones: one lock, so that no task has two."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._lock = threading.Lock()
        self._drawn: RichProgress | None = None
        self._tasks: dict[str, tuple[TaskID, Running]] = {}

    def __call__(self, step: ProgressStep) -> None:
        with self._lock:
            now_s = self._clock()
            if step.what in self._tasks and step.done == 0:
                self._forget(step.what)
            if step.done >= step.total:
                self._forget(step.what)
                return
            if step.what not in self._tasks:
                self._tasks[step.what] = self._draw(step, now_s)
            number, one = self._tasks[step.what]
            one.hear(step, now_s)
            assert self._drawn is not None
            self._drawn.update(number, completed=step.done)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def close(self) -> None:
        with self._lock:
            for what in list(self._tasks):
                self._forget(what)

    def _draw(self, step: ProgressStep, now_s: float) -> tuple[TaskID, Running]:
        if self._drawn is None:
            self._drawn = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                _Amounts(self._clock, self._room),
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._drawn.start()
        one = begin(step, now_s)
        return self._drawn.add_task(safe(step.what), total=step.total, running=one), one

    def _room(self) -> int:
        names = [] if self._drawn is None else [task.description for task in self._drawn.tasks]
        return self._console.width - max(map(cell_len, names), default=0) - _BESIDE

    def _forget(self, what: str) -> None:
        if what not in self._tasks or self._drawn is None:
            return
        number, _ = self._tasks.pop(what)
        self._drawn.remove_task(number)
        if not self._tasks:
            self._drawn.stop()
            self._drawn = None


def mode() -> Mode:
    """Returns the mode of progress: the one of --progress; else bars on a terminal that can redraw a line."""
    if SETTINGS.quiet or SETTINGS.progress == "none":
        return "none"
    if SETTINGS.progress == "json":
        return "json"
    console = Console(file=own_errors())
    drawable = sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal
    return "bars" if SETTINGS.progress == "auto" and drawable else "plain"


@contextmanager
def telling() -> Iterator[Progress]:
    """Yields the progress function for a command, while it runs."""
    how = mode()
    if how == "none":
        yield silent
    elif how == "bars":
        bars = Bars(Console(file=own_errors()))
        try:
            yield bars
        finally:
            bars.close()
    else:
        lines = _lines(how)
        with _ticking(lines.tick):
            try:
                yield lines
            finally:
                lines.close()


def _lines(how: Mode) -> Lines:
    stream = own_errors()

    def write(line: str) -> None:
        stream.write(line)
        stream.flush()

    return Lines(write, json_line, 0, _JSON_EVERY_S) if how == "json" else Lines(write, plain_line)


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Calls `tick` from time to time within the block, on a thread of its own, if one can be started."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(_TICK_S):
            tick()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # memory or threads are short: lines come only with steps
        yield
        return
    try:
        yield
    finally:
        ended.set()
        thread.join()
