"""Plain casts between float dtypes: encode, decode, and the worst error that a cast may make.

A cast rounds to nearest, ties to even, so it moves a value by at most half the spacing of the target's numbers there:

    bound(w) = 2 ** (max(exponent(w), min_exponent) - mantissa - 1)

with `mantissa` and `min_exponent` of the target (`tensors.DTYPES`); zero if the target holds every source value.
Below 2 ** min_exponent the spacing stays that of the subnormals; nothing is flushed to zero.

Two cases are refused before torch casts, because its behaviour changed between versions (torch 2.12 turns infinity into
448 in float8_e4m3fn): NaN and infinity, in every format, and each finite |w| above the target's largest number. The
limit is that number itself, not the rounding edge half a spacing above it (65505 is refused in fp16, though IEEE
rounding would make it 65504): one documented limit, which a range scan can predict.

A value that changes its dtype goes through float32, which holds fp16, bf16 and both fp8 exactly, so it is rounded once.
float32 does not hold fp64, so fp64 is kept or refused.

Definitions: IEEE 754-2019 binary16, binary32, binary64; bfloat16, the upper half of a binary32; OCP 8-bit Floating
Point Specification (OFP8) 1.0 for E4M3 (no infinities, largest 448, S.1111.111 is NaN) and E5M2.
"""

from collections.abc import Iterator
from math import inf, isfinite, isnan

import torch
from torch import Tensor

from wanconv.errors import NotFinite, Overflow, Refused
from wanconv.quantization import FORMATS
from wanconv.quantization.codec import Judge, RunJudge, Scales, Unscaled, Violation
from wanconv.types.dtypes import DTYPES, DType

# fmt: off
TORCH_DTYPES = {
    "fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
    "int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8,
    "uint64": torch.uint64, "uint32": torch.uint32, "uint16": torch.uint16, "uint8": torch.uint8, "bool": torch.bool,
    **{name: torch.uint8 for name, dtype in DTYPES.items() if dtype.blocked},  # the bytes of their blocks
}
# fmt: on
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items() if not DTYPES[name].blocked}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_EXPONENT = 0x7F800000  # a float32's exponent bits; alone they are 2 ** exponent, or 0 for a subnormal
CHUNK = 1 << 18  # elements: 1 MB as float32, which stays in the cache for the next pass


class Caster:
    """Casts and compares runs of elements through scratch memory of its own (4.5 MB); one per worker thread.

    Every run is a contiguous 1-D tensor; `name` and `start`, the tensor's name and the run's first element, are for
    messages.
    """

    def __init__(self) -> None:
        self._source = torch.empty(CHUNK, dtype=torch.float32)
        self._stored = torch.empty(CHUNK, dtype=torch.float32)
        self._bits = torch.empty(CHUNK, dtype=torch.int64)  # of any width
        self._half = torch.empty(CHUNK, dtype=torch.int16)

    def cast(self, source: Tensor, out: Tensor, name: str, start: int = 0) -> None:
        """Writes `source` into `out`, as long and of the storage dtype; the same dtype is copied bit by bit.

        Raises NotFinite for NaN or infinity and Overflow for |w| above the largest number of out's dtype (`out` is then
        partly written); Refused for fp64, integers and booleans whose dtype would change.
        """
        if source.dtype == out.dtype:
            self.check(source, name, start)
            _as_bits(out).copy_(_as_bits(source))
            return
        target = _dtype(out)
        for piece, part in _chunks(source, out):
            wide = self._wide(piece, part if target.name == "fp32" else self._source)
            if not _amax(wide) <= target.largest:
                raise refusal(source, target, name, start)
            if wide is not part:
                part.copy_(wide)

    def check(self, source: Tensor, name: str, start: int = 0) -> None:
        """Raises NotFinite for NaN or infinity: the only check of `keep` for a run whose bytes are already in place."""
        if source.is_floating_point():
            self.amax(source, name, start)

    def amax(self, source: Tensor, name: str, start: int = 0) -> float:
        """Returns the largest |w| of a float dtype, which shows the formats that would overflow; raises NotFinite."""
        largest = 0.0
        for (piece,) in _chunks(source):
            amax = self._largest(piece)
            if not isfinite(amax):
                raise refusal(source, _dtype(source), name, start)
            largest = max(largest, amax)
        return largest

    def first_violation(self, source: Tensor, stored: Tensor, start: int = 0) -> tuple[Violation | None, float]:
        """Returns the first element of `stored` that its source does not allow, and the largest error / bound seen.

        If the dtype holds every source value, the bits must be the same and the ratio is 0. NaN and infinity on
        either side are violations, ratio inf. Raises Refused for a change of dtype that `cast` refuses.
        """
        worst, at = 0.0, start
        for piece, part in _chunks(source, stored):
            ratio = self._ratio(piece, part)
            worst = max(worst, ratio)
            if ratio > 1.0:
                return _violation(piece, part, at), worst
            at += piece.numel()
        return None, worst

    def _ratio(self, source: Tensor, stored: Tensor) -> float:
        """Returns the largest error / bound of a chunk; inf for NaN, infinity and a difference where the bound is
        zero."""
        target = _dtype(stored)
        if not target.holds(_dtype(source)):
            return self._rounding(source, stored, target)
        if source.dtype != stored.dtype:
            source, stored = self._wide(source, self._source), self._wide(stored, self._stored)
        finite = not source.is_floating_point() or isfinite(self._largest(source))
        return 0.0 if finite and self._same(_as_bits(source), _as_bits(stored)) else inf

    def _same(self, bits: Tensor, others: Tensor) -> bool:
        # three to seven times as fast as torch.equal
        low, high = torch.aminmax(torch.bitwise_xor(bits, others, out=self._bits.view(bits.dtype)[: bits.numel()]))
        return not low.item() and not high.item()

    def _rounding(self, source: Tensor, stored: Tensor, target: DType) -> float:
        weight, value = self._wide(source, self._source), self._wide(stored, self._stored)
        error = torch.sub(weight, value, out=self._stored[: weight.numel()])  # exact for every right cast (Sterbenz)
        spacing = power(weight, target, self._bits.view(torch.int32)[: weight.numel()])
        # A power of two divides exactly, and NaN or infinity on either side becomes NaN or infinity here.
        ratio = _amax(error.div_(spacing)) / half_spacing(target)
        return inf if isnan(ratio) else ratio

    def _largest(self, piece: Tensor) -> float:
        # torch cannot scan fp8; two-byte floats are scanned directly, because widening takes longer than the scan
        return _amax(piece if piece.itemsize > 1 else self._wide(piece, self._source))

    def _wide(self, piece: Tensor, scratch: Tensor) -> Tensor:
        if piece.dtype == torch.float32:
            return piece
        return widen(piece, scratch[: piece.numel()], self._half[: piece.numel()])


class Plain(Unscaled):
    """The codec (codec.py) of a cast: each element is a unit of its own, and there are no scales."""

    flushes = True
    stable = False

    def __init__(self) -> None:
        self._caster = Caster()

    def encode(self, values: Tensor, scales: Scales, out: Tensor, name: str, start: int) -> None:
        self._caster.cast(values, out, name, start)

    def check(self, payload: Tensor, name: str, start: int) -> None:
        self._caster.check(payload, name, start)

    def decode(self, payload: Tensor, scales: Scales, first: int, columns: int) -> Tensor:
        return payload

    def judge(self, scales: Scales, columns: int, clips: bool) -> Judge:
        return RunJudge(self._caster.first_violation)


def encode(weight: Tensor, storage: str, name: str) -> Tensor:
    """Returns `weight`, of any shape, in the storage dtype; raises as Caster.cast does."""
    out = torch.empty(weight.shape, dtype=TORCH_DTYPES[storage])
    Caster().cast(weight.contiguous().view(-1), out.view(-1), name)
    return out


def decode(stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the exact values of any float dtype but fp64, in the same shape; NaN and infinity stay as they are.

    They are float32, or of a narrower `dtype` that holds them all, as fp16 holds both fp8.
    """
    out = torch.empty(stored.shape, dtype=dtype)
    half = torch.empty(CHUNK, dtype=torch.int16)
    for piece, part in _chunks(stored.contiguous().view(-1), out.view(-1)):
        widen(piece, part, half[: piece.numel()])
    return out


def bound(weight: Tensor, source: str, storage: str) -> Tensor:
    """Returns the worst |w - decode(encode(w))| per element: float32, as `weight`, the decoded values of `source`."""
    if DTYPES[storage].holds(DTYPES[source]):
        return torch.zeros_like(weight)
    spacing = power(weight, DTYPES[storage], torch.empty(weight.shape, dtype=torch.int32))
    return spacing.mul_(half_spacing(DTYPES[storage]))


def power(weight: Tensor, target: DType, scratch: Tensor) -> Tensor:
    """Returns 2 ** max(exponent(w), min_exponent) of a float32 tensor, in `scratch` (int32)."""
    return (
        torch.bitwise_and(weight.view(torch.int32), _EXPONENT, out=scratch)
        .view(torch.float32)
        .clamp_(min=2.0**target.min_exponent)
    )


def half_spacing(target: DType) -> float:
    assert target.mantissa is not None
    return 2.0 ** (-target.mantissa - 1)


def widen(piece: Tensor, out: Tensor, half: Tensor) -> Tensor:
    """Returns `out`, the values of a chunk, in its dtype. Shifting fp8 into fp16 is faster than torch's cast."""
    if piece.dtype == torch.float8_e5m2:  # the upper half of a binary16
        half.copy_(piece.view(torch.int8)).bitwise_left_shift_(8)
        return out.copy_(half.view(torch.float16))
    if piece.dtype == torch.float8_e4m3fn:  # S.EEEE.MMM -> S.0EEEE.MMM0000000, whose exponent is 8 lower
        half.copy_(piece.view(torch.int8)).bitwise_left_shift_(7).bitwise_and_(~0x4000)
        out.copy_(half.view(torch.float16)).mul_(256.0)
        return out if _amax(out) < 480.0 else out.masked_fill_(out.abs() == 480.0, float("nan"))
    if piece.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise Refused(f"{NAMES[piece.dtype]} is never cast", "store it as keep")
    return out.copy_(piece)


def _amax(values: Tensor) -> float:
    """Returns the largest |w|; NaN if there is any."""
    low, high = torch.aminmax(values)
    return max(-low.item(), high.item())


def _chunks(*runs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the same stretch of each run, as long as the scratch."""
    assert all(run.shape == runs[0].shape for run in runs)
    for at in range(0, runs[0].numel(), CHUNK):
        yield tuple(run[at : at + CHUNK] for run in runs)


def _as_bits(run: Tensor) -> Tensor:
    return run.view(_BITS[run.itemsize])


def _dtype(run: Tensor) -> DType:
    return DTYPES[NAMES[run.dtype]]


def refusal(source: Tensor, target: DType, name: str, start: int) -> NotFinite:
    """Returns the error for a run that a scan has found bad: the first bad element and how many there are."""
    values = source if source.dtype == torch.float64 else decode(source)
    bad = ~torch.isfinite(values)
    overflow = not bad.any()  # NaN and infinity first: a fallback does not help them
    if overflow:
        bad = values.abs() > target.largest
    index = int(bad.int().argmax())
    at, count = f"{name}[{start + index}] is {values[index].item():.9g}", int(bad.sum())
    more = f" ({count} of {source.numel()} elements from {start} on)"
    if overflow:
        largest = values.abs().max().item()
        floats = [each for each in FORMATS.values() if each.storage and DTYPES[each.storage].is_float]
        roomy = [each.name for each in floats if DTYPES[each.storage or ""].largest >= largest]
        return Overflow(
            f"{at}, above {target.largest:.9g}, the largest {target.name} number{more}",
            f"store it as {' or '.join(roomy)}, for instance by its rule's fallback",
        )
    return NotFinite(f"{at}{more}", "get the file again and check its digest: no format stores NaN or infinity")


def _violation(source: Tensor, stored: Tensor, start: int) -> Violation:
    """Returns the first element of a chunk that breaks its bound."""
    weight, value = _values(source), _values(stored)
    limit = torch.zeros(source.numel())
    if source.dtype == stored.dtype:
        bad = _as_bits(source) != _as_bits(stored)
    elif _dtype(stored).holds(_dtype(source)):
        bad = _as_bits(weight) != _as_bits(value)
    else:
        limit = bound(decode(source), NAMES[source.dtype], NAMES[stored.dtype])
        bad = ~((weight - value).abs() <= limit)
    index = int((bad | ~torch.isfinite(weight)).int().argmax())
    return Violation(start + index, weight[index].item(), value[index].item(), limit[index].item())


def _values(run: Tensor) -> Tensor:
    """Returns a run of any dtype as float64: exact but for 64-bit integers, and slow; for messages."""
    return (decode(run) if run.is_floating_point() and run.itemsize < 8 else run).double()
