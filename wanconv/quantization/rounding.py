"""How the scales of a weight are found: a strategy for each rounding that a recipe can name.

A strategy sees whole rows, measures them with a Measurer, and stores the results in the weight's Fit. The threads that
encode the weight share it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from wanconv.quantization.codec import Fit, Numbers, complete

LARGEST = {"fp8_e4m3fn": 448.0, "fp8_e5m2": 57344.0, "int8": 127.0}
_OCTAVE = tuple((16 + k) / 16 for k in range(16))
FACTORS = {"fp8_e4m3fn": _OCTAVE, "fp8_e5m2": _OCTAVE, "int8": tuple((320 - k * k) / 320 for k in range(17))}
_SMALLEST_SCALE = 2.0**-100
_EQUAL = 1 + 2.0**-24


class Measurer(Protocol):
    """The measurements of rows that scales need; runs are (rows, columns) in any float dtype."""

    def peaks(self, source: Tensor, name: str, start: int = 0) -> Tensor:
        """Returns the largest magnitude of each row, float32; raises NotFinite."""

    def search(self, source: Tensor, peaks: Tensor, storage: str) -> Tensor:
        """Returns for each row the scale with the least squared error."""

    def squared_errors(self, source: Tensor, scales: Tensor, storage: str) -> Tensor:
        """Returns each row's squared error under each scale, float64 (rows, candidates)."""


class Rounding(Protocol):
    """A strategy for one storage dtype: scales as float32, one per row or one for the whole weight."""

    def of_rows(self, fit: Fit, row: int, count: int, numbers: Numbers) -> Tensor:
        """Returns the scales of rows [row, row + count)."""

    def of_weight(self, fit: Fit, row: int, numbers: Numbers) -> Tensor:
        """Returns the only scale, (1,), measured from `row` on and then from the start of the weight."""


class Nearest:
    """Scales that map the largest magnitude to the storage's largest number."""

    def __init__(self, measurer: Measurer, storage: str) -> None:
        self._measurer, self._storage = measurer, storage

    def of_rows(self, fit: Fit, row: int, count: int, numbers: Numbers) -> Tensor:
        return scales_of(fit.rows("peaks", row, count, numbers, self._peaks(numbers)), self._storage)

    def of_weight(self, fit: Fit, row: int, numbers: Numbers) -> Tensor:
        return scales_of(peak_of(fit, row, numbers, self._measurer), self._storage)

    def _peaks(self, numbers: Numbers) -> Callable[[Tensor, int], Tensor]:
        return lambda run, start: self._measurer.peaks(run, numbers.name, start)


class LeastSquares:
    """Of candidates(), the scales with the least squared error."""

    def __init__(self, measurer: Measurer, storage: str) -> None:
        self._measurer, self._storage = measurer, storage

    def of_rows(self, fit: Fit, row: int, count: int, numbers: Numbers) -> Tensor:
        def search(run: Tensor, start: int) -> Tensor:
            return self._measurer.search(run, self._measurer.peaks(run, numbers.name, start), self._storage)

        return fit.rows("scales", row, count, numbers, search)

    def of_weight(self, fit: Fit, row: int, numbers: Numbers) -> Tensor:
        grid = candidates(peak_of(fit, row, numbers, self._measurer), self._storage)

        def errors(run: Tensor, start: int) -> Tensor:
            return self._measurer.squared_errors(run, grid, self._storage)

        table, rows = fit.table("errors", torch.empty(grid.shape[1], dtype=torch.float64)), fit.shape[0]
        complete(table, row, rows - row, numbers, errors)
        complete(table, 0, row, numbers, errors)
        fit.forget("errors")
        return chosen(grid, table.sum(0, keepdim=True))


STRATEGIES: Mapping[str, Callable[[Measurer, str], Rounding]] = {"nearest": Nearest, "mse": LeastSquares}


def peak_of(fit: Fit, row: int, numbers: Numbers, measurer: Measurer) -> Tensor:
    """Returns the largest |w| of a whole weight, measured from `row` on and then from its start: threads that begin
    at their own rows share the work without waiting for each other."""

    def peaks(run: Tensor, start: int) -> Tensor:
        return measurer.peaks(run, numbers.name, start)

    def find() -> Tensor:
        rows = fit.shape[0]
        fit.rows("peaks", row, rows - row, numbers, peaks)
        return fit.rows("peaks", 0, rows, numbers, peaks).max().view(1)

    return fit.once("peak", find)


def scales_of(peaks: Tensor, storage: str) -> Tensor:
    """Returns the float32 scale of each peak, the largest |w| that a scale covers."""
    scales = (peaks / LARGEST[storage]).clamp_(min=_SMALLEST_SCALE)
    return scales.masked_fill_(peaks == 0, 1.0)


def candidates(peaks: Tensor, storage: str) -> Tensor:
    """Returns the scales that rounding `mse` chooses from, (peaks, factors); the first is scales_of()."""
    return (scales_of(peaks, storage).view(-1, 1) * torch.tensor(FACTORS[storage])).clamp_(min=_SMALLEST_SCALE)


def chosen(scales: Tensor, errors: Tensor) -> Tensor:
    """Returns for each row of candidates() the one with the least squared error, the first of equal ones.

    Errors are float64 sums, and equal to 24 bits: the order in which a machine adds does not decide.
    """
    best = (errors <= errors.amin(1, keepdim=True) * _EQUAL).int().argmax(1, keepdim=True)
    return scales.gather(1, best).view(-1)
