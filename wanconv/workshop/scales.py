"""The scales of a plan's tensors, from the numbers they cover: each found once, by whichever thread needs it first."""

from collections.abc import Callable

import torch

from wanconv.formats.scaled import Scaler, candidates, chosen
from wanconv.plan import Step
from wanconv.tensors import ModelTensor
from wanconv.workshop.reader import Reader, row_runs


class Peaks:
    """The largest magnitude of every row of the tensors that take scales, each measured once, by whoever needs it.

    For the scale of a whole tensor each thread begins where it writes and leaves out what others have measured, so that
    they share the work without waiting for each other.
    """

    def __init__(self) -> None:
        self._rows: dict[str, torch.Tensor] = {}  # NaN: not measured yet
        self._whole: dict[str, torch.Tensor] = {}

    def of_rows(self, tensor: ModelTensor, first: int, count: int, reader: Reader, scaler: Scaler) -> torch.Tensor:
        """Returns the peaks of rows [first, first + count)."""
        peaks = self._rows.setdefault(tensor.name, torch.full((tensor.shape[0],), torch.nan))
        _complete(peaks, tensor, first, count, reader, lambda run, start: scaler.peaks(run, tensor.name, start))
        return peaks[first : first + count]

    def of_tensor(self, tensor: ModelTensor, first: int, reader: Reader, scaler: Scaler) -> torch.Tensor:
        """Returns the peak of the whole tensor, measured from row `first` on and then from its start."""
        if tensor.name not in self._whole:
            rows = tensor.shape[0]
            parts = [self.of_rows(tensor, *span, reader, scaler) for span in ((first, rows - first), (0, rows))]
            self._whole[tensor.name] = parts[1].max().view(1)
        return self._whole[tensor.name]


class Searches:
    """The scales of rounding `mse`, each searched once, by whoever needs it; shared as Peaks are."""

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = peaks
        self._rows: dict[str, torch.Tensor] = {}  # NaN: not searched yet
        self._errors: dict[str, torch.Tensor] = {}  # of each row under each candidate; NaN: not measured yet
        self._whole: dict[str, torch.Tensor] = {}

    def of_rows(self, step: Step, first: int, count: int, reader: Reader, scaler: Scaler) -> torch.Tensor:
        """Returns the scales of rows [first, first + count)."""
        tensor = step.tensor
        scales = self._rows.setdefault(tensor.name, torch.full((tensor.shape[0],), torch.nan))

        def search(run: torch.Tensor, start: int) -> torch.Tensor:
            return scaler.search(run, scaler.peaks(run, tensor.name, start), step.dtype)

        _complete(scales, tensor, first, count, reader, search)
        return scales[first : first + count]

    def of_tensor(self, step: Step, first: int, reader: Reader, scaler: Scaler) -> torch.Tensor:
        """Returns the scale of the whole tensor, searched from row `first` on and then from its start."""
        tensor, rows = step.tensor, step.tensor.shape[0]
        if tensor.name not in self._whole:
            scales = candidates(self._peaks.of_tensor(tensor, first, reader, scaler), step.dtype)
            unknown = torch.full((rows, scales.shape[1]), torch.nan, dtype=torch.float64)
            errors = self._errors.setdefault(tensor.name, unknown)
            for span in ((first, rows - first), (0, first)):
                _complete(errors, tensor, *span, reader, lambda run, _: scaler.squared_errors(run, scales, step.dtype))
            self._whole[tensor.name] = chosen(scales, errors.sum(0, keepdim=True))
            self._errors.pop(tensor.name, None)
        return self._whole[tensor.name]


def _complete(
    table: torch.Tensor,
    tensor: ModelTensor,
    first: int,
    count: int,
    reader: Reader,
    measure: Callable[[torch.Tensor, int], torch.Tensor],
) -> None:
    """Measures those of rows [first, first + count) that are NaN in the table; `measure` gets runs of whole rows and
    the element that they start at."""
    columns = tensor.shape[1]
    for start, numel in row_runs(first * columns, count * columns, columns):
        known = table[start // columns : (start + numel) // columns]
        if known.isnan().any():
            known.copy_(measure(reader.values(tensor, start, numel).view(-1, columns), start))
