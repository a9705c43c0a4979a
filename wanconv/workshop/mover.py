"""Moves the numbers of a plan: casts runs of source elements into output blocks, on any thread."""

import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from types import TracebackType

import torch

from wanconv.errors import InputError, Overflow
from wanconv.formats import blocks, microscaled
from wanconv.formats.blocks import Blocker
from wanconv.formats.microscaled import Microscaler
from wanconv.formats.plain import TORCH_DTYPES, Caster, decode
from wanconv.formats.scaled import Scaler, scales_of
from wanconv.plan import Output, Plan, Step
from wanconv.report import Finding
from wanconv.tensors import DTYPES, TILE, ModelTensor, Piece, TensorRef
from wanconv.workshop.reader import Reader, Sources, confirm_scale, odd_scale, row_runs, runs, sound_scales
from wanconv.workshop.scales import Peaks, Searches
from wanconv.workshop.source_files import Files, confirm_file
from wanconv.workshop.threads import single_threaded

_FLUSH_SAMPLE = 1 << 13  # elements of each run that are looked at for numbers that became zero
_FLUSH_LIMIT = 0.01


class NeedsFallback(Exception):
    """A value exceeds its rule's format, and the rule names a fallback. Never leaves the convert verb."""


class Mover:
    """Fills the payload of a plan's outputs. Use as a context: it holds the source files open."""

    def __init__(self, plan: Plan, files: Files | None = None) -> None:
        self._plan = plan
        self._sources = Sources(files)
        self._local = threading.local()
        self._peaks = Peaks()
        self._searches = Searches(self._peaks)
        self._flushed: dict[str, tuple[int, int]] = {}
        self._counting = threading.Lock()
        self._entered = ExitStack()

    def __enter__(self) -> "Mover":
        self._entered.enter_context(closing(self._sources))
        self._entered.enter_context(single_threaded())  # the writer's threads are the parallelism
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def confirm(self) -> None:
        """Has torch itself read the tables of .pth files, compares tied copies with what is written, and looks
        at every scale."""
        for component in self._plan.model.components.values():
            for file in component.part.files:
                path = self._plan.model.checkpoint.root / file
                confirm_file(component.part, path, path)
            for copy, canonical in component.tied:
                self.compare_tied(copy, component.tensors[canonical])
            for tensor in component.tensors.values():
                confirm_scale(tensor, odd_scale(self._sources, tensor))

    def fill(self, key: str, start: int, view: memoryview) -> None:
        """Puts the bytes of an output tensor, from byte `start` on, into `view`."""
        output = self._plan.outputs[key]
        if output.scales_of is not None:
            self._fill_scales(output, output.scales_of, start, view)
            return
        if DTYPES[output.step.dtype].block > 1:
            self._fill_blocks(output.step, start, view)
            return
        dtype = DTYPES[output.slot.dtype]
        first, count = dtype.numel(start), dtype.numel(len(view))
        if output.transposed:
            self._fill_turned(output, first, view)
            return
        at = 0
        for step in output.steps:
            low, high = max(first, at), min(first + count, at + step.tensor.numel)
            if low < high:
                self._fill_step(step, low - at, view[dtype.nbytes(low - first) : dtype.nbytes(high - first)])
            at += step.tensor.numel

    def findings(self) -> list[Finding]:
        """Returns a warning for every tensor of which a plain cast made more than 1 % zero, the worst first.

        A sample of each run is counted, of those that this run of the program has written.
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
        """Returns the tensors whose values exceed their format and whose rule names a fallback: one pass over those."""
        reader, caster, _, _ = self._tools()
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

    def _tools(self) -> tuple[Reader, Caster, Scaler, Blocker]:
        if not hasattr(self._local, "tools"):
            self._local.tools = Reader(self._sources), Caster(), Scaler(), Blocker()
        tools: tuple[Reader, Caster, Scaler, Blocker] = self._local.tools
        return tools

    def _microscaler(self, storage: str) -> Microscaler:
        if not hasattr(self._local, "microscalers"):
            self._local.microscalers = {}
        known: dict[str, Microscaler] = self._local.microscalers
        if storage not in known:
            known[storage] = Microscaler(storage)
        return known[storage]

    def _fill_scales(self, output: Output, step: Step, start: int, view: memoryview) -> None:
        assert step.packing is not None
        if step.packing.scale == "block" and not output.whole:
            self._fill_tiles(step, start, view)
            return
        out, fp32 = torch.frombuffer(view, dtype=torch.float32), DTYPES["fp32"]
        out.copy_(
            torch.tensor(self._whole(step, 0)) if output.whole else self._scales(step, fp32.numel(start), len(out))
        )

    def _fill_tiles(self, step: Step, start: int, view: memoryview) -> None:
        """Fills the bytes of the tiles that scales of blocks stand in: those of TILE's rows are found at a time."""
        tensor, out = step.tensor, torch.frombuffer(view, dtype=torch.uint8)
        if step.carried:
            assert tensor.scales is not None
            self._sources.read_into(tensor.scales, start, view)
            confirm_scale(tensor, microscaled.odd_scale(out, step.dtype))
            return
        rows, columns = tensor.shape[0], tensor.shape[1]
        strip = -(-columns // (DTYPES[step.dtype].block * TILE[1])) * TILE[0] * TILE[1]  # bytes of these rows
        whole, end = self._whole(step, start // strip * TILE[0]), start + len(view)
        for at in range(start // strip * strip, end, strip):
            row = at // strip * TILE[0]
            tiles = microscaled.tiled(self._codes(step, row, min(TILE[0], rows - row), whole))
            low, high = max(start, at), min(end, at + strip)
            out[low - start : high - start] = tiles[low - at : high - at]

    def _codes(self, step: Step, row: int, count: int, whole: float) -> torch.Tensor:
        """Returns the scales of the blocks of rows [row, row + count), as bytes."""
        reader, microscaler = self._tools()[0], self._microscaler(step.dtype)
        tensor, columns = step.tensor, step.tensor.shape[1]
        parts = [
            microscaler.scales(reader.values(tensor, start, numel), whole, tensor.name, start)
            for start, numel in runs(row * columns, count * columns)
        ]
        return torch.cat(parts).view(count, -1)

    def _whole(self, step: Step, row: int) -> float:
        """Returns the scale of a tensor's scales of blocks, 1 where its format has none; measured from `row` on."""
        reader, _, scaler, _ = self._tools()
        assert step.packing is not None
        if step.packing.whole is None:
            return 1.0
        if not step.carried:
            return microscaled.whole_of(self._peaks.of_tensor(step.tensor, row, reader, scaler).item())
        return sound_scales(self._sources, step.tensor).item()

    def _scales(self, step: Step, row: int, count: int) -> torch.Tensor:
        """Returns the scales of rows [row, row + count), or the only one."""
        reader, _, scaler, _ = self._tools()
        assert step.packing is not None
        if step.carried:
            scales = sound_scales(self._sources, step.tensor)
            return scales.expand(step.tensor.shape[0])[row : row + count] if step.packing.scale == "row" else scales
        if step.rounding == "mse":
            if step.packing.scale == "row":
                return self._searches.of_rows(step, row, count, reader, scaler)
            return self._searches.of_tensor(step, row, reader, scaler)
        if step.packing.scale == "row":
            return scales_of(self._peaks.of_rows(step.tensor, row, count, reader, scaler), step.dtype)
        return scales_of(self._peaks.of_tensor(step.tensor, row, reader, scaler), step.dtype)

    def _fill_scaled(self, step: Step, first: int, out: torch.Tensor) -> None:
        reader, _, scaler, _ = self._tools()
        columns = step.tensor.shape[1]
        for start, count in row_runs(first, out.numel(), columns):
            scales = self._scales(step, start // columns, max(1, count // columns))
            values = reader.values(step.tensor, start, count).view(-1, min(count, columns))
            scaler.encode(values, scales, out[start - first : start - first + count].view(values.shape))

    def _fill_microscaled(self, step: Step, first: int, out: torch.Tensor) -> None:
        reader, microscaler, tensor = self._tools()[0], self._microscaler(step.dtype), step.tensor
        dtype, whole = DTYPES[step.dtype], self._whole(step, first // step.tensor.shape[1])
        for start, count in runs(first, dtype.numel(len(out))):
            part = out[dtype.nbytes(start - first) :][: dtype.nbytes(count)]
            microscaler.encode(reader.values(tensor, start, count), whole, part, tensor.name, start)

    def _fill_blocks(self, step: Step, start: int, view: memoryview) -> None:
        """Fills the bytes of a tensor in blocks, which `view` may cut at both ends: those two are made whole."""
        dtype, at = DTYPES[step.dtype], 0
        while at < len(view):
            number, inside = divmod(start + at, dtype.itemsize)
            whole = (len(view) - at) // dtype.itemsize * dtype.itemsize
            if inside or not whole:
                block = memoryview(bytearray(dtype.itemsize))
                self._fill_step(step, number * dtype.block, block)
                part = block[inside : inside + len(view) - at]
                view[at : at + len(part)] = part
                at += len(part)
            else:
                self._fill_step(step, number * dtype.block, view[at : at + whole])
                at += whole

    def _fill_step(self, step: Step, first: int, view: memoryview) -> None:
        reader, caster, _, blocker = self._tools()
        tensor, out = step.tensor, torch.frombuffer(view, dtype=TORCH_DTYPES[step.dtype])
        dtype = DTYPES[step.dtype]
        if step.carried:
            self._sources.read_elements(tensor, first, view)
            if step.packing is not None and dtype.block > 1:
                microscaled.check_payload(out, step.dtype, tensor.name, first)
            elif dtype.block > 1:
                blocks.check(out, tensor.name, first)
            caster.check(out, tensor.name, first)
            return
        if step.packing is not None and dtype.block > 1:
            self._fill_microscaled(step, first, out)
            return
        if step.packing is not None:
            self._fill_scaled(step, first, out)
            return
        if step.dtype == tensor.dtype and tensor.as_it_lies:
            self._sources.read_elements(tensor, first, view)
            caster.check(out, tensor.name, first)
            return
        try:
            for start, count in runs(first, dtype.numel(len(view))):
                values = reader.values(tensor, start, count)
                if dtype.block > 1:
                    blocker.encode(
                        values, out[dtype.nbytes(start - first) :][: dtype.nbytes(count)], tensor.name, start
                    )
                    continue
                stored = out[start - first : start - first + count]
                caster.cast(values, stored, tensor.name, start)
                if not DTYPES[step.dtype].holds(DTYPES[tensor.numbers]):
                    self._note_flushed(tensor.name, values[:_FLUSH_SAMPLE], stored[:_FLUSH_SAMPLE])
        except Overflow:
            if step.fallback is None:
                raise
            raise NeedsFallback(tensor.name) from None

    def _note_flushed(self, name: str, source: torch.Tensor, stored: torch.Tensor) -> None:
        lost = int(((decode(stored) == 0) & (decode(source) != 0)).sum())
        with self._counting:
            so_far, seen = self._flushed.get(name, (0, 0))
            self._flushed[name] = so_far + lost, seen + source.numel()

    def _fill_turned(self, output: Output, first: int, view: memoryview) -> None:
        """Writes the transpose of a canonical tensor: made whole, because those are small."""
        (step,) = output.steps
        dtype = TORCH_DTYPES[output.slot.dtype]
        whole = bytearray(output.slot.nbytes)
        self._fill_step(step, 0, memoryview(whole))
        values = torch.frombuffer(whole, dtype=dtype).view(step.tensor.shape).t().contiguous().view(-1)
        count = DTYPES[output.slot.dtype].numel(len(view))
        torch.frombuffer(view, dtype=dtype).copy_(values[first : first + count])

    def compare_tied(self, copy: TensorRef, tensor: ModelTensor) -> None:
        """Raises InputError where a tied copy differs from the tensor that stands for both."""
        twin = replace(tensor, pieces=(Piece(copy, 0, copy.numel),))
        (reader, caster, _, _), other = self._tools(), Reader(self._sources)
        if copy.dtype != tensor.dtype or any(
            caster.first_violation(reader.values(tensor, *run), other.values(twin, *run))[0]
            for run in runs(0, tensor.numel)
        ):
            raise InputError(
                f"{copy.file}: {copy.name} differs from {tensor.pieces[0].ref.name}, and clients use one for both",
                "remove the wrong one from the file",
            )
