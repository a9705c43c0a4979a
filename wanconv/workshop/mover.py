"""Moves the numbers of a plan: reads runs of source elements and casts them into output blocks, on any thread."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from wanconv.checkpoint import pth
from wanconv.errors import InputError, Overflow
from wanconv.formats.plain import TORCH_DTYPES, Caster
from wanconv.plan import Output, Plan, Step
from wanconv.tensors import DTYPES, ModelTensor, Piece, TensorRef

RUN = 1 << 19  # source elements read at a time: 2 MB of fp32, which the cast still finds in the cache


class NeedsFallback(Exception):
    """A value exceeds its rule's format, and the rule names a fallback. Never leaves the convert verb."""


class Sources:
    """The source files, each opened once; reads on any thread."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read_into(self, ref: TensorRef, first: int, view: memoryview) -> None:
        """Fills `view` with the tensor's bytes from its `first` element on; raises InputError where the file ends."""
        offset = ref.offset + first * DTYPES[ref.dtype].itemsize
        try:
            descriptor = self._open(ref.file)
            while len(view):
                count = os.preadv(descriptor, [view], offset)
                if count == 0:
                    raise InputError(
                        f"{ref.file} ends inside {ref.name}", "get the file again: it changed while it was read"
                    )
                view, offset = view[count:], offset + count
        except OSError as error:
            raise InputError(f"{ref.file} cannot be read: {error.strerror}", "check the disk it is on") from error

    def read_elements(self, tensor: ModelTensor, first: int, view: memoryview) -> None:
        """Fills `view` with the tensor's bytes from its `first` element on, as they are on disk."""
        itemsize = DTYPES[tensor.dtype].itemsize
        count, at = len(view) // itemsize, 0
        for piece in tensor.pieces:
            low, high = max(first, at), min(first + count, at + piece.count)
            if low < high:
                part = view[(low - first) * itemsize : (high - first) * itemsize]
                self.read_into(piece.ref, piece.start + low - at, part)
            at += piece.count

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class Reader:
    """Reads runs of a model's canonical tensors through scratch memory of its own; one per thread."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._scratch = bytearray(RUN * 8)

    def values(self, tensor: ModelTensor, first: int, count: int) -> torch.Tensor:
        """Returns elements [first, first + count), at most RUN, in the source's dtype; valid until the next call."""
        if tensor.transposed:
            return self._turned(tensor)[first : first + count]
        dtype = DTYPES[tensor.dtype]
        self._sources.read_elements(tensor, first, memoryview(self._scratch)[: count * dtype.itemsize])
        return torch.frombuffer(self._scratch, dtype=TORCH_DTYPES[dtype.name], count=count)

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


class Mover:
    """Fills the payload of a plan's outputs. Use as a context: it holds the source files open."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sources = Sources()
        self._local = threading.local()

    def __enter__(self) -> "Mover":
        torch.set_num_threads(1)  # the writer's threads are the parallelism
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sources.close()

    def confirm(self) -> None:
        """Has torch itself read the tables of .pth files, and compares tied copies with the tensor that is written."""
        for component in self._plan.model.components.values():
            if component.part.container == "pth":
                for file in component.part.files:
                    path = self._plan.model.checkpoint.root / file
                    pth.confirm(path, component.part.tensors)
            for copy, canonical in component.tied:
                self._compare(copy, component.tensors[canonical])

    def fill(self, key: str, start: int, view: memoryview) -> None:
        """Puts the bytes of an output tensor, from byte `start` on, into `view`."""
        output = self._plan.outputs[key]
        itemsize = DTYPES[output.slot.dtype].itemsize
        first, count = start // itemsize, len(view) // itemsize
        if output.transposed:
            self._fill_turned(output, first, view)
            return
        at = 0
        for step in output.steps:
            low, high = max(first, at), min(first + count, at + step.tensor.numel)
            if low < high:
                self._fill_step(step, low - at, view[(low - first) * itemsize : (high - first) * itemsize])
            at += step.tensor.numel

    def overflowing(self) -> frozenset[str]:
        """Returns the tensors whose values exceed their format and whose rule names a fallback: one pass over those."""
        reader, caster = self._tools()
        return frozenset(
            step.tensor.name
            for step in self._plan.steps
            if step.fallback is not None
            and any(
                caster.amax(reader.values(step.tensor, start, count), step.tensor.name, start)
                > DTYPES[step.dtype].largest
                for start, count in runs(0, step.tensor.numel)
            )
        )

    def _tools(self) -> tuple[Reader, Caster]:
        if not hasattr(self._local, "tools"):
            self._local.tools = Reader(self._sources), Caster()
        tools: tuple[Reader, Caster] = self._local.tools
        return tools

    def _fill_step(self, step: Step, first: int, view: memoryview) -> None:
        reader, caster = self._tools()
        tensor, out = step.tensor, torch.frombuffer(view, dtype=TORCH_DTYPES[step.dtype])
        if step.dtype == tensor.dtype and not tensor.transposed:
            self._sources.read_elements(tensor, first, view)
            caster.check(out, tensor.name, first)
            return
        try:
            for start, count in runs(first, out.numel()):
                values = reader.values(tensor, start, count)
                caster.cast(values, out[start - first : start - first + count], tensor.name, start)
        except Overflow:
            if step.fallback is None:
                raise
            raise NeedsFallback(tensor.name) from None

    def _fill_turned(self, output: Output, first: int, view: memoryview) -> None:
        """Writes the transpose of a canonical tensor: made whole, because those are small."""
        (step,) = output.steps
        dtype = TORCH_DTYPES[output.slot.dtype]
        whole = bytearray(output.slot.nbytes)
        self._fill_step(step, 0, memoryview(whole))
        values = torch.frombuffer(whole, dtype=dtype).view(step.tensor.shape).t().contiguous().view(-1)
        count = len(view) // DTYPES[output.slot.dtype].itemsize
        torch.frombuffer(view, dtype=dtype).copy_(values[first : first + count])

    def _compare(self, copy: TensorRef, tensor: ModelTensor) -> None:
        """Raises InputError where a tied copy differs from the tensor that stands for both."""
        twin = replace(tensor, pieces=(Piece(copy, 0, copy.numel),))
        (reader, caster), other = self._tools(), Reader(self._sources)
        if copy.dtype != tensor.dtype or any(
            caster.first_violation(reader.values(tensor, *run), other.values(twin, *run))[0]
            for run in runs(0, tensor.numel)
        ):
            raise InputError(
                f"{copy.file}: {copy.name} differs from {tensor.pieces[0].ref.name}, and clients use one for both",
                "remove the wrong one from the file",
            )
