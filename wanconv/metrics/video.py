"""How far a candidate clip is from its reference, on decoded float frames: PSNR, SSIM, LPIPS, warp error, flicker;
black and frozen frames of one clip.

Two H.264 files cannot be compared like this: their encoder's error is larger than a conversion's. Frames are checked
once, by `clip`, which gives a Clip to every metric or says which frames hold NaN or infinity. Frames must be checked
before they are clamped, because clamping makes infinity a white pixel, and before they become 8-bit, where NaN is a
black one.

Definitions, units and sources: the table in `metrics/__init__.py`. Sums are float64. A value that would be
infinite or undefined is None, which JSON can hold and no threshold accepts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log10, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wanconv.metrics.flow import optical_flow, warp
from wanconv.metrics.perceptual import SMALLEST, Perceptual, distance

Frames = Tensor | npt.NDArray[np.floating[Any]]

LUMA = (0.299, 0.587, 0.114)
BLACK_LUMA, BLACK_SHARE = 0.10, 0.98
FROZEN_CHANGE = 0.001

_TAPS, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_STRIP = 32  # rows of SSIM's maps at a time: 4 MB at a width of 832, which stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames that `clip` has checked: (F, H, W, 3), R'G'B', float32 or float64, finite, within [0, 1]."""

    frames: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        """Yields each frame as (3, H, W)."""
        return (frame.permute(2, 0, 1) for frame in self.frames)


@dataclass(frozen=True, slots=True)
class NonFiniteFrames:
    """NaN or infinity was met, so nothing is measured: in which frames, and in how many of all `count` values."""

    frames: tuple[int, ...]
    values: int
    count: int


@dataclass(frozen=True, slots=True)
class Psnr:
    """psnr_db and psnr_min_db are None if they are infinite: identical clips, no frame that differs."""

    identical: bool
    psnr_db: float | None
    psnr_min_db: float | None
    frames_db: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Ssim:
    """Means over frames, the worst frame, and each frame's luma SSIM."""

    ssim_luma: float
    ssim_luma_min: float
    ssim_rgb: float
    frames_luma: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WarpError:
    """Mean squared difference between each frame and its successor moved back along the reference's motion.

    A negative excess says that the candidate is smoother than its reference, or blurred, or frozen. `measured` is the
    share of pixels whose motion does not leave the frame; the errors are None if there is none.
    """

    warp_error: float | None
    reference_warp_error: float | None
    excess_warp_error: float | None
    measured: float


@dataclass(frozen=True, slots=True)
class Flicker:
    """Mean |frame - previous| of both; the ratio is None for a reference that does not change at all."""

    flicker_ratio: float | None
    change: float
    reference_change: float


@dataclass(frozen=True, slots=True)
class Lpips:
    """Mean over frames, the worst frame, and each frame's LPIPS."""

    lpips: float
    lpips_max: float
    frames_lpips: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NotComputed:
    """A metric without a value, and the reason."""

    metric: str
    reason: str


@dataclass(frozen=True, slots=True)
class VideoComparison:
    """All metrics of two clips. `warp` and `flicker` are None for clips of one frame; frames count from 0."""

    psnr: Psnr
    ssim: Ssim
    warp: WarpError | None
    flicker: Flicker | None
    lpips: Lpips | NotComputed
    black_frames: tuple[int, ...]
    frozen_frames: tuple[int, ...]
    reference_black_frames: tuple[int, ...]
    reference_frozen_frames: tuple[int, ...]


def non_finite(frames: Frames) -> NonFiniteFrames | None:
    """Returns where frames of any range, a decoder's raw output for instance, hold NaN or infinity; None if nowhere."""
    values = _tensor(frames)
    if _all_finite(values):
        return None
    counts = [int((~torch.isfinite(frame)).sum()) for frame in values]
    bad = tuple(index for index, count in enumerate(counts) if count)
    return NonFiniteFrames(bad, sum(counts), values.numel())


def clip(frames: Frames) -> Clip | NonFiniteFrames:
    """Returns the frames (F, H, W, 3) for the metrics below, or where they hold NaN or infinity.

    Raises ValueError for another shape, for integers and for values outside [0, 1].
    """
    values = _tensor(frames)
    if found := non_finite(values):
        return found
    low, high = (value.item() for value in torch.aminmax(values))
    if low < 0.0 or high > 1.0:
        raise ValueError(f"frames lie within [0, 1], and these go from {low:.6g} to {high:.6g}: map and clamp them")
    return Clip(values)


def compare(reference: Clip, candidate: Clip, network: Perceptual | None = None) -> VideoComparison:
    """Returns every metric of two clips, LPIPS if its network is given.

    Raises ValueError if lengths or sizes differ, and below 11 x 11 pixels, SSIM's window.
    """
    moves = len(reference.frames) > 1
    return VideoComparison(
        psnr=psnr(reference, candidate),
        ssim=ssim(reference, candidate),
        warp=warp_error(reference, candidate) if moves else None,
        flicker=flicker(reference, candidate) if moves else None,
        lpips=lpips(reference, candidate, network),
        black_frames=black_frames(candidate),
        frozen_frames=frozen_frames(candidate),
        reference_black_frames=black_frames(reference),
        reference_frozen_frames=frozen_frames(reference),
    )


def psnr(reference: Clip, candidate: Clip) -> Psnr:
    """Returns the PSNR of all frames' pooled squared error, of the worst frame and of each."""
    _check(reference, candidate)
    errors = [_squared_error(one, other) for one, other in zip(reference.frames, candidate.frames, strict=True)]
    pooled = sum(errors) / len(errors)
    return Psnr(pooled == 0.0, _decibel(pooled), _decibel(max(errors)), tuple(map(_decibel, errors)))


def ssim(reference: Clip, candidate: Clip) -> Ssim:
    """Returns the SSIM of luma and the mean of the three channels' SSIM; raises ValueError below 11 x 11 pixels."""
    _check(reference, candidate)
    H, W = reference.frames.shape[1:3]
    if min(H, W) < _TAPS:
        raise ValueError(f"SSIM looks at {_TAPS} x {_TAPS} pixels, and the frames have {H} x {W}")
    luma, rgb = [], []
    for one, other in zip(reference, candidate, strict=True):
        total = torch.zeros(4, dtype=torch.float64, device=one.device)
        for top in range(0, H - _TAPS + 1, _STRIP):
            rows = slice(top, top + _STRIP + _TAPS - 1)
            total += _ssim_map(one[:, rows].double(), other[:, rows].double()).sum(dim=(1, 2))
        *channels, grey = (total / ((H - _TAPS + 1) * (W - _TAPS + 1))).tolist()
        luma.append(grey)
        rgb.append(sum(channels) / 3)
    return Ssim(sum(luma) / len(luma), min(luma), sum(rgb) / len(rgb), tuple(luma))


def warp_error(reference: Clip, candidate: Clip) -> WarpError:
    """Returns both clips' warp errors along the reference's motion; raises ValueError for fewer than two frames."""
    _check_pair(reference, candidate)
    reference_error = error = 0.0
    inside = 0
    for index in range(len(reference.frames) - 1):
        before, after = (frame.permute(2, 0, 1).float() for frame in reference.frames[index : index + 2])
        flow = optical_flow(_luma(before), _luma(after))
        others = (frame.permute(2, 0, 1).float() for frame in candidate.frames[index : index + 2])
        moved, mask = warp(after, flow)
        reference_error += _masked_error(before, moved, mask)
        before, after = others
        error += _masked_error(before, warp(after, flow)[0], mask)
        inside += int(mask.sum())
    pixels = prod(reference.frames.shape[1:3]) * (len(reference.frames) - 1)
    if not inside:
        return WarpError(None, None, None, 0.0)
    error, reference_error = error / (3 * inside), reference_error / (3 * inside)
    return WarpError(error, reference_error, error - reference_error, inside / pixels)


def flicker(reference: Clip, candidate: Clip) -> Flicker:
    """Returns how much both clips change per frame; raises ValueError for fewer than two frames."""
    _check_pair(reference, candidate)
    before, after = _changes(reference), _changes(candidate)
    reference_change, change = sum(before) / len(before), sum(after) / len(after)
    return Flicker(change / reference_change if reference_change else None, change, reference_change)


def black_frames(frames: Clip) -> tuple[int, ...]:
    """Returns the frames in which at least 98 % of the pixels have a luma of 0.10 or less."""
    black = [(_luma(frame) <= BLACK_LUMA).sum().item() / frame[0].numel() for frame in frames]
    return tuple(index for index, share in enumerate(black) if share >= BLACK_SHARE)


def frozen_frames(frames: Clip) -> tuple[int, ...]:
    """Returns the frames that differ from the one before by 0.001 or less on the mean; never the first."""
    return tuple(index for index, change in enumerate(_changes(frames), 1) if change <= FROZEN_CHANGE)


def lpips(reference: Clip, candidate: Clip, network: Perceptual | None = None) -> Lpips | NotComputed:
    """Returns the LPIPS of each pair of frames, or why there is none: wanconv ships no network for it."""
    _check(reference, candidate)
    if network is None:
        return NotComputed("lpips", "not computed: no backbone")
    H, W = reference.frames.shape[1:3]
    if min(H, W) < SMALLEST:
        return NotComputed("lpips", f"not computed: AlexNet takes {SMALLEST} x {SMALLEST} pixels or more")
    frames = tuple(distance(network, one, other) for one, other in zip(reference, candidate, strict=True))
    return Lpips(sum(frames) / len(frames), max(frames), frames)


def _tensor(frames: Frames) -> Tensor:
    """Returns the frames as float32 or float64, without a copy if they already are."""
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))  # torch warns of read-only arrays
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise ValueError(f"frames are (F, H, W, 3), and these are {tuple(frames.shape)}")
    if not frames.is_floating_point():
        raise ValueError(f"frames are floats within [0, 1], and these are {frames.dtype}: 8-bit frames hide NaN")
    return frames if frames.dtype in (torch.float32, torch.float64) else frames.float()


def _all_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _check(reference: Clip, candidate: Clip) -> None:
    one, other = reference.frames.shape, candidate.frames.shape
    if one[0] != other[0]:
        raise ValueError(f"the reference has {one[0]} frames and the candidate {other[0]}: both clips must be as long")
    if one != other:
        raise ValueError(f"the reference has {one[1]} x {one[2]} pixels and the candidate {other[1]} x {other[2]}")


def _check_pair(reference: Clip, candidate: Clip) -> None:
    _check(reference, candidate)
    if len(reference.frames) < 2:
        raise ValueError("one frame does not move: this metric needs two or more")


def _squared_error(one: Tensor, other: Tensor) -> float:
    return (other.double() - one.double()).square_().mean().item()


def _decibel(mse: float) -> float | None:
    return -10.0 * log10(mse) if mse else None


def _luma(frame: Tensor) -> Tensor:
    """Returns (H, W) of (3, H, W)."""
    luma: Tensor = frame[0] * LUMA[0] + frame[1] * LUMA[1] + frame[2] * LUMA[2]
    return luma


def _changes(frames: Clip) -> list[float]:
    """Returns the mean |frame - previous| over pixels and channels, of every frame but the first."""
    return [
        (after - before).abs_().mean(dtype=torch.float64).item()
        for before, after in zip(frames.frames, frames.frames[1:], strict=False)
    ]


def _masked_error(frame: Tensor, moved: Tensor, mask: Tensor) -> float:
    return ((moved - frame).square_() * mask).sum(dtype=torch.float64).item()


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """Returns the SSIM of R, G, B and luma, (4, H - 10, W - 10), of two float64 (3, H, W)."""
    x, y = (torch.cat([frame, _luma(frame)[None]]) for frame in (x, y))
    # Both variances appear as a sum only, and luma's mean is the luma of the means: 14 maps to average instead of 20.
    means = _window(torch.cat([x[:3], y[:3], x * x + y * y, x * y]))
    mx, my = (torch.cat([mean, _luma(mean)[None]]) for mean in (means[:3], means[3:6]))
    squares, products = means[6:10], means[10:]
    mxy, mxx = mx * my, mx * mx + my * my
    similarity: Tensor = (2 * mxy + _C1) * (2 * (products - mxy) + _C2) / ((mxx + _C1) * (squares - mxx + _C2))
    return similarity


def _window(maps: Tensor) -> Tensor:
    """Returns (C, H - 10, W - 10), the Gaussian means of (C, H, W), along one axis and then the other."""
    taps = [exp(-(((tap - _TAPS // 2) / _SIGMA) ** 2) / 2) for tap in range(_TAPS)]
    for axis in (1, 2):
        length = maps.shape[axis] - _TAPS + 1
        total = maps.narrow(axis, 0, length) * (taps[0] / sum(taps))
        for tap in range(1, _TAPS):
            total.add_(maps.narrow(axis, tap, length), alpha=taps[tap] / sum(taps))
        maps = total
    return maps
