"""Reads runs of a model's elements from its files, on any thread: as stored, or decoded and merged."""

from dataclasses import dataclass
from math import isfinite

import torch

from wanconv.errors import InputError, NotFinite
from wanconv.quantization.codec import RUN, Scales
from wanconv.quantization.codecs import Codecs
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.storage.reading import fill_at
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import ModelTensor
from wanconv.types.tensors import Shape, TensorRef
from wanconv.weights.merge import Merger
from wanconv.weights.source_files import Files, FilesHere


class Sources:
    """Reads tensors from their files, on any thread; a LoRA is always a local file."""

    def __init__(self, files: Files | None = None) -> None:
        self._files, self._loras = files or FilesHere(), FilesHere()

    def read_into(self, ref: TensorRef, first: int, view: memoryview) -> None:
        """Fills `view` with the tensor's bytes from its `first` element on; raises InputError if the file ends."""
        self._read(self._files, ref, first, view)

    def read_lora(self, ref: TensorRef, first: int, view: memoryview) -> None:
        """The same for a tensor of a LoRA."""
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
        self._codecs = Codecs()
        self._scratch = bytearray(RUN * 8)
        self._held: tuple[ModelTensor, int, int] | None = None
        self._scales: tuple[ModelTensor, Scales] | None = None
        self._merger = Merger(sources.read_lora)

    def values(self, tensor: ModelTensor, first: int, count: int) -> torch.Tensor:
        """Returns elements [first, first + count), at most RUN; valid until the next call.

        They have the dtype on disk; if the tensor has scales or patches, they are decoded and merged as float32.
        """
        values = self._stored(tensor, first, count)
        return self._merger.merged(tensor, first, values) if tensor.patches else values

    def _stored(self, tensor: ModelTensor, first: int, count: int) -> torch.Tensor:
        codec = self._codecs.of(tensor.dtype, tensor.packing)
        start, end = first // codec.unit * codec.unit, -(-(first + count) // codec.unit) * codec.unit
        payload, scales = self.payload(tensor, start, end - start), self.scales(tensor)
        columns = tensor.shape[-1] if tensor.shape else 1
        return codec.decode(payload, scales, start, columns)[first - start :][:count]

    def scales(self, tensor: ModelTensor) -> Scales:
        """Returns the scales of a tensor; raises NotFinite or InputError if one is invalid."""
        if self._scales is None or self._scales[0] is not tensor:
            self._scales = None  # keep the scales of one tensor only
            scales = read_scales(self._sources, tensor, self._codecs)
            refuse_scale(tensor, self._codecs.of(tensor.dtype, tensor.packing).invalid(scales))
            self._scales = tensor, scales
        return self._scales[1]

    def payload(self, tensor: ModelTensor, first: int, count: int) -> torch.Tensor:
        """Returns the stored bytes of these elements, in whole blocks; the same call again reads nothing."""
        if tensor.transposed:
            return self._transposed(tensor)[first : first + count]
        dtype = DTYPES[tensor.dtype]
        if self._held is None or self._held[0] is not tensor or self._held[1:] != (first, count):
            self._held = None
            self._sources.read_elements(tensor, first, memoryview(self._scratch)[: dtype.nbytes(count)])
            self._held = tensor, first, count
        return torch.frombuffer(memoryview(self._scratch)[: dtype.nbytes(count)], dtype=TORCH_DTYPES[dtype.name])

    def _transposed(self, tensor: ModelTensor) -> torch.Tensor:
        """Returns a tensor that is stored transposed, read whole and transposed back: these are small."""
        (piece,) = tensor.pieces
        raw = bytearray(tensor.nbytes)
        self._sources.read_into(piece.ref, piece.start, memoryview(raw))
        values = torch.frombuffer(raw, dtype=TORCH_DTYPES[tensor.dtype])
        return values.view(tensor.shape[::-1]).t().contiguous().view(-1)


@dataclass(frozen=True, slots=True)
class TensorNumbers:
    """The numbers of one tensor as codecs ask for them (quantization/codec.py)."""

    reader: Reader
    tensor: ModelTensor

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> Shape:
        return self.tensor.shape

    def run(self, first: int, count: int) -> torch.Tensor:
        return self.reader.values(self.tensor, first, count)


def read_scales(sources: Sources, tensor: ModelTensor, codecs: Codecs) -> Scales:
    """Returns the scales of a tensor, valid or not."""

    def content(ref: TensorRef | None) -> torch.Tensor | None:
        if ref is None:
            return None
        raw = bytearray(ref.nbytes)
        sources.read_into(ref, 0, memoryview(raw))
        return torch.frombuffer(raw, dtype=torch.uint8)

    codec = codecs.of(tensor.dtype, tensor.packing)
    return codec.read(content(tensor.scales), content(tensor.whole), tensor.shape)


def invalid_scale(sources: Sources, tensor: ModelTensor, codecs: Codecs) -> float | None:
    """Returns the first invalid scale of a tensor; None if all are valid or it has none."""
    if tensor.scales is None:
        return None
    return codecs.of(tensor.dtype, tensor.packing).invalid(read_scales(sources, tensor, codecs))


def refuse_scale(tensor: ModelTensor, scale: float | None) -> None:
    """Raises NotFinite or InputError for an invalid scale, if there is one.

    A zero scale erases the weights it covers; a negative one flips their sign.
    """
    if scale is not None:
        error = InputError if isfinite(scale) else NotFinite
        message = f"{tensor.name} has a scale of {scale:.9g}, and a scale is a positive number"
        raise error(message, "get the file again and check its digest, or convert the checkpoint that it was made from")
