"""How far a verb is: one protocol for every room, from the innermost loop to whoever shows it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Step:
    """`done` of `total` units of a task, which `what` names; the task begins, or begins anew, where `done` is 0.

    `unit` is a plural by a lone s. `kept` is the part of `done` from an earlier run: it says nothing about the speed of
    this one.
    """

    what: str
    done: int
    total: int
    unit: str = "bytes"
    kept: int = 0


Progress = Callable[[Step], None]


class Advance(Protocol):
    """Hears of work done, in the task's unit, on any thread; less than 0 is work that is lost and done again."""

    def __call__(self, more: int, kept: bool = False) -> None: ...


def silent(step: Step) -> None:
    """The progress of whoever wants to hear nothing."""


def unheard(more: int, kept: bool = False) -> None:
    """Work that nobody counts."""


def total(progress: Progress, what: str, amount: int, unit: str = "bytes") -> Advance:
    """Begins a task and returns what counts its work: on any thread, one step after the other, each further on."""
    lock, done, before = threading.Lock(), 0, 0
    if amount:
        progress(Step(what, 0, amount, unit))

    def advance(more: int, kept: bool = False) -> None:
        nonlocal done, before
        with lock:
            done += more
            before += more if kept else 0
            progress(Step(what, done, amount, unit, before))

    return advance
