"""The codec protocol: how one way of storing weights encodes, decodes and proves its numbers, run by run.

A codec object has scratch memory, so every thread has its own (`codecs.Codecs`). Threads share a Fit: what they have
measured of one weight. All other rooms use only this interface.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wanconv.types.tensors import Shape

RUN = 1 << 19  # elements that are read and coded at a time: 2 MB of float32, which stays in the cache for the cast


@dataclass(frozen=True, slots=True)
class Violation:
    """An element further than `bound` from its source, or not finite; `index` counts from the start of the tensor."""

    index: int
    source: float
    stored: float
    bound: float


class Numbers(Protocol):
    """The numbers of one weight before they are encoded."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> Shape: ...

    def run(self, first: int, count: int) -> Tensor:
        """Returns elements [first, first + count), at most RUN, 1-D in any float dtype; valid until the next call."""


class Held:
    """The numbers of a weight in memory."""

    def __init__(self, name: str, values: Tensor) -> None:
        self.name, self.shape, self._values = name, tuple(values.shape), values.reshape(-1)

    def run(self, first: int, count: int) -> Tensor:
        return self._values[first : first + count]


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """The scales of a payload: `factors`, float32, one for the weight or one per row of it.

    If each block of a row has a scale, `codes` are the bytes of these, 1-D, in the order of the numbers, and the one
    factor multiplies all of them.
    """

    factors: Tensor
    codes: Tensor | None = None


UNSCALED = Scales(torch.ones(1))


class Judge(Protocol):
    """Compares one stored weight with its source, run by run from the first to the last."""

    def run(self, source: Tensor, payload: Tensor, start: int) -> tuple[Violation | None, float]:
        """Returns the first element further from its source than the codec's bound, and the largest error / bound."""

    def fault(self) -> str:
        """Returns a fault of the weight as a whole, with every element within its bound; empty if there is none."""


class RunJudge:
    """The Judge of a codec that judges each run alone: `compare` checks a payload against its source."""

    def __init__(self, compare: Callable[[Tensor, Tensor, int], tuple[Violation | None, float]]) -> None:
        self._compare = compare

    def run(self, source: Tensor, payload: Tensor, start: int) -> tuple[Violation | None, float]:
        return self._compare(source, payload, start)

    def fault(self) -> str:
        return ""


class Codec(Protocol):
    """How one format stores weights: the bytes of its payload and of its scales, and the error it may make.

    Runs are contiguous and start at a multiple of `unit`, the elements that are coded together; payloads have the torch
    dtype of `plain.TORCH_DTYPES`, which is bytes if a unit has several elements. `name` and `start`, the tensor's
    name and a run's first element, are for messages.
    """

    unit: int
    flushes: bool
    """A small number may become zero without any scale to blame: convert counts these."""
    stable: bool
    """A weight that the source stores the same way is proven by its decoded numbers, which must be the same."""

    def runs(self, first: int, count: int, columns: int) -> Iterator[tuple[int, int]]:
        """Yields (first element, element count) of the runs, at most RUN, that elements [first, first + count) of a
        weight with this number of columns are coded in."""

    def scales(self, fit: "Fit", first: int, count: int, numbers: Numbers) -> Scales:
        """Returns the scales to encode a run with; reads from `numbers` what it needs to find them. Raises
        NotFinite."""

    def encode(self, values: Tensor, scales: Scales, out: Tensor, name: str, start: int) -> None:
        """Writes the payload of a run; raises NotFinite, and Overflow for values that the format cannot hold."""

    def companion(self, part: str, fit: "Fit", start: int, out: Tensor, numbers: Numbers) -> None:
        """Writes the bytes, from byte `start` on, of a tensor next to the payload: `scales`, or their `whole`."""

    def check(self, payload: Tensor, name: str, start: int) -> None:
        """Raises NotFinite for a payload, carried over from a source, that holds NaN or infinity."""

    def read(self, scales: Tensor | None, whole: Tensor | None, shape: Shape) -> Scales:
        """Returns the scales of a weight of this shape from the stored tensors."""

    def invalid(self, scales: Scales) -> float | None:
        """Returns the first scale that no quantizer writes: NaN, infinite, negative, or a zero that erases a row.
        None if all are valid."""

    def decode(self, payload: Tensor, scales: Scales, first: int, columns: int) -> Tensor:
        """Returns the numbers of a payload from element `first` on, 1-D: float32, or the payload itself without
        scales. `scales` are those of the whole weight."""

    def judge(self, scales: Scales, columns: int, clips: bool) -> Judge:
        """Returns a judge of a weight stored with these scales; `clips`: a search may have chosen them."""


class Unscaled:
    """Shared by all codecs without tensors for scales: runs of whole units, and no scales."""

    unit = 1

    def runs(self, first: int, count: int, columns: int) -> Iterator[tuple[int, int]]:
        return runs(first, count, self.unit)

    def scales(self, fit: "Fit", first: int, count: int, numbers: Numbers) -> Scales:
        return UNSCALED

    def companion(self, part: str, fit: "Fit", start: int, out: Tensor, numbers: Numbers) -> None:
        raise AssertionError("this codec has no scales")

    def read(self, scales: Tensor | None, whole: Tensor | None, shape: Shape) -> Scales:
        return UNSCALED

    def invalid(self, scales: Scales) -> float | None:
        return None


Measure = Callable[[Tensor, int], Tensor]  # of a run of whole rows, (rows, columns), and the element it starts at


class Fit:
    """Measurements for one weight's scales: numbers of the whole weight, and tables with a row for each of its rows,
    each filled once, by the first thread that needs it."""

    def __init__(self, shape: Shape, rounding: str) -> None:
        self.shape, self.rounding = shape, rounding
        self._tables: dict[str, Tensor] = {}  # NaN: not measured yet
        self._whole: dict[str, Tensor] = {}

    def table(self, name: str, like: Tensor) -> Tensor:
        """Returns a table whose rows have the shape and dtype of `like`, NaN where it is not filled yet."""
        blank = torch.full((self.shape[0], *like.shape), torch.nan, dtype=like.dtype)
        return self._tables.setdefault(name, blank)

    def rows(self, name: str, first: int, count: int, numbers: Numbers, measure: Measure) -> Tensor:
        """Returns rows [first, first + count) of a table of one float32 for each row, complete."""
        return complete(self.table(name, torch.empty(())), first, count, numbers, measure)

    def once(self, what: str, find: Callable[[], Tensor]) -> Tensor:
        """Returns a number of the whole weight; several threads may compute it at once, with the same result."""
        if what not in self._whole:
            self._whole[what] = find()
        return self._whole[what]

    def forget(self, table: str) -> None:
        self._tables.pop(table, None)


def complete(table: Tensor, first: int, count: int, numbers: Numbers, measure: Measure) -> Tensor:
    """Returns rows [first, first + count) of a Fit's table, and measures those that are still NaN."""
    columns = numbers.shape[1]
    for start, numel in row_runs(first * columns, count * columns, columns):
        part = table[start // columns : (start + numel) // columns]
        if part.isnan().any():
            part.copy_(measure(numbers.run(start, numel).view(-1, columns), start))
    return table[first : first + count]


def runs(first: int, count: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """Yields (first element, element count) of runs of at most RUN elements, which whole units divide."""
    assert RUN % unit == 0
    for start in range(first, first + count, RUN):
        yield start, min(RUN, first + count - start)


def row_runs(first: int, count: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yields (first element, element count) of runs of at most RUN elements: whole rows, or a part of one."""
    end = first + count
    while first < end:
        rest = -first % columns or columns * max(1, min(RUN, end - first) // columns)
        count = min(rest, end - first, RUN)
        yield first, count
        first += count
