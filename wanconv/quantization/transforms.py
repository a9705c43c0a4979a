"""Transforms of a weight before it is quantized, each a codec around another one.

`Rotated` multiplies every `group` of neighbouring numbers of a row by the regular Hadamard matrix H of that order:

    H(4) = [[ 1, 1, 1, -1],      H(4 n) = H(4) ⊗ H(n)
            [ 1, 1, -1, 1],
            [ 1, -1, 1, 1],
            [-1, 1, 1, 1]] / 2

H is symmetric and orthogonal, so it is its own inverse, and every row of it has the same sum. An outlier is spread over
its group, so the largest magnitude, which a scale must reach, shrinks. A client that rotates the layer's inputs in the
same way multiplies with the stored, rotated weight.

The inner codec's worst error of an element holds in the rotated basis, where the grid is. In the weight's own basis,
the squared error of a group is the same, since H is orthogonal.

Rotations are sums of four numbers at a time in float32, in one order, so that the same row gives the same bits on every
machine, whatever run it is read in.

Sources: the regular Hadamard matrix of order 4 and its Kronecker powers, Hedayat and Wallis, "Hadamard Matrices and
Their Applications", 1978, section 5; ConvRot (arXiv 2512.03673) for its use on groups of a weight's columns.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from wanconv.quantization.codec import Codec, Fit, Judge, Numbers, Scales, Violation, row_runs
from wanconv.quantization.plain import decode as widened
from wanconv.types.tensors import Shape

GROUPS = (4, 16, 64, 256)  # powers of four, the orders that H has here


def rotate(values: Tensor, group: int) -> Tensor:
    """Returns the values as float32, with each `group` rotated, in order.

    Args:
        values: any shape and float dtype; its elements in order are whole groups.
        group: one of GROUPS.
    """
    rotated = widened(values.reshape(-1))
    stride = 1
    while stride < group:
        quads = rotated.view(-1, 4, stride)
        first, second, third, fourth = quads.unbind(1)
        half = ((first + second) + (third + fourth)) * 0.5
        rotated = torch.stack((half - fourth, half - third, half - second, half - first), 1).view(-1)
        stride *= 4
    return rotated.view(values.shape)


class Rotated:
    """A codec that rotates a weight and stores it with an inner codec.

    Args:
        inner: how the rotated weight is stored.
        group: how many neighbouring numbers of a row are rotated together: one of GROUPS, which divides the columns.
    """

    stable = False

    def __init__(self, inner: Codec, group: int) -> None:
        if group not in GROUPS:
            raise ValueError(f"a group of {group} cannot be rotated; choose one of {', '.join(map(str, GROUPS))}")
        self._inner, self._group = inner, group
        self.unit = max(inner.unit, group)
        self.flushes = inner.flushes

    def runs(self, first: int, count: int, columns: int) -> Iterator[tuple[int, int]]:
        """Yields whole rows, or parts of one that whole groups fill."""
        return row_runs(first, count, columns)

    def scales(self, fit: Fit, first: int, count: int, numbers: Numbers) -> Scales:
        self._check_columns(fit.shape[1])
        return self._inner.scales(fit, first, count, _RotatedNumbers(numbers, self._group))

    def encode(self, values: Tensor, scales: Scales, out: Tensor, name: str, start: int) -> None:
        self._inner.encode(rotate(values, self._group), scales, out, name, start)

    def companion(self, part: str, fit: Fit, start: int, out: Tensor, numbers: Numbers) -> None:
        self._inner.companion(part, fit, start, out, _RotatedNumbers(numbers, self._group))

    def check(self, payload: Tensor, name: str, start: int) -> None:
        self._inner.check(payload, name, start)

    def read(self, scales: Tensor | None, whole: Tensor | None, shape: Shape) -> Scales:
        self._check_columns(shape[1])
        return self._inner.read(scales, whole, shape)

    def invalid(self, scales: Scales) -> float | None:
        return self._inner.invalid(scales)

    def decode(self, payload: Tensor, scales: Scales, first: int, columns: int) -> Tensor:
        self._check_columns(columns)
        return rotate(self._inner.decode(payload, scales, first, columns), self._group)

    def judge(self, scales: Scales, columns: int, clips: bool) -> Judge:
        """Returns a judge that compares each element with the inner codec's bound in the rotated basis."""
        self._check_columns(columns)
        return _RotatedJudge(self._inner.judge(scales, columns, clips), self._group)

    def _check_columns(self, columns: int) -> None:
        """Raises ValueError if a group would reach into the next row."""
        if columns % self._group:
            raise ValueError(f"rows of {columns} numbers are not whole groups of {self._group}")


class _RotatedNumbers:
    """The numbers of a weight, rotated as they are read."""

    def __init__(self, numbers: Numbers, group: int) -> None:
        self._numbers, self._group = numbers, group
        self.name, self.shape = numbers.name, numbers.shape

    def run(self, first: int, count: int) -> Tensor:
        return rotate(self._numbers.run(first, count), self._group)


class _RotatedJudge:
    def __init__(self, inner: Judge, group: int) -> None:
        self._inner, self._group = inner, group

    def run(self, source: Tensor, payload: Tensor, start: int) -> tuple[Violation | None, float]:
        return self._inner.run(rotate(source, self._group), payload, start)

    def fault(self) -> str:
        return self._inner.fault()
