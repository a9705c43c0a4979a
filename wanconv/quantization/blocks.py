"""GGUF's Q8_0: along a row, every 32 numbers share a scale, which precedes them.

    d  = max(|w|) / 127 of the block, in float32
    q  = round(w * (1 / d))           to nearest, ties away from zero; 0 where d is so small that 1 / d is infinite
    w' = float32(q) * float32(fp16(d))

A block is fp16(d), little-endian, and 32 times int8: 34 bytes, bit for bit as gguf and ggml write it.
fp16(d) may be off by half the spacing h of fp16's numbers at d. This error is multiplied by q, so the worst error is

    bound(w) = (|w| * h / d + (d + h) / 2) * (1 + 2 ** -14)

The last factor covers float32's rounding of quotient and product. |w| above 127 * 65504 is refused: no fp16 scale
reaches it.

Source: ggml-org/llama.cpp ggml/src/ggml-quants.c quantize_row_q8_0_ref; gguf-py 0.19 gguf/quants.py Q8_0.
"""

from math import inf, isnan

import torch
from torch import Tensor

from wanconv.errors import NotFinite
from wanconv.quantization.codec import Judge, RunJudge, Scales, Unscaled, Violation
from wanconv.quantization.plain import CHUNK, half_spacing, power, refusal, widen
from wanconv.quantization.plain import decode as widened
from wanconv.types.dtypes import DTYPES

_Q8_0 = DTYPES["q8_0"]
_NEARLY_HALF = (
    0.5 - 2.0**-25
)  # the float32 below 0.5: added and cut off, it rounds ties away from zero and nothing else
_SLACK = 1 + 2.0**-14


class Blocker:
    """Encodes and compares runs of whole blocks through scratch memory of its own (3 MB); one per worker thread.

    Every run is a contiguous 1-D tensor; stored ones are the bytes of the blocks. `name` and `start`, the tensor's name
    and the run's first element, are for messages.
    """

    def __init__(self) -> None:
        self._wide = torch.empty(CHUNK, dtype=torch.float32)
        self._other = torch.empty(CHUNK, dtype=torch.float32)
        self._half = torch.empty(CHUNK, dtype=torch.int16)
        self._nearly_half = torch.tensor(_NEARLY_HALF)

    def encode(self, source: Tensor, out: Tensor, name: str, start: int = 0) -> None:
        """Writes the blocks of `source` into `out`; raises NotFinite, and Overflow if fp16 cannot hold a scale."""
        for at in range(0, source.numel(), CHUNK):
            rows = self._rows(source[at : at + CHUNK])
            scales = _scales(rows)
            if not scales.max().item() <= DTYPES["fp16"].largest:
                raise refusal(source, _Q8_0, name, start)
            inverse = scales.reciprocal()
            inverse.masked_fill_(inverse.isinf(), 0.0)
            quotients = torch.mul(rows, inverse, out=self._other[: rows.numel()].view(rows.shape))
            halves = torch.copysign(self._nearly_half, quotients, out=self._wide[: rows.numel()].view(rows.shape))
            blocks = out[_Q8_0.nbytes(at) :][: _Q8_0.nbytes(rows.numel())].view(-1, _Q8_0.itemsize)
            blocks[:, :2].copy_(scales.to(torch.float16).view(torch.uint8))
            blocks.view(torch.int8)[:, 2:].copy_(quotients.add_(halves).trunc_().clamp_(-127.0, 127.0))

    def first_violation(self, source: Tensor, stored: Tensor, start: int = 0) -> tuple[Violation | None, float]:
        """Returns the first element of `stored` that is further from its source than its bound, and the largest error /
        bound seen; NaN and infinity on either side, in a scale too, are violations, ratio inf."""
        worst = 0.0
        for at in range(0, source.numel(), CHUNK):
            weight = source[at : at + CHUNK]
            blocks = stored[_Q8_0.nbytes(at) :][: _Q8_0.nbytes(weight.numel())]
            rows = self._rows(weight)
            error = decode(blocks).view(rows.shape).sub_(rows)
            low, high = torch.aminmax(error.div_(_bound(rows)))
            ratio = max(-low.item(), high.item())
            if isnan(ratio) or ratio > 1.0:
                return _violation(weight, blocks, start + at), inf if isnan(ratio) else ratio
            worst = max(worst, ratio)
        return None, worst

    def _rows(self, piece: Tensor) -> Tensor:
        if piece.dtype != torch.float32:
            piece = widen(piece, self._wide[: piece.numel()], self._half[: piece.numel()])
        return piece.view(-1, _Q8_0.block)


class Q8(Unscaled):
    """The codec (codec.py) of Q8_0: its scales are in the payload."""

    unit = _Q8_0.block
    flushes = False
    stable = True

    def __init__(self) -> None:
        self._blocker = Blocker()

    def encode(self, values: Tensor, scales: Scales, out: Tensor, name: str, start: int) -> None:
        self._blocker.encode(values, out, name, start)

    def check(self, payload: Tensor, name: str, start: int) -> None:
        check(payload, name, start)

    def decode(self, payload: Tensor, scales: Scales, first: int, columns: int) -> Tensor:
        return decode(payload)

    def judge(self, scales: Scales, columns: int, clips: bool) -> Judge:
        return RunJudge(self._blocker.first_violation)


def encode(weight: Tensor, name: str) -> Tensor:
    """Returns the bytes of the blocks of a weight whose rows are whole blocks: (..., columns / 32 * 34)."""
    out = torch.empty(_Q8_0.nbytes(weight.numel()), dtype=torch.uint8)
    Blocker().encode(weight.contiguous().view(-1), out, name)
    return out.view(*weight.shape[:-1], -1)


def decode(stored: Tensor) -> Tensor:
    """Returns the float32 values of the bytes of whole blocks, 1-D."""
    blocks = stored.reshape(-1, _Q8_0.itemsize)
    scales = blocks[:, :2].contiguous().view(torch.float16).float()
    return blocks.view(torch.int8)[:, 2:].float().mul_(scales).view(-1)


def check(stored: Tensor, name: str, start: int = 0) -> None:
    """Raises NotFinite for a scale that is NaN or infinite: nothing else in a block can be invalid."""
    scales = stored.view(-1, _Q8_0.itemsize)[:, :2].contiguous().view(torch.float16).view(-1)
    bad = ~torch.isfinite(scales)
    if bad.any():
        block = int(bad.int().argmax())
        raise NotFinite(
            f"the scale of {name}[{start + block * _Q8_0.block}] is {scales[block].item():.9g}",
            "get the file again and check its digest: no format stores NaN or infinity",
        )


def bound(weight: Tensor) -> Tensor:
    """Returns the worst |w - decode(encode(w))| per element of float32 values, whole blocks."""
    return _bound(weight.reshape(-1, _Q8_0.block)).view(weight.shape)


def _scales(rows: Tensor) -> Tensor:
    """Returns the float32 scale of each block, as a column; NaN or infinity if a block holds one."""
    return torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_()).div_(127.0)


def _bound(rows: Tensor) -> Tensor:
    fp16, scales = DTYPES["fp16"], _scales(rows)
    spacing = power(scales, fp16, torch.empty(scales.shape, dtype=torch.int32)).mul_(half_spacing(fp16))
    spacing.masked_fill_(scales == 0, 0.0)
    smallest = 2.0**-149  # of float32: a block of zeros has no error at all, and 0 / 0 would be none
    limit = rows.abs().mul_(spacing / scales.clamp(min=smallest)).add_((scales + spacing).mul_(0.5))
    return limit.mul_(_SLACK).clamp_(min=smallest)


def _violation(source: Tensor, stored: Tensor, start: int) -> Violation:
    """Returns the first element of a run that breaks its bound."""
    weight, value = widened(source), decode(stored)
    limit = bound(weight)
    bad = ~((weight - value).abs() <= limit) | ~torch.isfinite(weight)
    index = int(bad.int().argmax())
    return Violation(start + index, *(each[index].item() for each in (weight, value, limit)))
