"""Moves the numbers of a plan: reads runs of source elements and casts them into output blocks, on any thread."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType

import torch

from wanconv.errors import InputError, Overflow
from wanconv.formats import blocks, scaled
from wanconv.formats.blocks import Blocker
from wanconv.formats.plain import TORCH_DTYPES, Caster, decode
from wanconv.formats.scaled import Scaler, candidates, chosen, scales_of
from wanconv.plan import Output, Plan, Step
from wanconv.report import Finding
from wanconv.tensors import DTYPES, ModelTensor, Piece, TensorRef
from wanconv.workshop.merge import Merger
from wanconv.workshop.source_files import Files, FilesHere, confirm_file

_FLUSH_SAMPLE = 1 << 13  # elements of each run that are looked at for numbers that became zero
_FLUSH_LIMIT = 0.01
RUN = 1 << 19  # source elements read at a time: 2 MB of fp32, which the cast still finds in the cache


class NeedsFallback(Exception):
    """A value exceeds its rule's format, and the rule names a fallback. Never leaves the convert verb."""


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
            descriptor = files.descriptor(ref.file)
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
            return blocks.decode(self.payload(tensor, start, end - start))[first - start :][:count]
        if tensor.packing is None:
            return self.payload(tensor, first, count)
        payload, columns = self.payload(tensor, first, count), tensor.shape[1]
        if self._scales is None or self._scales[0] is not tensor:
            self._scales = tensor, read_scales(self._sources, tensor)
        scales = self._scales[1].expand(tensor.shape[0])
        values = torch.empty(count, dtype=torch.float32)
        for start, numel in row_runs(first, count, columns):
            rows = slice(start // columns, start // columns + max(1, numel // columns))
            part = slice(start - first, start - first + numel)
            values[part] = scaled.decode(payload[part].view(-1, min(numel, columns)), scales[rows]).view(-1)
        return values

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
        yield first, min(rest, end - first)
        first += rest


def read_scales(sources: Sources, tensor: ModelTensor) -> torch.Tensor:
    """Returns the scales of a tensor that has some: one, or one per row."""
    assert tensor.scales is not None
    raw = bytearray(tensor.scales.nbytes)
    sources.read_into(tensor.scales, 0, memoryview(raw))
    return torch.frombuffer(raw, dtype=torch.float32)


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
            for file in component.part.files:
                path = self._plan.model.checkpoint.root / file
                confirm_file(component.part, path, path)
            for copy, canonical in component.tied:
                self.compare_tied(copy, component.tensors[canonical])

    def fill(self, key: str, start: int, view: memoryview) -> None:
        """Puts the bytes of an output tensor, from byte `start` on, into `view`."""
        output = self._plan.outputs[key]
        dtype = DTYPES[output.slot.dtype]
        if dtype.block > 1:
            self._fill_blocks(output.step, start, view)
            return
        first, count = dtype.numel(start), dtype.numel(len(view))
        if output.scales_of is not None:
            out = torch.frombuffer(view, dtype=torch.float32)
            out.copy_(self._scales(output.scales_of, first, count))
            return
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

    def _scales(self, step: Step, row: int, count: int) -> torch.Tensor:
        """Returns the scales of rows [row, row + count), or the only one."""
        reader, caster, scaler, _ = self._tools()
        assert step.packing is not None
        if step.carried:
            scales = read_scales(self._sources, step.tensor)
            caster.check(scales, f"the scales of {step.tensor.name}")
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
            if dtype.block > 1:
                blocks.check(out, tensor.name, first)
            caster.check(out, tensor.name, first)
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
