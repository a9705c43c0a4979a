"""Scaled formats: a weight is divided by a float32 scale before it is rounded, and multiplied by it when it is read.

    scale = max(|w|) / largest        of the tensor, or of each row of axis 0
    q     = round(clamp(w / scale))   to nearest, ties to even
    w'    = float32(q) * scale        as every client decodes it

`largest` is 448 in float8_e4m3fn, 57344 in float8_e5m2 and 127 in int8, which is symmetric: -128 is never written. A
row of zeros gets scale 1 and stays zeros. No scale is below 2 ** -100: smaller ones would leave the products too few
bits, and no model has weights this small.

That is rounding `nearest`. Rounding `mse` multiplies that scale by each of FACTORS and takes the product with the least
squared error sum((w - w') ** 2), the first of equal ones. It is never worse than `nearest`, which is the first factor.

    int8    1 down to 0.2, denser near 1: a finer step for all numbers; the few beyond 127 steps are clipped
    floats  1 up to 2: their step grows with the number, so clipping never pays, and after a factor of two the grid is
            the same again; in between, its binades lie at other numbers

The worst error of an element is half a step of its scaled grid,

    bound(w) = scale * h(w / scale) * (1 + 2 ** -13)

with h half the spacing of the storage's numbers (0.5 in int8, `plain` for floats); the last factor covers float32's
rounding of quotient and product. If `mse` may clip, |w| from 127 * scale to 127 * scale / 0.2 may be off by its
distance from 127 * scale. Scales are found on whole rows: runs here are (rows, columns), and a tensor's scale comes
from the peaks of its rows.

Sources: OFP8 1.0 for the grids; comfy_kitchen, torchao and LightX2V (packings.py) for the decode; the search
for a clipped range with less squared error is that of GPTQ (quant.py: 1 down to 0.2) and of llm-compressor's MSE
observer (1 down to 0.8).
"""

from collections.abc import Iterator
from math import inf, isfinite, isnan

import torch
from torch import Tensor

from wanconv.quantization.codec import Fit, Held, Judge, Numbers, RunJudge, Scales, Violation, row_runs
from wanconv.quantization.plain import CHUNK, NAMES, TORCH_DTYPES, Caster, half_spacing, power, refusal, widen
from wanconv.quantization.plain import decode as widened
from wanconv.quantization.rounding import FACTORS, LARGEST, STRATEGIES, candidates, chosen
from wanconv.types.dtypes import DTYPES
from wanconv.types.tensors import Shape

_SLACK = 1 + 2.0**-13


class Scaler:
    """Measures, encodes and compares rows through scratch memory of its own (6 MB); one per worker thread.

    Every run is a contiguous 2-D tensor of whole rows, or of a part of one; `scales` holds one number, or one per row.
    """

    def __init__(self) -> None:
        self._wide = torch.empty(CHUNK, dtype=torch.float32)
        self._other = torch.empty(CHUNK, dtype=torch.float32)
        self._bits = torch.empty(CHUNK, dtype=torch.int32)
        self._half = torch.empty(CHUNK, dtype=torch.int16)
        self._payload = torch.empty(CHUNK, dtype=torch.uint8)
        self._squares = torch.empty(CHUNK, dtype=torch.float64)

    def peaks(self, source: Tensor, name: str, start: int = 0) -> Tensor:
        """Returns the largest |w| of each row, float32; raises NotFinite, with `start` the run's first element."""
        out = torch.empty(source.shape[0])
        for rows in _pieces(source):
            wide = self._widened(source[rows], self._wide)
            torch.maximum(wide.amax(1), wide.amin(1).neg_(), out=out[rows])
        if not isfinite(out.max().item()):
            raise refusal(source.reshape(-1), DTYPES[NAMES[source.dtype]], name, start)
        return out

    def encode(self, source: Tensor, scales: Tensor, out: Tensor) -> None:
        """Writes the payload of `source`, whose peaks have been measured, into `out`, of its shape."""
        largest = LARGEST[NAMES[out.dtype]]
        for rows in _pieces(source):
            wide = self._widened(source[rows], self._wide)
            scaled = torch.div(wide, _column(scales, rows), out=self._scratch(self._wide, wide)).clamp_(
                -largest, largest
            )
            out[rows].copy_(scaled.round_() if out.dtype == torch.int8 else scaled)

    def squared_errors(self, source: Tensor, scales: Tensor, storage: str) -> Tensor:
        """Returns each row's squared error under each scale, float64 (rows, candidates); `scales` as candidates() has
        them, for each row or for all."""
        out = torch.empty((source.shape[0], scales.shape[1]), dtype=torch.float64)
        for rows in _pieces(source):
            weight = self._weight(source[rows])
            for at in range(scales.shape[1]):
                out[rows, at] = self._squared_error(weight, _column(scales[:, at], rows), storage)
        return out

    def search(self, source: Tensor, peaks: Tensor, storage: str) -> Tensor:
        """Returns the scale of each row, of those with these peaks, that has the least squared error."""
        scales = candidates(peaks, storage)
        errors = torch.full(scales.shape, inf, dtype=torch.float64)
        for rows in _pieces(source):
            weight = self._weight(source[rows])
            for at in range(scales.shape[1]):
                # If clipping the peak alone costs more than another factor in all, it loses; so do smaller ones.
                clipped = (peaks[rows] - scales[rows, at] * LARGEST[storage]).clamp_(min=0.0).double().square_()
                if (clipped >= errors[rows].amin(1)).all():
                    break
                errors[rows, at] = self._squared_error(weight, scales[rows, at : at + 1], storage)
        return chosen(scales, errors)

    def _weight(self, source: Tensor) -> Tensor:
        """Returns rows as float32, in memory that encode and decode do not overwrite."""
        return self._widened(source, self._bits.view(torch.float32))

    def _squared_error(self, weight: Tensor, scales: Tensor, storage: str) -> Tensor:
        payload = self._scratch(self._payload.view(TORCH_DTYPES[storage]), weight)
        self.encode(weight, scales, payload)
        value = self._scratch(self._other, weight)
        _decode(payload, scales, value, self._half)
        error = self._scratch(self._squares, weight).copy_(value.sub_(weight))
        return error.mul_(error).sum(1)

    def first_violation(
        self, source: Tensor, stored: Tensor, scales: Tensor, start: int = 0, *, clips: bool = False
    ) -> tuple[Violation | None, float]:
        """Returns the first element of `stored` that is further from its source than its bound, and the largest error /
        bound seen; NaN and infinity on either side, in a scale too, are violations, ratio inf. `clips`: the scales may
        be those of rounding `mse`."""
        worst = 0.0
        for rows, columns in _parts(source):
            run = source[rows, columns], stored[rows, columns], _column(scales, rows)
            ratio = self._ratio(*run, clips)
            worst = max(worst, ratio)
            if ratio > 1.0:
                return _violation(*run, start + rows.start * source.shape[1] + columns.start, clips), worst
        return None, worst

    def _ratio(self, source: Tensor, stored: Tensor, scales: Tensor, clips: bool) -> float:
        storage = NAMES[stored.dtype]
        weight, value = self._widened(source, self._wide), self._scratch(self._other, source)
        _decode(stored, scales, value, self._half)
        error = value.sub_(weight)
        if storage == "int8":
            step = scales * 0.5
            if clips:
                step = _with_clips(weight, scales, self._scratch(self._bits.view(torch.float32), weight))
        else:
            scaled = torch.div(weight, scales, out=self._scratch(self._wide, weight))
            spacing = power(scaled, DTYPES[storage], self._bits[: scaled.numel()].view(scaled.shape))
            step = spacing.mul_(scales).mul_(half_spacing(DTYPES[storage]))
        low, high = torch.aminmax(error.div_(step))
        ratio = max(-low.item(), high.item()) / _SLACK
        return inf if isnan(ratio) else ratio

    def _widened(self, source: Tensor, scratch: Tensor) -> Tensor:
        if source.dtype == torch.float32:
            return source
        return widen(source, self._scratch(scratch, source), self._scratch(self._half, source))

    @staticmethod
    def _scratch(memory: Tensor, like: Tensor) -> Tensor:
        return memory[: like.numel()].view(like.shape)


class Scaled:
    """The codec (codec.py) of a storage dtype with one scale for the `tensor`, or for each `row`."""

    unit = 1
    flushes = False
    stable = False

    def __init__(self, storage: str, scale: str) -> None:
        self._storage, self._by_row = storage, scale == "row"
        self._scaler, self._caster = Scaler(), Caster()

    def runs(self, first: int, count: int, columns: int) -> Iterator[tuple[int, int]]:
        return row_runs(first, count, columns)

    def scales(self, fit: Fit, first: int, count: int, numbers: Numbers) -> Scales:
        columns = fit.shape[1]
        return Scales(self._factors(fit, first // columns, max(1, count // columns), numbers))

    def encode(self, values: Tensor, scales: Scales, out: Tensor, name: str, start: int) -> None:
        if self._by_row:
            shape = (scales.factors.numel(), -1)
            self._scaler.encode(values.view(shape), scales.factors, out.view(shape))
            return
        for at in range(0, values.numel(), CHUNK):
            piece, part = (run[at : at + CHUNK].view(1, -1) for run in (values, out))
            self._scaler.encode(piece, scales.factors, part)

    def companion(self, part: str, fit: Fit, start: int, out: Tensor, numbers: Numbers) -> None:
        factors = out.view(torch.float32)
        factors.copy_(self._factors(fit, start // factors.itemsize, factors.numel(), numbers))

    def check(self, payload: Tensor, name: str, start: int) -> None:
        self._caster.check(payload, name, start)

    def read(self, scales: Tensor | None, whole: Tensor | None, shape: Shape) -> Scales:
        assert scales is not None
        return Scales(scales.view(torch.float32))

    def invalid(self, scales: Scales) -> float | None:
        return odd_scale(scales.factors)

    def decode(self, payload: Tensor, scales: Scales, first: int, columns: int) -> Tensor:
        values = torch.empty(payload.numel(), dtype=torch.float32)
        for start, count in row_runs(first, payload.numel(), columns):
            part = slice(start - first, start - first + count)
            factors = _of_rows(scales.factors, start, count, columns)
            values[part] = decode(payload[part].view(-1, min(count, columns)), factors).view(-1)
        return values

    def judge(self, scales: Scales, columns: int, clips: bool) -> Judge:
        def compare(source: Tensor, payload: Tensor, start: int) -> tuple[Violation | None, float]:
            shape = (-1, min(source.numel(), columns))
            factors = _of_rows(scales.factors, start, source.numel(), columns)
            return self._scaler.first_violation(source.view(shape), payload.view(shape), factors, start, clips=clips)

        return RunJudge(compare)

    def _factors(self, fit: Fit, row: int, count: int, numbers: Numbers) -> Tensor:
        """Returns the scales of rows [row, row + count), or the only one, measured from `row` on."""
        rounding = STRATEGIES[fit.rounding](self._scaler, self._storage)
        if self._by_row:
            return rounding.of_rows(fit, row, count, numbers)
        return fit.once("scale", lambda: rounding.of_weight(fit, row, numbers))


def _of_rows(factors: Tensor, start: int, count: int, columns: int) -> Tensor:
    """Returns the scales of a run of row_runs(), or the only one."""
    row = start // columns
    return factors if factors.numel() == 1 else factors[row : row + max(1, count // columns)]


def encode(weight: Tensor, storage: str, scale: str, name: str, rounding: str = "nearest") -> tuple[Tensor, Tensor]:
    """Returns the payload of a 2-D weight and its scales, as many as `scale` ("tensor", "row") says."""
    scaler, out = Scaler(), torch.empty(weight.shape, dtype=TORCH_DTYPES[storage])
    weight = weight.contiguous()
    fit, numbers, found = Fit(tuple(weight.shape), rounding), Held(name, weight), STRATEGIES[rounding](scaler, storage)
    rows = weight.shape[0]
    scales = found.of_rows(fit, 0, rows, numbers) if scale == "row" else found.of_weight(fit, 0, numbers)
    scaler.encode(weight, scales, out)
    return out, scales


def decode(stored: Tensor, scales: Tensor) -> Tensor:
    """Returns the float32 values of a 2-D payload: float32(q) * scale."""
    out = torch.empty(stored.shape, dtype=torch.float32)
    half = torch.empty(CHUNK, dtype=torch.int16)
    for rows, columns in _parts(stored):
        _decode(stored[rows, columns], _column(scales, rows), out[rows, columns], half)
    return out


def odd_scale(scales: Tensor) -> float | None:
    """Returns the first scale that is not a positive finite number; None if all are valid."""
    odd = scales[~((scales > 0) & torch.isfinite(scales))]
    return odd[0].item() if len(odd) else None


def bound(weight: Tensor, scales: Tensor, storage: str, *, clips: bool = False) -> Tensor:
    """Returns the worst |w - decode(encode(w))| per element of a 2-D float32 weight."""
    column = scales.view(-1, 1)
    if storage == "int8":
        steps = _with_clips(weight, column, torch.empty_like(weight)) if clips else (column * 0.5).expand(weight.shape)
        return steps * _SLACK
    spacing = power(weight / column, DTYPES[storage], torch.empty(weight.shape, dtype=torch.int32))
    return spacing.mul_(column).mul_(half_spacing(DTYPES[storage]) * _SLACK)


def _decode(stored: Tensor, scales: Tensor, out: Tensor, half: Tensor) -> None:
    if stored.dtype == torch.int8:
        out.copy_(stored)
    else:
        widen(stored, out, half[: stored.numel()].view(stored.shape))
    out.mul_(scales)


def _with_clips(weight: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Returns in `out` an int8 weight's worst error with a scale that clips: half a step, or the distance beyond the
    last."""
    last = scales * LARGEST["int8"]
    beyond = torch.abs(weight, out=out).sub_(last)
    beyond.masked_fill_(beyond > last * (_SLACK / FACTORS["int8"][-1] - 1), 0.0)
    return torch.maximum(beyond, scales * 0.5, out=out)


def _violation(source: Tensor, stored: Tensor, scales: Tensor, start: int, clips: bool) -> Violation:
    """Returns the first element of a run that breaks its bound."""
    weight, value = widened(source), decode(stored, scales.reshape(-1))
    limit = bound(weight, scales.reshape(-1), NAMES[stored.dtype], clips=clips)
    bad = ~((weight - value).abs() <= limit) | ~torch.isfinite(weight)
    index = int(bad.reshape(-1).int().argmax())
    of_it = (each.reshape(-1)[index].item() for each in (weight, value, limit))
    return Violation(start + index, *of_it)


def _pieces(run: Tensor) -> Iterator[slice]:
    """Yields slices of whole rows that fit the scratch memory."""
    step = max(1, CHUNK // run.shape[1])
    for at in range(0, run.shape[0], step):
        yield slice(at, min(run.shape[0], at + step))


def _parts(run: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields (rows, columns) of the same; a third-party row may be longer than the scratch memory."""
    for rows in _pieces(run):
        for at in range(0, run.shape[1], CHUNK):
            yield rows, slice(at, at + CHUNK)


def _column(scales: Tensor, rows: slice) -> Tensor:
    return scales.view(-1, 1) if scales.numel() == 1 else scales[rows].view(-1, 1)
