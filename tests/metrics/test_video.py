"""Clips compared: PSNR and SSIM against scikit-image, motion against clips of known motion, faults that are named."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from wanconv.metrics import METRICS, video
from wanconv.metrics.flow import optical_flow, warp
from wanconv.metrics.perceptual import LAYERS, Perceptual
from wanconv.metrics.video import Clip, NonFiniteFrames


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """Returns (3, H, W) in [0, 1] with detail from 4 to 64 pixels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for size in (4, 8, 16, 32, 64):
        noise = torch.rand(1, 3, height // size + 2, width // size + 2, generator=generator)
        image += size * F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return image[0] / 124


def panning(dx: int, dy: int, frames: int = 4, size: tuple[int, int] = (96, 128)) -> Tensor:
    """Returns (F, H, W, 3) whose content moves by (dx, dy) pixels per frame, without borders."""
    height, width = size
    reach = 8 * frames
    image = texture(height + 2 * reach, width + 2 * reach)
    offsets = [(reach - dy * index, reach - dx * index) for index in range(frames)]
    return torch.stack([image[:, y : y + height, x : x + width].permute(1, 2, 0) for y, x in offsets])


def noisy(frames: Tensor, strength: float, seed: int = 1) -> Tensor:
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed), dtype=frames.dtype)
    return (frames + strength * noise).clamp(0, 1)


def checked(frames: video.Frames) -> Clip:
    clip = video.clip(frames)
    assert isinstance(clip, Clip)
    return clip


def compared(reference: Tensor, candidate: Tensor) -> video.VideoComparison:
    return video.compare(checked(reference), checked(candidate))


@pytest.mark.parametrize("strength", [1e-4, 0.02, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(11, 11), (45, 70)], ids=str)
def test_psnr_and_ssim_are_those_of_scikit_image(size: tuple[int, int], dtype: torch.dtype, strength: float) -> None:
    reference = panning(1, 0, frames=3, size=size).to(dtype)
    candidate = noisy(reference, strength)
    psnr = video.psnr(checked(reference), checked(candidate))
    ssim = video.ssim(checked(reference), checked(candidate))
    one, other = reference.double().numpy(), candidate.double().numpy()
    each = [peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(one, other, strict=True)]
    assert psnr.psnr_db == pytest.approx(peak_signal_noise_ratio(one, other, data_range=1), abs=1e-6)
    assert psnr.frames_db == pytest.approx(each, abs=1e-6)
    assert psnr.psnr_min_db == pytest.approx(min(each), abs=1e-6)

    options: dict[str, Any] = {
        "data_range": 1,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }
    rgb = [structural_similarity(x, y, channel_axis=-1, **options) for x, y in zip(one, other, strict=True)]
    luma = [structural_similarity(x @ video.LUMA, y @ video.LUMA, **options) for x, y in zip(one, other, strict=True)]
    assert ssim.frames_luma == pytest.approx(luma, abs=1e-6)
    assert (ssim.ssim_luma, ssim.ssim_luma_min) == pytest.approx((np.mean(luma), min(luma)), abs=1e-6)
    assert ssim.ssim_rgb == pytest.approx(np.mean(rgb), abs=1e-6)


def test_one_identical_frame_does_not_make_the_psnr_infinite() -> None:
    reference = panning(0, 0, frames=2)
    candidate = reference.clone()
    candidate[1] = (candidate[1] + 0.1).clamp(0, 1)
    psnr = video.psnr(checked(reference), checked(candidate))
    assert psnr.frames_db[0] is None
    assert psnr.psnr_min_db is not None
    assert psnr.psnr_min_db == psnr.frames_db[1] == pytest.approx(20.0, abs=0.5)
    assert psnr.psnr_db == pytest.approx(psnr.psnr_min_db + 10 * math.log10(2))


def test_identical_clips_are_said_to_be_so_and_json_can_hold_it() -> None:
    reference = panning(2, 1)
    result = compared(reference, reference.clone())
    assert result.psnr.identical
    assert (result.psnr.psnr_db, result.psnr.psnr_min_db) == (None, None)
    assert (result.ssim.ssim_luma, result.ssim.ssim_rgb) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert result.warp is not None
    assert result.warp.excess_warp_error == 0.0
    assert result.flicker is not None
    assert result.flicker.flicker_ratio == 1.0
    json.dumps(asdict(result), allow_nan=False)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, 0), (0, -1), (3, 2), (-7, 5), (8, 8)])
def test_the_flow_of_a_panning_clip_is_its_motion(dx: int, dy: int) -> None:
    first, second = (frame.mean(dim=-1) for frame in panning(dx, dy, frames=2, size=(192, 256)))
    error = (optical_flow(first, second) - torch.tensor([[[dx]], [[dy]]])).norm(dim=0)[24:-24, 24:-24]
    assert error.mean() < 0.15


def test_the_flow_of_a_moving_square_is_its_motion_on_the_square_and_nothing_away_from_it() -> None:
    first = texture(96, 160, seed=5)[0]
    second = first.clone()
    square = texture(48, 48)[0]
    first[24:72, 72:120] = square
    second[26:74, 75:123] = square
    flow = optical_flow(first, second)
    assert flow[:, 43:53, 91:101].mean(dim=(1, 2)).tolist() == pytest.approx([3.0, 2.0], abs=0.2)
    assert flow[:, :, :24].norm(dim=0).mean() < 0.2


def test_warping_by_a_whole_number_of_pixels_is_a_shift_and_says_what_lies_inside() -> None:
    image = texture(20, 30)
    flow = torch.tensor([[[3.0]], [[-2.0]]]).expand(2, 20, 30)
    moved, inside = warp(image, flow)
    assert torch.allclose(moved[:, 2:, :-3], image[:, :-2, 3:], atol=1e-5)
    assert inside[2:, :-3].all()
    assert not inside[:2].any()
    assert not inside[:, -3:].any()


def test_motion_is_followed_so_that_a_pan_has_a_tenth_of_its_plain_difference() -> None:
    frames = panning(4, -3)
    result = video.warp_error(checked(frames), checked(frames))
    assert result.warp_error is not None
    assert result.warp_error < 0.1 * (frames[1:] - frames[:-1]).square().mean().item()
    assert 0.8 < result.measured < 1.0


def test_noise_that_differs_by_frame_shows_as_excess_warp_error_of_twice_its_variance_or_a_little_less() -> None:
    frames = panning(2, 1) * 0.5 + 0.25
    result = video.warp_error(checked(frames), checked(noisy(frames, 0.02)))
    assert result.excess_warp_error is not None
    # bilinear lookup averages up to four pixels of the second frame's noise
    assert 1.2 * 0.02**2 < result.excess_warp_error <= 2.05 * 0.02**2


def test_a_clip_that_changes_twice_as_much_flickers_twice_and_a_still_reference_has_no_ratio() -> None:
    levels = torch.tensor([0.4, 0.5, 0.4, 0.5]).view(4, 1, 1, 1).expand(4, 12, 12, 3)
    wild = 0.45 + 2 * (levels - 0.45)
    flicker = video.flicker(checked(levels), checked(wild))
    assert (flicker.flicker_ratio, flicker.reference_change) == pytest.approx((2.0, 0.1))
    assert video.flicker(checked(wild[:1].expand(4, -1, -1, -1)), checked(wild)).flicker_ratio is None


def test_frames_are_black_from_98_percent_of_dark_pixels_on() -> None:
    frames = torch.full((4, 20, 20, 3), 0.5)
    frames[1] = 0.0
    frames[2].view(400, 3)[:392] = 0.099
    frames[3].view(400, 3)[:391] = 0.099
    assert video.black_frames(checked(frames)) == (1, 2)


def test_a_frame_is_frozen_when_it_moved_by_a_thousandth_at_most() -> None:
    steps = torch.tensor([0.0, 0.0, 0.0009, 0.0011, 0.0011]).cumsum(0) + 0.5
    frames = steps.view(5, 1, 1, 1).expand(5, 12, 12, 3)
    assert video.frozen_frames(checked(frames)) == (1, 2)
    assert video.frozen_frames(checked(frames[:1])) == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_named_by_frame_before_anything_is_measured(value: float) -> None:
    frames = panning(1, 1)
    frames[1, 0, 0, 0] = value
    frames[3, 5, 5] = value
    assert video.clip(frames) == NonFiniteFrames(frames=(1, 3), values=4, count=frames.numel())
    assert video.clip(frames.numpy()) == video.clip(frames.bfloat16()) == video.clip(frames)


def test_raw_decoder_output_of_any_range_is_probed_before_it_is_clamped() -> None:
    raw = panning(1, 1) * 9 - 4
    assert video.non_finite(raw) is None
    raw[2, 1, 1, 1] = math.inf
    assert video.non_finite(raw) == NonFiniteFrames(frames=(2,), values=1, count=raw.numel())


def test_numpy_and_torch_frames_give_the_same_clip_whatever_their_strides_and_flags() -> None:
    frames = panning(1, 1)
    locked = frames.numpy().copy()
    locked.setflags(write=False)
    for array in (frames.numpy(), locked, frames.flip(2).numpy()[:, :, ::-1]):
        assert torch.equal(checked(array).frames, frames)


def test_clips_of_one_frame_have_no_temporal_metrics() -> None:
    result = compared(panning(0, 0, frames=1), noisy(panning(0, 0, frames=1), 0.1))
    assert (result.warp, result.flicker, result.frozen_frames) == (None, None, ())


def test_lpips_is_never_made_up() -> None:
    frames = checked(panning(1, 1))
    assert video.lpips(frames, frames) == video.NotComputed("lpips", "not computed: no backbone")


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (torch.ones(4, 3, 20, 20), r"frames are \(F, H, W, 3\), and these are \(4, 3, 20, 20\)"),
        (torch.ones(20, 20, 3), r"frames are \(F, H, W, 3\), and these are \(20, 20, 3\)"),
        (torch.ones(0, 20, 20, 3), r"frames are \(F, H, W, 3\)"),
        (torch.ones(4, 20, 20, 3, dtype=torch.uint8), r"these are torch.uint8: 8-bit frames hide NaN"),
        (torch.full((1, 20, 20, 3), -0.5), r"frames lie within \[0, 1\], and these go from -0.5 to -0.5"),
        (torch.full((1, 20, 20, 3), 255.0), r"frames lie within \[0, 1\], and these go from 255 to 255"),
    ],
)
def test_what_is_no_clip_is_refused(frames: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        video.clip(frames)


PAIRWISE: list[Callable[[Clip, Clip], object]] = [
    video.psnr,
    video.ssim,
    video.warp_error,
    video.flicker,
    video.lpips,
    video.compare,
]


@pytest.mark.parametrize("metric", PAIRWISE)
def test_clips_of_different_length_or_size_are_refused_by_every_metric(metric: Callable[[Clip, Clip], object]) -> None:
    frames = panning(1, 1)
    with pytest.raises(ValueError, match="the reference has 4 frames and the candidate 3"):
        metric(checked(frames), checked(frames[:3]))
    with pytest.raises(ValueError, match="the reference has 96 x 128 pixels and the candidate 96 x 127"):
        metric(checked(frames), checked(frames[:, :, 1:]))


def test_clips_too_small_or_too_short_for_a_metric_are_refused() -> None:
    small = checked(panning(1, 1)[:, :7, :7])
    with pytest.raises(ValueError, match="SSIM looks at 11 x 11 pixels, and the frames have 7 x 7"):
        video.ssim(small, small)
    with pytest.raises(ValueError, match=r"optical flow needs 8 x 8 pixels, and the frames have \[7, 7\]"):
        video.warp_error(small, small)
    single = checked(panning(1, 1, frames=1))
    for metric in (video.warp_error, video.flicker):
        with pytest.raises(ValueError, match="one frame does not move"):
            metric(single, single)


def names(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from names(inner)


def test_every_metric_of_the_table_is_a_field_of_a_result() -> None:
    layers = [torch.zeros(layer.shape) for layer in LAYERS]
    network = Perceptual(tuple(layers), *(tuple(torch.zeros(len(one)) for one in layers) for _ in range(2)))
    frames = checked(panning(1, 1))
    fields = set(names(asdict(video.compare(frames, frames, network))))
    assert METRICS.keys() - fields == {"relative_l2", "sqnr_db", "cosine", "max_abs_error"}  # those of tensors
