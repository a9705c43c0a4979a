"""Progress of a command: one protocol for every room, from the innermost loop to the display."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ProgressStep:
    """`done` of `total` units of a task, which `what` names; `done` 0 starts the task, or starts it again.

    `unit` is a noun whose plural ends in s. `kept` is the part of `done` from an earlier run: it says nothing about the
    speed of this one.
    """

    what: str
    done: int
    total: int
    unit: str = "bytes"
    kept: int = 0


Progress = Callable[[ProgressStep], None]


class Advance(Protocol):
    """Called with the work done, in the task's unit, on any thread; a negative number is lost work that is done
    again."""

    def __call__(self, more: int, kept: bool = False) -> None: ...


def silent(step: ProgressStep) -> None:
    """A progress that ignores all steps."""


def unheard(more: int, kept: bool = False) -> None:
    """Ignores the work done."""


def total(progress: Progress, what: str, amount: int, unit: str = "bytes") -> Advance:
    """Begins a task and returns its counter, for any thread: steps come one after the other, each further on."""
    lock, done, before = threading.Lock(), 0, 0
    if amount:
        progress(ProgressStep(what, 0, amount, unit))

    def advance(more: int, kept: bool = False) -> None:
        nonlocal done, before
        with lock:
            done += more
            before += more if kept else 0
            progress(ProgressStep(what, done, amount, unit, before))

    return advance
