"""Scaled formats: a weight is divided by a float32 scale before it is rounded, and multiplied by it when it is read.

    scale = max(|w|) / largest        of the tensor, or of each row of axis 0
    q     = round(clamp(w / scale))   to nearest, ties to even
    w'    = float32(q) * scale        as every client decodes it

`largest` is 448 in float8_e4m3fn, 57344 in float8_e5m2 and 127 in int8, which is symmetric: -128 is never written. A
row of zeros takes scale 1 and stays zeros. No scale is below 2 ** -100: numbers that small would leave the products too
few bits, and no model has them.

The worst error of an element is half a step of its scaled grid,

    bound(w) = scale * h(w / scale) * (1 + 2 ** -13)

with h half the spacing of the storage's numbers (0.5 in int8, `plain` for floats); the last factor is what float32 may
lose in quotient and product. Scales are found on whole rows: runs here are (rows, columns), and a tensor's scale comes
from the peaks of its rows.

Sources: OFP8 1.0 for the grids; comfy_kitchen, torchao and LightX2V (families/packings.py) for the decode.
"""

from collections.abc import Iterator
from math import inf, isfinite, isnan

import torch
from torch import Tensor

from wanconv.formats.plain import (
    CHUNK,
    NAMES,
    TORCH_DTYPES,
    Violation,
    half_spacing,
    power,
    refusal,
    widen,
)
from wanconv.formats.plain import (
    decode as widened,
)
from wanconv.tensors import DTYPES

LARGEST = {"fp8_e4m3fn": 448.0, "fp8_e5m2": 57344.0, "int8": 127.0}
_SMALLEST_SCALE = 2.0**-100
_SLACK = 1 + 2.0**-13


class Scaler:
    """Measures, encodes and compares rows through scratch memory of its own (3.5 MB); one per worker thread.

    Every run is a contiguous 2-D tensor of whole rows, or of a part of one; `scales` holds one number, or one per row.
    """

    def __init__(self) -> None:
        self._wide = torch.empty(CHUNK, dtype=torch.float32)
        self._other = torch.empty(CHUNK, dtype=torch.float32)
        self._bits = torch.empty(CHUNK, dtype=torch.int32)
        self._half = torch.empty(CHUNK, dtype=torch.int16)

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

    def first_violation(
        self, source: Tensor, stored: Tensor, scales: Tensor, start: int = 0
    ) -> tuple[Violation | None, float]:
        """Returns the first element of `stored` that is further from its source than its bound, and the largest error /
        bound seen; NaN and infinity on either side, in a scale too, are violations, ratio inf."""
        worst = 0.0
        for rows in _pieces(source):
            ratio = self._ratio(source[rows], stored[rows], _column(scales, rows))
            worst = max(worst, ratio)
            if ratio > 1.0:
                first = start + rows.start * source.shape[1]
                return _violation(source[rows], stored[rows], _column(scales, rows), first), worst
        return None, worst

    def _ratio(self, source: Tensor, stored: Tensor, scales: Tensor) -> float:
        storage = NAMES[stored.dtype]
        weight, value = self._widened(source, self._wide), self._scratch(self._other, source)
        _decode(stored, scales, value, self._half)
        error = value.sub_(weight)
        if storage == "int8":
            step = scales * 0.5
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


def scales_of(peaks: Tensor, storage: str) -> Tensor:
    """Returns the float32 scale of each peak, the largest |w| that a scale covers."""
    scales = (peaks / LARGEST[storage]).clamp_(min=_SMALLEST_SCALE)
    return scales.masked_fill_(peaks == 0, 1.0)


def encode(weight: Tensor, storage: str, scale: str, name: str) -> tuple[Tensor, Tensor]:
    """Returns the payload of a 2-D weight and its scales, as many as `scale` ("tensor", "row") says."""
    scaler, out = Scaler(), torch.empty(weight.shape, dtype=TORCH_DTYPES[storage])
    peaks = scaler.peaks(weight.contiguous(), name)
    scales = scales_of(peaks if scale == "row" else peaks.max().view(1), storage)
    scaler.encode(weight.contiguous(), scales, out)
    return out, scales


def decode(stored: Tensor, scales: Tensor) -> Tensor:
    """Returns the float32 values of a 2-D payload: float32(q) * scale."""
    out = torch.empty(stored.shape, dtype=torch.float32)
    half = torch.empty(CHUNK, dtype=torch.int16)
    for rows in _pieces(stored):
        _decode(stored[rows], _column(scales, rows), out[rows], half)
    return out


def bound(weight: Tensor, scales: Tensor, storage: str) -> Tensor:
    """Returns the worst |w - decode(encode(w))| per element of a 2-D float32 weight."""
    column = scales.view(-1, 1)
    if storage == "int8":
        return (column * 0.5).expand(weight.shape) * _SLACK
    spacing = power(weight / column, DTYPES[storage], torch.empty(weight.shape, dtype=torch.int32))
    return spacing.mul_(column).mul_(half_spacing(DTYPES[storage]) * _SLACK)


def _decode(stored: Tensor, scales: Tensor, out: Tensor, half: Tensor) -> None:
    if stored.dtype == torch.int8:
        out.copy_(stored)
    else:
        widen(stored, out, half[: stored.numel()].view(stored.shape))
    out.mul_(scales)


def _violation(source: Tensor, stored: Tensor, scales: Tensor, start: int) -> Violation:
    """Returns the first element of a run that breaks its bound."""
    weight, value = widened(source), decode(stored, scales.reshape(-1))
    limit = bound(weight, scales.reshape(-1), NAMES[stored.dtype])
    bad = ~((weight - value).abs() <= limit) | ~torch.isfinite(weight)
    index = int(bad.reshape(-1).int().argmax())
    of_it = (each.reshape(-1)[index].item() for each in (weight, value, limit))
    return Violation(start + index, *of_it)


def _pieces(run: Tensor) -> Iterator[slice]:
    """Yields slices of whole rows that fit the scratch memory."""
    step = max(1, CHUNK // run.shape[1])
    for at in range(0, run.shape[0], step):
        yield slice(at, min(run.shape[0], at + step))


def _column(scales: Tensor, rows: slice) -> Tensor:
    return scales.view(-1, 1) if scales.numel() == 1 else scales[rows].view(-1, 1)
