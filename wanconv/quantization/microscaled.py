"""MXFP8 and NVFP4: along a row, every few numbers share a scale of eight bits, which is in another tensor.

    mxfp8   s  = 2 ** ceil(log2(max(|w|) / 448)) of 32 numbers       E8M0: the exponent alone, 127 higher
            q  = round(clamp(w / s))                                 E4M3
            w' = float32(q) * s
    nvfp4   t  = max(|w|) / (448 * 6) of the tensor                  float32
            s  = round(max(|w|) / 6 / t) of 16 numbers               E4M3
            q  = round(clamp(w / (t * s)))                           E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign
            w' = float32(q) * (t * s)

All roundings are to nearest, ties to even. Two E2M1 numbers share a byte, the first one in its upper half. A block of
zeros has the scale 0, which decodes to 0; a tensor of zeros has t = 1, and no t is below 2 ** -100. The exponent of an
MXFP8 scale is taken from the bits of a float32 quotient: torchao and comfy-kitchen take a logarithm in float32, which
falls on a power of two from a few units above it, and make zeros of blocks below 448 * 2 ** -127.

The worst error of an element is half a step of its block's grid,

    bound(w) = S * h(w / S)            S = s, or t * s in NVFP4, from the source alone; h: half the spacing there

In NVFP4, where s is small (below 2 ** -6) and so coarse, a number beyond 6 S may be off by its distance from 6 S:
blocks whose largest magnitude is 460,000 times below the tensor's become zeros. The bound is exact in MXFP8, where
every S is a power of two; NVFP4's has a factor (1 + 2 ** -13), for float32's rounding of quotient and product.

Scales are stored in tiles of 128 rows and 4 columns, one after the other, row by row; in a tile, those of rows r, r +
32, r + 64 and r + 96 are neighbours. Padding is zero.

Sources: OCP Microscaling Formats 1.0 (MXFP8, E8M0, E2M1); cuBLAS documentation, "1D Block Quantization" (scales,
rounded up in E8M0) and "1D Block Scaling Factors Layout" (tiles); comfy_kitchen 0.2.40
backends/eager/quantization.py, whose encoding and decoding this is; torchao 0.18 prototype/mx_formats.
"""

from collections.abc import Iterator
from math import inf, isnan

import torch
from torch import Tensor

from wanconv.errors import NotFinite
from wanconv.quantization.codec import Fit, Judge, Numbers, Scales, Violation, runs
from wanconv.quantization.plain import CHUNK, half_spacing, power, refusal, widen
from wanconv.quantization.plain import decode as widened
from wanconv.quantization.rounding import peak_of
from wanconv.quantization.scaled import Scaler
from wanconv.types.dtypes import DTYPES, DType
from wanconv.types.packing import TILE
from wanconv.types.tensors import Shape

_E4M3 = DTYPES["fp8_e4m3fn"]
_E2M1 = DType("e2m1", "", 1, mantissa=1, min_exponent=0, largest=6.0)
_GRIDS = {"mxfp8": _E4M3, "nvfp4": _E2M1}
_SMALLEST_WHOLE = 2.0**-100
_SMALLEST = 2.0**-149  # of float32: a block of zeros has no error at all, and 0 / 0 would be none
_SLACK = {"mxfp8": 1.0, "nvfp4": 1 + 2.0**-13}
_WHOLE_SLACK = 1 + 2.0**-7  # tolerance for a tensor scale that others compute in bf16
_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_PAIRS = torch.tensor([[_NUMBERS[byte >> 4], _NUMBERS[byte & 15]] for byte in range(256)])


class Microscaler:
    """Encodes and compares runs of whole blocks through scratch memory of its own (4 MB); one per worker thread.

    Every run is a contiguous 1-D tensor; payloads and scales are their bytes, and `whole` is NVFP4's scale of the
    tensor, 1 in MXFP8. `name` and `start`, the tensor's name and the run's first element, are for messages.
    """

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self._block, self._grid = DTYPES[storage].block, _GRIDS[storage]
        self._wide = torch.empty(CHUNK, dtype=torch.float32)
        self._other = torch.empty(CHUNK, dtype=torch.float32)
        self._bits = torch.empty(CHUNK, dtype=torch.int32)
        self._half = torch.empty(CHUNK, dtype=torch.int16)

    def scales(self, source: Tensor, whole: float, name: str, start: int = 0) -> Tensor:
        """Returns the bytes of the scales of a run; raises NotFinite, and Overflow if float32 could not hold what is
        read back."""
        starts = range(0, source.numel(), CHUNK)
        peaks = (self._peaks(source[at : at + CHUNK], name, start + at) for at in starts)
        return torch.cat([_codes(each, self.storage, whole) for each in peaks])

    def encode(self, source: Tensor, whole: float, out: Tensor, name: str, start: int = 0) -> None:
        """Writes the payload of a run into `out`; raises as scales() does."""
        nbytes = DTYPES[self.storage].nbytes
        for at in range(0, source.numel(), CHUNK):
            piece = source[at : at + CHUNK]
            part = out[nbytes(at) :][: nbytes(piece.numel())]
            codes = _codes(self._peaks(piece, name, start + at), self.storage, whole)
            rows, steps = self._rows(piece), _steps(codes, self.storage, whole).view(-1, 1)
            if self.storage == "mxfp8":  # a division by a power of two is exact
                inverse = (254 - codes.int()).bitwise_left_shift_(23).view(torch.float32).view(-1, 1)
                scaled = torch.mul(rows, inverse, out=self._other[: rows.numel()].view(rows.shape))
                part.view(torch.float8_e4m3fn).view(rows.shape).copy_(scaled.clamp_(-448.0, 448.0))
                continue
            scaled = torch.div(rows, steps, out=self._other[: rows.numel()].view(rows.shape))
            scaled.masked_fill_(steps == 0, 0.0)
            self._pack(scaled.clamp_(-6.0, 6.0).view(-1), part)

    def first_violation(
        self, source: Tensor, payload: Tensor, codes: Tensor, whole: float, start: int = 0
    ) -> tuple[Violation | None, float]:
        """Returns the first element that is further from its source than its bound, and the largest error / bound seen;
        NaN and infinity on either side, in a scale too, are violations, ratio inf."""
        worst, nbytes = 0.0, DTYPES[self.storage].nbytes
        for at in range(0, source.numel(), CHUNK):
            piece = source[at : at + CHUNK]
            count = piece.numel()
            part = payload[nbytes(at) :][: nbytes(count)]
            scales = codes[at // self._block :][: count // self._block]
            rows = self._rows(piece)
            error = decode(part, scales, self.storage, whole).view(rows.shape).sub_(rows)
            low, high = torch.aminmax(error.div_(self._bound(rows, whole)))
            ratio = max(-low.item(), high.item())
            if isnan(ratio) or ratio > 1.0:
                violation = _violation(piece, part, scales, self.storage, whole, start + at)
                return violation, inf if isnan(ratio) else ratio
            worst = max(worst, ratio)
        return None, worst

    def largest(self, source: Tensor) -> float:
        """Returns the largest |w| of a run; NaN if there is any."""
        pieces = (source[at : at + CHUNK] for at in range(0, source.numel(), CHUNK))
        return torch.stack([_peaks(self._rows(piece)).max() for piece in pieces]).max().item()

    def _peaks(self, piece: Tensor, name: str, start: int) -> Tensor:
        peaks = _peaks(self._rows(piece))
        if not peaks.max().item() <= DTYPES[self.storage].largest:
            raise refusal(piece, DTYPES[self.storage], name, start)
        return peaks

    def _rows(self, piece: Tensor) -> Tensor:
        if piece.dtype != torch.float32:
            piece = widen(piece, self._wide[: piece.numel()], self._half[: piece.numel()])
        return piece.view(-1, self._block)

    def _bound(self, rows: Tensor, whole: float) -> Tensor:
        return _bound(rows, self.storage, whole, self._bits[: rows.numel()].view(rows.shape))

    def _pack(self, scaled: Tensor, out: Tensor) -> None:
        """Writes pairs of E2M1 numbers: 2 x + round(|q| / 2 ** (x - 1)) is the magnitude's code, x the exponent."""
        powers = power(scaled, _E2M1, self._bits[: scaled.numel()])
        signs = self._half[: scaled.numel()].copy_(scaled.signbit()).bitwise_left_shift_(3)
        codes = scaled.abs_().mul_(2.0).div_(powers).round_().to(torch.int16)
        codes.add_(powers.view(torch.int32).bitwise_right_shift_(22).sub_(254)).bitwise_or_(signs)
        out.copy_(codes[::2].bitwise_left_shift_(4).bitwise_or_(codes[1::2]))


class Microscaled:
    """The codec (codec.py) of MXFP8 and NVFP4."""

    flushes = False
    stable = True

    def __init__(self, storage: str) -> None:
        self.unit = DTYPES[storage].block
        self._storage = storage
        self._microscaler, self._scaler = Microscaler(storage), Scaler()

    def runs(self, first: int, count: int, columns: int) -> Iterator[tuple[int, int]]:
        return runs(first, count, self.unit)

    def scales(self, fit: Fit, first: int, count: int, numbers: Numbers) -> Scales:
        return Scales(self._whole(fit, first // fit.shape[1], numbers))

    def encode(self, values: Tensor, scales: Scales, out: Tensor, name: str, start: int) -> None:
        self._microscaler.encode(values, scales.factors.item(), out, name, start)

    def companion(self, part: str, fit: Fit, start: int, out: Tensor, numbers: Numbers) -> None:
        """Scales of blocks stand in tiles: those of a tile's rows are found at a time."""
        rows, columns = fit.shape
        strip = -(-columns // (self.unit * TILE[1])) * TILE[0] * TILE[1]  # bytes of the tiles of these rows
        whole = self._whole(fit, start // strip * TILE[0] if part == "scales" else 0, numbers)
        if part == "whole":
            out.view(torch.float32).copy_(whole)
            return
        end = start + out.numel()
        for at in range(start // strip * strip, end, strip):
            row = at // strip * TILE[0]
            count = min(TILE[0], rows - row)
            codes = [
                self._microscaler.scales(numbers.run(first, numel), whole.item(), numbers.name, first)
                for first, numel in self.runs(row * columns, count * columns, columns)
            ]
            tiles = tiled(torch.cat(codes).view(count, -1))
            low, high = max(start, at), min(end, at + strip)
            out[low - start : high - start] = tiles[low - at : high - at]

    def check(self, payload: Tensor, name: str, start: int) -> None:
        check_payload(payload, self._storage, name, start)

    def read(self, scales: Tensor | None, whole: Tensor | None, shape: Shape) -> Scales:
        assert scales is not None
        codes = untiled(scales, shape[0], shape[1] // self.unit).view(-1)
        return Scales(torch.ones(1) if whole is None else whole.view(torch.float32), codes)

    def invalid(self, scales: Scales) -> float | None:
        assert scales.codes is not None
        return odd_scale(scales.codes, self._storage, scales.factors.item())

    def decode(self, payload: Tensor, scales: Scales, first: int, columns: int) -> Tensor:
        assert scales.codes is not None
        blocks = payload.numel() // DTYPES[self._storage].itemsize
        codes = scales.codes[first // self.unit :][:blocks]
        return decode(payload, codes, self._storage, scales.factors.item())

    def judge(self, scales: Scales, columns: int, clips: bool) -> Judge:
        return _Judge(self._storage, self._microscaler, scales)

    def _whole(self, fit: Fit, row: int, numbers: Numbers) -> Tensor:
        """Returns the scale of the scales: 1 if the format has none, else measured from `row` on."""
        if self._storage != "nvfp4":
            return torch.ones(1)
        return fit.once("whole", lambda: torch.tensor([whole_of(peak_of(fit, row, numbers, self._scaler).item())]))


class _Judge:
    def __init__(self, storage: str, microscaler: Microscaler, scales: Scales) -> None:
        assert scales.codes is not None
        self._storage, self._microscaler, self._codes = storage, microscaler, scales.codes
        self._whole, self._peak = scales.factors.item(), 0.0

    def run(self, source: Tensor, payload: Tensor, start: int) -> tuple[Violation | None, float]:
        block = DTYPES[self._storage].block
        codes = self._codes[start // block :][: source.numel() // block]
        found = self._microscaler.first_violation(source, payload, codes, self._whole, start)
        self._peak = max(self._peak, self._microscaler.largest(source))
        return found

    def fault(self) -> str:
        if self._storage != "nvfp4" or covers(self._whole, self._peak):
            return ""
        return f"has a scale of {self._whole:.9g}, and its largest number asks for {whole_of(self._peak):.9g}"


def whole_of(peak: float) -> float:
    """Returns NVFP4's scale of a tensor with this largest |w|, a float32."""
    if peak == 0.0:
        return 1.0
    return (torch.tensor(peak) / (448.0 * 6.0)).clamp_(min=_SMALLEST_WHOLE).item()


def covers(whole: float, peak: float) -> bool:
    """True if the tensor's scale is at most what its largest |w| needs: then the bound holds for all elements."""
    return peak == 0.0 or 0.0 < whole <= whole_of(peak) * _WHOLE_SLACK


def encode(weight: Tensor, storage: str, name: str) -> tuple[Tensor, Tensor, float]:
    """Returns the payload of a 2-D weight, (rows, bytes), the bytes of its scales, (rows, blocks), and `whole`."""
    scaler, run = Microscaler(storage), weight.contiguous().view(-1)
    whole = whole_of(scaler.largest(run)) if storage == "nvfp4" else 1.0
    out = torch.empty(DTYPES[storage].nbytes(run.numel()), dtype=torch.uint8)
    scaler.encode(run, whole, out, name)
    codes = scaler.scales(run, whole, name)
    return out.view(weight.shape[0], -1), codes.view(weight.shape[0], -1), whole


def decode(payload: Tensor, codes: Tensor, storage: str, whole: float = 1.0) -> Tensor:
    """Returns the float32 values of the bytes of whole blocks and of their scales, 1-D."""
    steps = _steps(codes.reshape(-1), storage, whole).view(-1, 1)
    if storage == "mxfp8":
        values = widened(payload.reshape(-1).view(torch.float8_e4m3fn))
    else:
        values = torch.nn.functional.embedding(payload.reshape(-1).int(), _PAIRS)
    return values.view(-1, DTYPES[storage].block).mul_(steps).view(-1)


def bound(weight: Tensor, storage: str, whole: float = 1.0) -> Tensor:
    """Returns the worst |w - decode(encode(w))| per element of float32 values, whole blocks."""
    rows = weight.reshape(-1, DTYPES[storage].block)
    return _bound(rows, storage, whole, torch.empty(rows.shape, dtype=torch.int32)).view(weight.shape)


def check_payload(payload: Tensor, storage: str, name: str, start: int = 0) -> None:
    """Raises NotFinite for NaN, which E4M3 has but E2M1 does not."""
    if storage == "mxfp8" and (bad := payload.bitwise_and(0x7F) == 0x7F).any():
        at = start + int(bad.int().argmax())
        raise NotFinite(
            f"{name}[{at}] is nan", "get the file again and check its digest: no format stores NaN or infinity"
        )


def odd_scale(codes: Tensor, storage: str, whole: float = 1.0) -> float | None:
    """Returns the first invalid scale: `whole` unless it is positive and finite, or a block's scale that is NaN,
    negative or, in MXFP8, infinity to clients. None if all are valid; zero is valid for a block."""
    if not 0.0 < whole < inf:
        return whole
    bad = codes == 0xFF if storage == "mxfp8" else (codes > 0x80) | (codes == 0x7F)
    return _steps(codes[bad][:1], storage, 1.0).item() if bad.any() else None


def tiled(codes: Tensor) -> Tensor:
    """Returns the bytes of the tiles that (rows, columns) of scales fill, 1-D."""
    rows, columns = (-(-size // tile) for size, tile in zip(codes.shape, TILE, strict=True))
    padded = torch.zeros((rows * TILE[0], columns * TILE[1]), dtype=torch.uint8)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    return padded.view(rows, 4, 32, columns, TILE[1]).permute(0, 3, 2, 1, 4).reshape(-1)


def untiled(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """Returns the (rows, columns) of scales from the bytes of tiles."""
    across = -(-columns // TILE[1])
    grid = tiles.view(-1, across, 32, 4, TILE[1]).permute(0, 3, 2, 1, 4).reshape(-1, across * TILE[1])
    return grid[:rows, :columns].contiguous()


def _peaks(rows: Tensor) -> Tensor:
    """Returns the largest |w| of each block; NaN or infinity if a block holds one."""
    return torch.maximum(rows.amax(1), rows.amin(1).neg_()).abs_()  # no -0


def _codes(peaks: Tensor, storage: str, whole: float) -> Tensor:
    """Returns the bytes of the scales of blocks with these peaks."""
    if storage == "mxfp8":  # the next power of two, from the bits of a positive float32
        bits = (peaks / _E4M3.largest).view(torch.int32)
        return bits.add_(0x7FFFFF).bitwise_right_shift_(23).to(torch.uint8)
    return _quotients(peaks, whole).clamp_(max=_E4M3.largest).to(torch.float8_e4m3fn).view(torch.uint8)


def _quotients(peaks: Tensor, whole: float) -> Tensor:
    """Returns NVFP4's scales of blocks before they are rounded."""
    return (peaks / _E2M1.largest).div_(torch.tensor(whole))


def _steps(codes: Tensor, storage: str, whole: float) -> Tensor:
    """Returns the float32 numbers that a block's payload is multiplied by."""
    if storage == "mxfp8":
        return codes.int().bitwise_left_shift_(23).view(torch.float32)
    return widened(codes.view(torch.float8_e4m3fn)).mul_(torch.tensor(whole))


def _bound(rows: Tensor, storage: str, whole: float, scratch: Tensor) -> Tensor:
    peaks = _peaks(rows)
    steps = _steps(_codes(peaks, storage, whole), storage, whole)
    if storage == "mxfp8":
        spacing = power(rows / steps.clamp(min=_SMALLEST).view(-1, 1), _E4M3, scratch)
        return spacing.mul_(half_spacing(_E4M3)).mul_(steps.view(-1, 1)).clamp_(min=_SMALLEST)
    quotients = _quotients(peaks, whole)
    # a tensor scale that is too small for a block does not widen the bound
    steps = torch.where(quotients > _E4M3.largest * _WHOLE_SLACK, peaks / _E2M1.largest, steps).view(-1, 1)
    spacing = power((rows / steps.clamp(min=_SMALLEST)).clamp_(-6.0, 6.0), _E2M1, scratch)
    limit = spacing.mul_(half_spacing(_E2M1)).mul_(steps)
    coarse = (quotients < 2.0**_E4M3.min_exponent).view(-1, 1)
    beyond = rows.abs().sub_(steps * _E2M1.largest).masked_fill_(~coarse, 0.0)
    return torch.maximum(limit, beyond).mul_(_SLACK[storage]).clamp_(min=_SMALLEST)


def _violation(source: Tensor, payload: Tensor, codes: Tensor, storage: str, whole: float, start: int) -> Violation:
    """Returns the first element of a run that breaks its bound."""
    weight, value = widened(source), decode(payload, codes, storage, whole)
    limit = bound(weight, storage, whole)
    bad = ~((weight - value).abs() <= limit) | ~torch.isfinite(weight)
    index = int(bad.int().argmax())
    return Violation(start + index, *(each[index].item() for each in (weight, value, limit)))
