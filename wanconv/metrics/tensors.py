"""How far a candidate tensor is from its reference: relative L2, SQNR, cosine, largest error.

    relative_l2   = ||c - r|| / ||r||
    sqnr_db       = 10 log10(||r||^2 / ||c - r||^2)
    cosine        = <r, c> / (||r|| ||c||)
    max_abs_error = max |c - r|

Every element becomes a float64 before it is squared, and sums are float64 (a float32 cosine over 70 M elements returned
1.008). Tensors are read once, in chunks, so memory stays at 4 MB on a CPU for any size.

NaN and infinity are looked for first, and a comparison with one is a NonFinite without figures: otherwise a NaN would
pass a threshold, because `nan > limit` is false. A figure that would be a division by zero is None, for the same
reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log10, sqrt

import torch
from torch import Tensor

# Elements at a time. A CPU's chunk stays in its cache; a GPU wants few and large ones (0.5 GB of scratch).
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}
_LARGEST = 1e300  # for a sum of squares: far above any float32's (1e85), and 10 ** 8 chunks do not overflow


@dataclass(frozen=True, slots=True)
class Agreement:
    """How `count` finite elements agree. `identical`: every element is equal (-0 and 0 are).

    relative_l2 is None for a zero reference with a candidate that is not (infinite), and 0 if both are zero; sqnr_db is
    None if there is no error (infinite) or no signal; cosine is None if either norm is zero.
    """

    count: int
    identical: bool
    relative_l2: float | None
    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float


@dataclass(frozen=True, slots=True)
class NonFinite:
    """NaN or infinity was met, so nothing is compared: how many in each of `count` elements, and the first's index."""

    count: int
    reference: int
    candidate: int
    first: int


class Comparison:
    """Adds up runs of (reference, candidate), one after the other; holds sums only, no elements."""

    def __init__(self) -> None:
        self._count = 0
        self._reference_squares = 0.0
        self._candidate_squares = 0.0
        self._products = 0.0
        self._error_squares = 0.0
        self._max_abs_error = 0.0
        self._bad_reference = 0
        self._bad_candidate = 0
        self._first_bad: int | None = None

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Adds the next run, two tensors of one shape, of any float dtypes and strides, on one device.

        Raises ValueError if shapes or devices differ, and for float64 numbers whose squares overflow.
        """
        _check(reference, candidate)
        chunk = max(1, min(_CHUNK.get(reference.device.type, _CHUNK["cpu"]), reference.numel()))
        scratch = torch.empty(2, chunk, dtype=torch.float64, device=reference.device)
        for run, other in _chunks(reference, candidate, chunk):
            self._add(scratch[0, : run.numel()].copy_(run), scratch[1, : run.numel()].copy_(other))
            self._count += run.numel()

    def merge(self, later: "Comparison") -> None:
        """Adds all runs of another comparison, as if they came after this one's."""
        if later._first_bad is not None and self._first_bad is None:
            self._first_bad = self._count + later._first_bad
        self._count += later._count
        self._reference_squares += later._reference_squares
        self._candidate_squares += later._candidate_squares
        self._products += later._products
        self._error_squares += later._error_squares
        self._max_abs_error = max(self._max_abs_error, later._max_abs_error)
        self._bad_reference += later._bad_reference
        self._bad_candidate += later._bad_candidate

    def result(self) -> Agreement | NonFinite:
        """Returns the result of all runs so far; raises ValueError if there was no element."""
        if not self._count:
            raise ValueError("there is nothing to compare: the tensors have no elements")
        if self._first_bad is not None:
            return NonFinite(self._count, self._bad_reference, self._bad_candidate, self._first_bad)
        signal, error = self._reference_squares, self._error_squares
        norms = sqrt(signal) * sqrt(self._candidate_squares)
        identical = self._max_abs_error == 0.0
        return Agreement(
            count=self._count,
            identical=identical,
            relative_l2=0.0 if identical else sqrt(error) / sqrt(signal) if signal else None,
            sqnr_db=10.0 * log10(signal / error) if signal and error else None,
            # rounding may carry the quotient an ulp past 1
            cosine=max(-1.0, min(1.0, self._products / norms)) if norms else None,
            max_abs_error=self._max_abs_error,
        )

    def _add(self, reference: Tensor, candidate: Tensor) -> None:
        """Adds a chunk of float64, overwriting the candidate."""
        sums = [reference.dot(reference), candidate.dot(candidate), reference.dot(candidate)]
        squares, others, products = torch.stack(sums).tolist()
        # No finite float32 comes near the limit, so a sum above it, or NaN, says that an element is not finite.
        if not squares + others <= _LARGEST:
            self._add_bad(reference, candidate)
            return
        error = candidate.sub_(reference)
        low, high = torch.aminmax(error)
        errors, low_error, high_error = torch.stack([error.dot(error), low, high]).tolist()
        self._reference_squares += squares
        self._candidate_squares += others
        self._products += products
        self._error_squares += errors
        self._max_abs_error = max(self._max_abs_error, -low_error, high_error)

    def _add_bad(self, reference: Tensor, candidate: Tensor) -> None:
        bad, worse = ~torch.isfinite(reference), ~torch.isfinite(candidate)
        either = bad | worse
        if not either.any():
            raise ValueError("the squares of these float64 numbers overflow: scale both tensors down")
        self._bad_reference += int(bad.sum())
        self._bad_candidate += int(worse.sum())
        if self._first_bad is None:
            self._first_bad = self._count + int(either.int().argmax())


def compare(reference: Tensor, candidate: Tensor) -> Agreement | NonFinite:
    """Returns how two tensors of one shape agree, or that they hold NaN or infinity; raises as Comparison does."""
    comparison = Comparison()
    comparison.add(reference, candidate)
    return comparison.result()


def _check(reference: Tensor, candidate: Tensor) -> None:
    if reference.shape != candidate.shape:
        raise ValueError(f"the shapes differ: reference {list(reference.shape)}, candidate {list(candidate.shape)}")
    if reference.device != candidate.device:
        raise ValueError(f"the devices differ: reference on {reference.device}, candidate on {candidate.device}")
    for name, tensor in (("reference", reference), ("candidate", candidate)):
        if not tensor.is_floating_point():
            raise ValueError(f"the {name} is {tensor.dtype}: only float tensors are compared; decode it first")


def _chunks(reference: Tensor, candidate: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields both, flat and in order, `size` elements at most; a tensor that is not contiguous is copied by the chunk
    only."""
    if reference.is_contiguous() and candidate.is_contiguous():
        flat, other = reference.view(-1), candidate.view(-1)
        for at in range(0, flat.numel(), size):
            yield flat[at : at + size], other[at : at + size]
    elif reference.numel() <= size:
        yield reference.reshape(-1), candidate.reshape(-1)
    else:
        axis = next(axis for axis, length in enumerate(reference.shape) if length > 1)
        half = reference.shape[axis] // 2
        yield from _chunks(reference.narrow(axis, 0, half), candidate.narrow(axis, 0, half), size)
        rest = reference.shape[axis] - half
        yield from _chunks(reference.narrow(axis, half, rest), candidate.narrow(axis, half, rest), size)
