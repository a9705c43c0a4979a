"""Reads runs of a model's numbers from its files, on any thread: as they lie there, or decoded and merged."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

import torch

from wanconv.errors import InputError, NotFinite
from wanconv.formats import blocks, microscaled, scaled
from wanconv.formats.plain import TORCH_DTYPES
from wanconv.reading import fill_at
from wanconv.tensors import DTYPES, ModelTensor, TensorRef
from wanconv.workshop.merge import Merger
from wanconv.workshop.source_files import Files, FilesHere

RUN = 1 << 19  # source elements read at a time: 2 MB of fp32, which the cast still finds in the cache


class Sources:
    """Reads tensors from their files, on any thread; LoRAs are always on this machine."""

    def __init__(self, files: Files | None = None) -> None:
        self._files, self._loras = files or FilesHere(), FilesHere()

    def read_into(self, ref: TensorRef, first: int, view: memoryview) -> None:
        """Fills `view` with the tensor's bytes from its `first` element on; raises InputError where the file ends."""
        self._read(self._files, ref, first, view)

    def read_lora(self, ref: TensorRef, first: int, view: memoryview) -> None:
        """Does the same for a tensor of a LoRA."""
        self._read(self._loras, ref, first, view)

    def _read(self, files: Files, ref: TensorRef, first: int, view: memoryview) -> None:
        offset = ref.offset + DTYPES[ref.dtype].nbytes(first)
        try:
            if fill_at(files.descriptor(ref.file), view, offset) < len(view):
                raise InputError(
                    f"{ref.file} ends inside {ref.name}", "get the file again: it changed while it was read"
                )
        except OSError as error:
            raise InputError(f"{ref.file} cannot be read: {error.strerror}", "check the disk it is on") from error

    def read_elements(self, tensor: ModelTensor, first: int, view: memoryview) -> None:
        """Fills `view` with the tensor's bytes from its `first` element on, as they are on disk."""
        dtype = DTYPES[tensor.dtype]
        count, at = dtype.numel(len(view)), 0
        for piece in tensor.pieces:
            low, high = max(first, at), min(first + count, at + piece.count)
            if low < high:
                part = view[dtype.nbytes(low - first) : dtype.nbytes(high - first)]
                self.read_into(piece.ref, piece.start + low - at, part)
            at += piece.count

    def close(self) -> None:
        self._files.close()
        self._loras.close()


class Reader:
    """Reads runs of a model's canonical tensors through scratch memory of its own; one per thread."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._scratch = bytearray(RUN * 8)
        self._held: tuple[ModelTensor, int, int] | None = None
        self._scales: tuple[ModelTensor, torch.Tensor] | None = None
        self._blocks: tuple[ModelTensor, BlockScales] | None = None
        self._merger = Merger(sources.read_lora)

    def values(self, tensor: ModelTensor, first: int, count: int) -> torch.Tensor:
        """Returns elements [first, first + count), at most RUN; valid until the next call.

        They have the dtype on disk, or are float32 where the tensor has scales or patches: decoded, and merged.
        """
        values = self._stored(tensor, first, count)
        return self._merger.merged(tensor, first, values) if tensor.patches else values

    def _stored(self, tensor: ModelTensor, first: int, count: int) -> torch.Tensor:
        if (block := DTYPES[tensor.dtype].block) > 1:
            start, end = first // block * block, -(-(first + count) // block) * block
            payload = self.payload(tensor, start, end - start)
            if tensor.packing is None:
                return blocks.decode(payload)[first - start :][:count]
            beside = self.block_scales(tensor)
            codes = beside.codes[start // block : end // block]
            return microscaled.decode(payload, codes, tensor.dtype, beside.whole)[first - start :][:count]
        if tensor.packing is None:
            return self.payload(tensor, first, count)
        payload, columns = self.payload(tensor, first, count), tensor.shape[1]
        if self._scales is None or self._scales[0] is not tensor:
            self._scales = tensor, sound_scales(self._sources, tensor)
        scales = self._scales[1].expand(tensor.shape[0])
        values = torch.empty(count, dtype=torch.float32)
        for start, numel in row_runs(first, count, columns):
            rows = slice(start // columns, start // columns + max(1, numel // columns))
            part = slice(start - first, start - first + numel)
            values[part] = scaled.decode(payload[part].view(-1, min(numel, columns)), scales[rows]).view(-1)
        return values

    def block_scales(self, tensor: ModelTensor) -> "BlockScales":
        """Returns the scales of a tensor that has some for each block, in the order of its numbers."""
        if self._blocks is None or self._blocks[0] is not tensor:
            self._blocks = None
            self._blocks = tensor, sound_block_scales(self._sources, tensor)
        return self._blocks[1]

    def payload(self, tensor: ModelTensor, first: int, count: int) -> torch.Tensor:
        """Returns the same as it is on disk, whole blocks; a second call for the same ones reads nothing."""
        if tensor.transposed:
            return self._turned(tensor)[first : first + count]
        dtype = DTYPES[tensor.dtype]
        if self._held is None or self._held[0] is not tensor or self._held[1:] != (first, count):
            self._held = None
            self._sources.read_elements(tensor, first, memoryview(self._scratch)[: dtype.nbytes(count)])
            self._held = tensor, first, count
        return torch.frombuffer(memoryview(self._scratch)[: dtype.nbytes(count)], dtype=TORCH_DTYPES[dtype.name])

    def _turned(self, tensor: ModelTensor) -> torch.Tensor:
        """Returns a tensor that stands transposed on disk, read whole and turned: those are small."""
        (piece,) = tensor.pieces
        raw = bytearray(tensor.nbytes)
        self._sources.read_into(piece.ref, piece.start, memoryview(raw))
        values = torch.frombuffer(raw, dtype=TORCH_DTYPES[tensor.dtype])
        return values.view(tensor.shape[::-1]).t().contiguous().view(-1)


def runs(first: int, count: int) -> Iterator[tuple[int, int]]:
    """Yields (first element, element count) of runs of at most RUN elements."""
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


@dataclass(frozen=True, slots=True, eq=False)
class BlockScales:
    """The bytes of the scales of a tensor's blocks, 1-D, in order, and the one scale of these: 1 where it has none."""

    codes: torch.Tensor
    whole: float


def read_block_scales(sources: Sources, tensor: ModelTensor) -> BlockScales:
    assert tensor.scales is not None
    raw, rows, block = bytearray(tensor.scales.nbytes), tensor.shape[0], DTYPES[tensor.dtype].block
    sources.read_into(tensor.scales, 0, memoryview(raw))
    tiles = torch.frombuffer(raw, dtype=torch.uint8)
    codes = microscaled.untiled(tiles, rows, tensor.shape[1] // block).view(-1)
    return BlockScales(codes, read_scales(sources, tensor).item())


def read_scales(sources: Sources, tensor: ModelTensor) -> torch.Tensor:
    """Returns the float32 scales of a tensor that has some: one, or one per row; where there is one for each block, the
    one that multiplies these, 1 where the format has none."""
    assert tensor.packing is not None
    ref = tensor.whole if tensor.packing.scale == "block" else tensor.scales
    if ref is None:
        return torch.ones(1)
    raw = bytearray(ref.nbytes)
    sources.read_into(ref, 0, memoryview(raw))
    return torch.frombuffer(raw, dtype=torch.float32)


def odd_scale(sources: Sources, tensor: ModelTensor) -> float | None:
    """Returns the first of a tensor's scales that is none; None where each is one, or it has none beside it."""
    if tensor.scales is None or tensor.packing is None:
        return None
    if tensor.packing.scale == "block":
        beside = read_block_scales(sources, tensor)
        return microscaled.odd_scale(beside.codes, tensor.dtype, beside.whole)
    return scaled.odd_scale(read_scales(sources, tensor))


def confirm_scale(tensor: ModelTensor, odd: float | None) -> None:
    """Raises NotFinite or InputError for a scale that is none, where there is one.

    No quantizer writes such: what it covers would be lost, or turned around.
    """
    if odd is not None:
        error = InputError if isfinite(odd) else NotFinite
        message = f"{tensor.name} has a scale of {odd:.9g}, and a scale is a positive number"
        raise error(message, "get the file again and check its digest, or convert the checkpoint that it was made from")


def sound_scales(sources: Sources, tensor: ModelTensor) -> torch.Tensor:
    """Returns read_scales(); raises as confirm_scale() does."""
    scales = read_scales(sources, tensor)
    confirm_scale(tensor, scaled.odd_scale(scales))
    return scales


def sound_block_scales(sources: Sources, tensor: ModelTensor) -> BlockScales:
    """Returns read_block_scales(); raises as confirm_scale() does."""
    scales = read_block_scales(sources, tensor)
    confirm_scale(tensor, microscaled.odd_scale(scales.codes, tensor.dtype, scales.whole))
    return scales
