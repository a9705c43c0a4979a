"""Tensors of a model that are read on demand: whole or by rows, decoded, with LoRAs merged."""

from contextlib import closing
from dataclasses import dataclass
from math import prod

import torch
from safetensors import SafetensorError, safe_open

from wanconv.errors import InputError, UsageError
from wanconv.quantization.codec import runs
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.types.model import ModelTensor
from wanconv.types.tensors import Shape, TensorRef
from wanconv.weights.reader import Reader, Sources


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """One canonical tensor of a model; its header is known and its numbers are still on disk."""

    tensor: ModelTensor

    @property
    def name(self) -> str:
        """The canonical name, such as "dit/blocks.0.self_attn.q.weight"."""
        return self.tensor.name

    @property
    def shape(self) -> Shape:
        """The canonical shape; it may differ on disk."""
        return self.tensor.shape

    @property
    def stored_as(self) -> str:
        """The dtype on disk, and what its scales cover, if it has some: "bf16", "int8 row"."""
        return self.tensor.stored_as

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `read` returns: float32 for a tensor with scales or LoRAs, else the one on disk."""
        return TORCH_DTYPES[self.tensor.numbers]

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """Read the tensor, or some of its rows.

        Args:
            rows: Which of the first axis, with a step of 1; None for all.

        Returns:
            The numbers on the CPU, shape (rows, *shape[1:]), dtype `dtype`: decoded, and merged with the model's LoRAs.

        Raises:
            UsageError: For a step other than 1, or rows of a tensor without axes.
            InputError: If the file cannot be read or has changed.
            NotFinite: For a scale or a LoRA that is not finite.
        """
        top, bottom = self._range(rows)
        if (ref := self._plain()) is not None:
            return _read_safetensors(ref, None if rows is None else (top, bottom))
        columns = prod(self.shape[1:])
        first, count = top * columns, (bottom - top) * columns
        values = torch.empty(count, dtype=self.dtype)
        with closing(Sources()) as sources:
            reader = Reader(sources)
            for start, numel in runs(first, count):
                values[start - first :][:numel].copy_(reader.values(self.tensor, start, numel))
        return values.view(self.shape if rows is None else (bottom - top, *self.shape[1:]))

    def _range(self, rows: slice | None) -> tuple[int, int]:
        if rows is None:
            return 0, self.shape[0] if self.shape else 1
        if not self.shape:
            raise UsageError(f"{self.name} has no rows", "read it whole")
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise UsageError(f"{self.name} is read in steps of 1, not {step}", "read all rows, then pick")
        return start, max(start, stop)

    def _plain(self) -> TensorRef | None:
        """Returns the tensor on disk if a safetensors file has exactly its numbers, so that the library can read
        them."""
        piece = self.tensor.pieces[0]
        whole = len(self.tensor.pieces) == 1 and piece.start == 0 and piece.ref.shape == self.shape
        return piece.ref if whole and self.tensor.as_it_lies and piece.ref.file.suffix == ".safetensors" else None


def _read_safetensors(ref: TensorRef, rows: tuple[int, int] | None) -> torch.Tensor:
    """Returns a tensor, or rows of it, from a file whose header was checked when the model was opened."""
    try:
        with safe_open(ref.file, framework="pt") as file:
            values: torch.Tensor
            values = file.get_tensor(ref.name) if rows is None else file.get_slice(ref.name)[rows[0] : rows[1]]
            return values
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{ref.file} cannot be read: {error}", "open the model again if the file was replaced"
        ) from error
