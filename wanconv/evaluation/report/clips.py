"""Clips as people look at them: frames to PNG for the record, to H.264 for a player, to data URIs for one HTML file.

Frames are float arrays [F, H, W, 3] in [0, 1]. No metric is ever computed from anything encoded here: figures come from
the float frames, before 8 bits and before a codec.
"""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

Frames = NDArray[np.floating]
Pixels = NDArray[np.uint8]

# A cast makes 0 of NaN, and a broken clip black like a dark one. Magenta says that a pixel is no number.
NOT_FINITE_RGB = (255, 0, 255)
_BT709 = 1  # of primaries, transfer and matrix, in ITU-T H.273
FRAMES_NBYTES = 1_300_000  # of all clips in one page: 1.75 MB as base64, below 2 MB with the page around them


@dataclass(frozen=True, slots=True)
class Encoding:
    """How frames are put into a page: exact when `quality` is None, else WebP's quality out of 100."""

    quality: int | None
    shrink: int = 1


@dataclass(frozen=True, slots=True)
class Filmstrip:
    """Several clips as data URIs. `shown` are the numbers, from 0, of the frames that are there, of `total`."""

    uris: Mapping[str, tuple[str, ...]]
    shown: tuple[int, ...]
    total: int
    width: int
    height: int
    encoding: Encoding

    @property
    def exact(self) -> bool:
        return self.encoding == Encoding(None)


# Tried in this order until a page is small enough; after the last, frames are left out.
_LADDER = (Encoding(None), Encoding(92), Encoding(80), Encoding(60), Encoding(60, shrink=2))


def pixels(frames: Frames) -> Pixels:
    """Returns frames in 8 bits, rounded to the nearest; pixels that are not finite are magenta."""
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames are [F, H, W, 3], not {list(frames.shape)}")
    finite = np.isfinite(frames)
    eight: Pixels = np.rint(np.clip(np.where(finite, frames, 0), 0, 1) * 255).astype(np.uint8)
    eight[~finite.all(axis=3)] = NOT_FINITE_RGB
    return eight


def not_finite(frames: Frames) -> int:
    """Returns how many pixels of all frames hold NaN or an infinity."""
    return int((~np.isfinite(frames).all(axis=3)).sum())


def mp4(frames: Frames, fps: float) -> bytes:
    """Returns H.264 in MP4, for looking at only: 4:2:0 colour, BT.709. The same frames give the same bytes."""
    eight = pixels(frames)
    height, width = eight.shape[1:3]
    eight = np.pad(eight, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # 4:2:0 halves both sizes
    file = BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # One thread: x264 decides differently, as well, with another number of them.
        options = {"preset": "medium", "crf": "16", "threads": "1", "flags": "+bitexact"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = eight.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        for image in eight:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(
                stream.encode(
                    frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
                )
            )
        container.mux(stream.encode(None))
    return file.getvalue()


def pngs(frames: Frames) -> list[bytes]:
    """Returns each frame as a PNG file: the 8-bit pixels, without loss."""
    return [_still(image, "png", "rgb24", {"pred": "mixed"}) for image in pixels(frames)]


def webp(image: Pixels, quality: int | None = None) -> bytes:
    """Returns one frame as a WebP file; without a quality, its pixels are kept exactly."""
    if quality is None:
        return _still(image, "libwebp", "bgra", {"lossless": "1", "compression_level": "4"})
    return _still(image, "libwebp", "yuv420p", {"quality": str(quality), "compression_level": "4"})


def data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(data).decode()}"


def filmstrip(clips: Mapping[str, Frames], limit_nbytes: int = FRAMES_NBYTES) -> Filmstrip:
    """Returns clips of one size as data URIs that fit a page: exact where they fit, else lossy, smaller, and fewer."""
    eight = {name: pixels(frames) for name, frames in clips.items()}
    sizes = {images.shape for images in eight.values()}
    if len(sizes) != 1:
        raise ValueError(f"clips side by side have one size, not {sorted(sizes)}")
    ((total, height, width, _),) = sizes
    shown = tuple(range(total))
    for encoding in _LADDER:
        # The middle frame stands for all, so that a long clip is not encoded five times to find out.
        guess = sum(len(_encoded(images[total // 2], encoding)) for images in eight.values()) * total
        if guess > 1.3 * limit_nbytes:
            continue
        strips = _strips(eight, shown, encoding)
        if _nbytes(strips) <= limit_nbytes:
            break
    else:
        count = max(1, min(total, total * limit_nbytes // guess))
        while True:
            shown = tuple(round(i * (total - 1) / max(1, count - 1)) for i in range(count))
            strips = _strips(eight, shown, encoding)
            if _nbytes(strips) <= limit_nbytes or count == 1:
                break
            count = max(1, count * 3 // 4)
    uris = {name: tuple(data_uri("image/webp", data) for data in strip) for name, strip in strips.items()}
    return Filmstrip(uris, shown, total, width, height, encoding)


def _strips(eight: Mapping[str, Pixels], shown: tuple[int, ...], encoding: Encoding) -> dict[str, list[bytes]]:
    return {name: [_encoded(images[i], encoding) for i in shown] for name, images in eight.items()}


def _nbytes(strips: Mapping[str, list[bytes]]) -> int:
    return sum(len(data) for strip in strips.values() for data in strip)


def _encoded(image: Pixels, encoding: Encoding) -> bytes:
    return webp(np.ascontiguousarray(image[:: encoding.shrink, :: encoding.shrink]), encoding.quality)


def _still(image: Pixels, codec: str, pixel_format: str, options: dict[str, str]) -> bytes:
    """Returns one picture; FFmpeg's picture encoders give a whole file in one packet."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = image.shape[:2]
    context.pix_fmt = pixel_format
    context.time_base = Fraction(1)
    context.thread_count = 1
    context.options = options
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
