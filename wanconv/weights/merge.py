"""Merges LoRAs into runs of elements: W + sum(scale * up @ down), whatever the runs are.

Products of two floats of at most 32 bits are exact in float64, where they are summed; the sum is rounded to float32
once. A matrix product's last bits depend on how many rows are multiplied at a time, so it is always computed in the
same tiles: `_ROWS` rows, counted from the tensor's first, times `_COLUMNS` columns.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from wanconv.errors import NotFinite
from wanconv.quantization.plain import TORCH_DTYPES, decode
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import ModelTensor, Patch
from wanconv.types.tensors import TensorRef

_ROWS = 16
_COLUMNS = 2048

ReadInto = Callable[[TensorRef, int, memoryview], None]


class Merger:
    """Adds a tensor's patches to its values; one Merger per thread. It keeps the down matrices of one tensor."""

    def __init__(self, read_into: ReadInto) -> None:
        self._read_into = read_into
        self._tensor: ModelTensor | None = None
        self._down: dict[Patch, Tensor] = {}
        self._sum = torch.empty(0, dtype=torch.float64)

    def merged(self, tensor: ModelTensor, first: int, values: Tensor) -> Tensor:
        """Returns `values`, the tensor's elements from `first` on, with its patches added: float32."""
        if self._tensor is not tensor:
            self._down = {patch: self._whole(patch.down) for patch in tensor.patches if patch.up is not None}
            self._tensor = tensor
        count = values.numel()
        columns = max(1, prod(tensor.shape[1:]))
        low = first // columns // _ROWS * _ROWS
        high = min(-(-(first + count) // columns // _ROWS) * _ROWS, tensor.shape[0] if tensor.shape else 1)
        needed = (high - low) * columns
        if self._sum.numel() < needed:
            self._sum = torch.empty(needed, dtype=torch.float64)
        total = self._sum[:needed].zero_()
        at = first - low * columns
        part = total[at : at + count]
        for patch in tensor.patches:
            if patch.up is None:
                part.add_(self._read(patch.down, first, count).double().mul_(patch.scale))  # no fused multiply-add
            else:
                self._add_product(patch, low, total.view(high - low, columns))
        return part.add_(decode(values)).to(torch.float32)

    def _add_product(self, patch: Patch, low: int, total: Tensor) -> None:
        assert patch.up is not None
        down = self._down[patch]
        rank = down.shape[0]
        up = self._read(patch.up, low * rank, total.shape[0] * rank).double().view(-1, rank).mul_(patch.scale)
        for column in range(0, down.shape[1], _COLUMNS):
            tile = decode(down[:, column : column + _COLUMNS]).double()
            for row in range(0, total.shape[0], _ROWS):
                # a copy of the rows, so that they have the same alignment in every run
                total[row : row + _ROWS, column : column + _COLUMNS] += up[row : row + _ROWS].clone() @ tile

    def _whole(self, ref: TensorRef) -> Tensor:
        """Returns a down matrix as (rank, row), in its own dtype."""
        raw = torch.empty(ref.numel, dtype=TORCH_DTYPES[ref.dtype])
        self._fill(ref, 0, raw)
        return raw.view(ref.shape[0], -1)

    def _read(self, ref: TensorRef, first: int, count: int) -> Tensor:
        raw = torch.empty(count, dtype=TORCH_DTYPES[ref.dtype])
        self._fill(ref, first, raw)
        return decode(raw)

    def _fill(self, ref: TensorRef, first: int, out: Tensor) -> None:
        """Reads elements; raises NotFinite for NaN and infinity."""
        assert out.numel() * DTYPES[ref.dtype].itemsize == out.nbytes
        if out.numel():
            self._read_into(ref, first, out.view(torch.uint8).numpy().data)
        if not torch.isfinite(decode(out)).all():
            raise NotFinite(f"{ref.file}: {ref.name} holds NaN or infinity", "get the LoRA again and check its digest")
