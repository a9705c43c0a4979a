"""Moves the numbers of a plan: casts runs of source elements into output blocks, on any thread."""

import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from types import TracebackType

import torch

from wanconv.errors import InputError, Overflow
from wanconv.planning import Output, Plan, Step
from wanconv.quantization.codec import Fit, runs
from wanconv.quantization.codecs import Codecs
from wanconv.quantization.plain import TORCH_DTYPES, Caster, decode
from wanconv.report import Finding
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import ModelTensor, Piece
from wanconv.types.tensors import TensorRef
from wanconv.weights.reader import Reader, Sources, TensorNumbers, invalid_scale, refuse_scale
from wanconv.weights.source_files import Files, confirm_file
from wanconv.weights.threads import single_threaded

_FLUSH_SAMPLE = 1 << 13  # elements of each run that are checked for numbers that became zero
_FLUSH_LIMIT = 0.01


class NeedsFallback(Exception):
    """A value exceeds its rule's format, and the rule names a fallback. Never leaves `convert`."""


class TensorEncoder:
    """Fills the payload of a plan's outputs. A context manager: it holds the source files open."""

    def __init__(self, plan: Plan, files: Files | None = None) -> None:
        self._plan = plan
        self._sources = Sources(files)
        self._local = threading.local()
        self._fits: dict[str, Fit] = {}
        self._flushed: dict[str, tuple[int, int]] = {}
        self._counting = threading.Lock()
        self._entered = ExitStack()

    def __enter__(self) -> "TensorEncoder":
        self._entered.enter_context(closing(self._sources))
        self._entered.enter_context(single_threaded())  # the writer's threads are the parallelism
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def confirm(self) -> None:
        """Reads the tables of .pth files with torch, compares tied copies with the written tensor, and checks
        every scale."""
        codecs = Codecs()
        for component in self._plan.model.components.values():
            for file in component.part.files:
                path = self._plan.model.checkpoint.root / file
                confirm_file(component.part, path, path)
            for copy, canonical in component.tied:
                self.compare_tied(copy, component.tensors[canonical])
            for tensor in component.tensors.values():
                refuse_scale(tensor, invalid_scale(self._sources, tensor, codecs))

    def fill(self, key: str, start: int, view: memoryview) -> None:
        """Puts the bytes of an output tensor, from byte `start` on, into `view`."""
        output = self._plan.outputs[key]
        if output.scales_of is not None:
            self._fill_companion(output, output.scales_of, start, view)
            return
        if output.transposed:
            self._fill_transposed(output, start, view)
            return
        at, end = 0, start + len(view)
        for step in output.steps:
            nbytes = DTYPES[step.dtype].nbytes(step.tensor.numel)
            low, high = max(start, at), min(end, at + nbytes)
            if low < high:
                self._fill_bytes(step, low - at, view[low - start : high - start])
            at += nbytes

    def findings(self) -> list[Finding]:
        """Returns a warning for each tensor of which a plain cast turned more than 1 % into zero, the worst first.

        The shares come from a sample of each run that this process has written.
        """
        steps = {step.tensor.name: step for step in self._plan.steps}
        shares = {name: lost / seen for name, (lost, seen) in self._flushed.items() if lost > _FLUSH_LIMIT * seen}
        return [
            Finding(
                "warning",
                name,
                f"about {shares[name]:.0%} of its numbers became zero in {steps[name].format}",
                "give it a format with scales, or a wider one",
            )
            for name in sorted(shares, key=lambda name: (-shares[name], name))
        ]

    def overflowing(self) -> frozenset[str]:
        """Returns the tensors whose values exceed their format and whose rule names a fallback, by one pass over
        these."""
        reader, caster = Reader(self._sources), Caster()
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

    def _tools(self) -> tuple[Reader, Codecs]:
        if not hasattr(self._local, "tools"):
            self._local.tools = Reader(self._sources), Codecs()
        tools: tuple[Reader, Codecs] = self._local.tools
        return tools

    def _fit(self, step: Step) -> Fit:
        fit = self._fits.get(step.tensor.name)
        return fit or self._fits.setdefault(step.tensor.name, Fit(step.tensor.shape, step.rounding))

    def _fill_companion(self, output: Output, step: Step, start: int, view: memoryview) -> None:
        """Fills the bytes of a payload's scales, or of the scale that multiplies them."""
        (reader, codecs), tensor = self._tools(), step.tensor
        if not step.carried:
            part, out = "whole" if output.whole else "scales", torch.frombuffer(view, dtype=torch.uint8)
            numbers = TensorNumbers(reader, tensor)
            codecs.of(step.dtype, step.packing).companion(part, self._fit(step), start, out, numbers)
            return
        scales = reader.scales(tensor)
        ref = tensor.whole if output.whole else tensor.scales
        assert ref is not None
        if ref.nbytes == output.slot.nbytes:
            self._sources.read_into(ref, DTYPES[ref.dtype].numel(start), view)
        else:  # the source has one scale for all rows, the target one per row
            torch.frombuffer(view, dtype=torch.float32).copy_(scales.factors)

    def _fill_bytes(self, step: Step, start: int, view: memoryview) -> None:
        """Fills the bytes of a payload. `view` may cut its first and last unit: those two are encoded whole."""
        dtype, at = DTYPES[step.dtype], 0
        while at < len(view):
            unit, inside = divmod(start + at, dtype.itemsize)
            whole = (len(view) - at) // dtype.itemsize * dtype.itemsize
            if inside or not whole:
                content = memoryview(bytearray(dtype.itemsize))
                self._fill_units(step, unit * dtype.block, content)
                part = content[inside : inside + len(view) - at]
                view[at : at + len(part)] = part
                at += len(part)
            else:
                self._fill_units(step, unit * dtype.block, view[at : at + whole])
                at += whole

    def _fill_units(self, step: Step, first: int, view: memoryview) -> None:
        """Fills the payload of whole units, from element `first` on."""
        (reader, codecs), tensor, dtype = self._tools(), step.tensor, DTYPES[step.dtype]
        codec = codecs.of(step.dtype, step.packing)
        if step.carried or (step.packing is None and step.dtype == tensor.dtype and tensor.as_it_lies):
            self._sources.read_elements(tensor, first, view)
            codec.check(torch.frombuffer(view, dtype=TORCH_DTYPES[step.dtype]), tensor.name, first)
            return
        numbers, fit = TensorNumbers(reader, tensor), self._fit(step)
        counted = codec.flushes and not dtype.holds(DTYPES[tensor.numbers])
        try:
            for start, count in codec.runs(first, dtype.numel(len(view)), tensor.shape[-1] if tensor.shape else 1):
                scales = codec.scales(fit, start, count, numbers)
                values = numbers.run(start, count)
                part = view[dtype.nbytes(start - first) : dtype.nbytes(start - first + count)]
                out = torch.frombuffer(part, dtype=TORCH_DTYPES[step.dtype])
                codec.encode(values, scales, out, tensor.name, start)
                if counted:
                    self._note_flushed(tensor.name, values[:_FLUSH_SAMPLE], out[:_FLUSH_SAMPLE])
        except Overflow:
            if step.fallback is None:
                raise
            raise NeedsFallback(tensor.name) from None

    def _note_flushed(self, name: str, source: torch.Tensor, stored: torch.Tensor) -> None:
        lost = int(((decode(stored) == 0) & (decode(source) != 0)).sum())
        with self._counting:
            so_far, seen = self._flushed.get(name, (0, 0))
            self._flushed[name] = so_far + lost, seen + source.numel()

    def _fill_transposed(self, output: Output, start: int, view: memoryview) -> None:
        """Writes the transpose of a canonical tensor, made at once: these tensors are small."""
        (step,) = output.steps
        dtype = TORCH_DTYPES[output.slot.dtype]
        whole = bytearray(output.slot.nbytes)
        self._fill_units(step, 0, memoryview(whole))
        transposed = torch.frombuffer(whole, dtype=dtype).view(step.tensor.shape).t().contiguous()
        view[:] = transposed.view(-1).view(torch.uint8)[start : start + len(view)].numpy().data

    def compare_tied(self, copy: TensorRef, tensor: ModelTensor) -> None:
        """Raises InputError if a tied copy differs from the tensor that stands for both."""
        twin = replace(tensor, pieces=(Piece(copy, 0, copy.numel),))
        reader, other, caster = Reader(self._sources), Reader(self._sources), Caster()
        if copy.dtype != tensor.dtype or any(
            caster.first_violation(reader.values(tensor, *run), other.values(twin, *run))[0]
            for run in runs(0, tensor.numel)
        ):
            raise InputError(
                f"{copy.file}: {copy.name} differs from {tensor.pieces[0].ref.name}, and clients use one for both",
                "remove the wrong one from the file",
            )
