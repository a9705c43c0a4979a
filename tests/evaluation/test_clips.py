"""Clips: exact stills, H.264 that any player takes, data URIs that fit a page, and no NaN that looks like black."""

import base64
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from skimage.io import imread
from validation_samples import clip

from wanconv.evaluation.report import clips
from wanconv.evaluation.report.clips import Encoding, Frames

MOVING = clip(4, 96, 128, 0.0, 1)


def decoded(data: bytes) -> tuple[av.VideoStream, list[av.VideoFrame]]:
    container = av.open(BytesIO(data), "r")
    return container.streams.video[0], list(container.decode(video=0))


def from_uri(uri: str) -> bytes:
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    return base64.b64decode(data)


def noise(*shape: int) -> Frames:
    return np.random.default_rng(0).random((*shape, 3)).astype(np.float32)


def test_pixels_are_rounded_to_the_nearest_and_clamped() -> None:
    levels = np.array([-0.5, 0.0, 0.001, 0.002, 0.5, 0.999, 1.0, 7.0])
    frames = np.repeat(levels, 3).reshape(1, 1, 8, 3)
    assert clips.pixels(frames)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_pixel_that_is_not_finite_is_magenta_and_counted(bad: float) -> None:
    frames = MOVING.copy()
    frames[2, 5, 7, 1] = bad
    assert clips.pixels(frames)[2, 5, 7].tolist() == [255, 0, 255]
    assert clips.not_finite(frames) == 1
    assert clips.not_finite(MOVING) == 0


@pytest.mark.parametrize("shape", [(4, 96, 128), (4, 3, 96, 128), (0, 8, 8, 3)])
def test_what_is_no_clip_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="frames are"):
        clips.pixels(np.zeros(shape))


def test_png_frames_hold_every_pixel() -> None:
    stills = clips.pngs(MOVING)
    assert len(stills) == 4
    read = np.stack([imread(BytesIO(still)) for still in stills])
    assert (read == clips.pixels(MOVING)).all()


def test_webp_without_a_quality_holds_every_pixel() -> None:
    image = clips.pixels(noise(1, 33, 47))[0]
    assert (imread(BytesIO(clips.webp(image)))[..., :3] == image).all()


@pytest.mark.parametrize("fps", [8, 16, 24, 23.976])
def test_mp4_is_h264_in_420_with_its_rate_and_all_frames(fps: float) -> None:
    stream, frames = decoded(clips.mp4(MOVING, fps))
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert stream.average_rate is not None
    assert float(stream.average_rate) == pytest.approx(fps)
    assert len(frames) == 4
    assert [frame.time for frame in frames] == pytest.approx([i / fps for i in range(4)])


def test_mp4_keeps_the_colours_by_bt709() -> None:
    flat = np.empty((2, 64, 64, 3), np.float32)
    flat[:] = (0.8, 0.3, 0.1)
    stream, frames = decoded(clips.mp4(flat, 16))
    assert stream.codec_context.colorspace == 1  # BT.709, in H.273
    luma, blue, red = (bytes(plane)[0] for plane in frames[0].planes)
    # ITU-R BT.709-6, sections 3 and 4, in 8 bits: luma 16..235, chroma 16..240
    y = 0.2126 * 0.8 + 0.7152 * 0.3 + 0.0722 * 0.1
    wanted = (16 + 219 * y, 128 + 224 * (0.1 - y) / 1.8556, 128 + 224 * (0.8 - y) / 1.5748)
    assert (luma, blue, red) == pytest.approx(wanted, abs=1.5)


def test_mp4_of_odd_sizes_is_padded_by_one() -> None:
    _, frames = decoded(clips.mp4(MOVING[:, :95, :127], 16))
    assert {(frame.height, frame.width) for frame in frames} == {(96, 128)}


def test_the_same_frames_give_the_same_bytes() -> None:
    assert clips.mp4(MOVING, 16) == clips.mp4(MOVING.copy(), 16)
    assert clips.pngs(MOVING) == clips.pngs(MOVING.astype(np.float64))


def test_a_small_clip_goes_into_a_page_exactly() -> None:
    strip = clips.filmstrip({"reference": MOVING, "candidate": MOVING[::-1]})
    assert strip.exact
    assert (strip.shown, strip.total, strip.width, strip.height) == ((0, 1, 2, 3), 4, 128, 96)
    last = imread(BytesIO(from_uri(strip.uris["candidate"][3])))[..., :3]
    assert (last == clips.pixels(MOVING)[0]).all()


def test_a_large_clip_is_compressed_before_frames_are_left_out() -> None:
    hard = {"reference": noise(6, 96, 128)}
    strip = clips.filmstrip(hard, 6 * 15_000)
    assert not strip.exact
    assert strip.shown == tuple(range(6))
    few = clips.filmstrip(hard, 6_000)
    assert few.encoding == Encoding(60, shrink=2)
    assert few.shown[0] == 0
    assert 1 <= len(few.shown) < 6


@pytest.mark.parametrize("limit", [300_000, 90_000, 40_000, 12_000])
def test_frames_stay_within_the_limit(limit: int) -> None:
    strip = clips.filmstrip({"reference": noise(6, 96, 128), "candidate": noise(6, 96, 128)}, limit)
    assert sum(len(from_uri(uri)) for uris in strip.uris.values() for uri in uris) <= limit


def test_clips_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        clips.filmstrip({"reference": MOVING, "candidate": MOVING[:3]})


def test_a_rate_stays_a_fraction() -> None:
    stream, _ = decoded(clips.mp4(MOVING, 24000 / 1001))
    assert stream.average_rate == Fraction(24000, 1001)
