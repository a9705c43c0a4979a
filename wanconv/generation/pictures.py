"""Conditioning images: read or drawn, and brought to a clip's size as in Wan's own code."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from wanconv.errors import InputError
from wanconv.storage.reading import read_small

_MAX_NBYTES = 256_000_000
_CENTRES = {"image": 0.0, "last_image": 0.4}  # position of the disc, from left to right in -1 … 1


def read(path: Path) -> Image.Image:
    """Returns an image file in RGB; raises InputError for an invalid one."""
    try:
        with Image.open(BytesIO(read_small(path, _MAX_NBYTES))) as opened:
            return opened.convert("RGB")
    except UnidentifiedImageError:
        reason = "it is of no kind that Pillow knows"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's errors
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    raise InputError(f"{path} cannot be read as an image: {reason}", "give a PNG, JPEG or WebP file")


def drawn(name: str, size: tuple[int, int]) -> Image.Image:
    """Returns a made-up picture of `size` (width, height): a bright disc before a slanted gradient.

    The disc of `last_image` has moved to the right.
    """
    width, height = size
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    disc = 1 / (1 + np.exp((np.hypot(x - _CENTRES[name], y) - 0.4) * 20))
    rgb = np.stack((x * (1 - disc) + disc, y * (1 - disc), (x - y) / 2 * (1 - disc)), axis=2)
    eight: NDArray[np.uint8] = np.rint((rgb * 0.5 + 0.5) * 255).astype(np.uint8)
    return Image.fromarray(eight)


def cropped(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns the largest middle part of a picture with the proportions of `size`.

    The official code takes the proportions of a clip from its image; here they are given.
    """
    share = min(picture.width / size[0], picture.height / size[1])
    width, height = (max(round(side * share), 1) for side in size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def covering(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns a picture resized until it covers `size`, and the middle of that (wan/textimage2video.py, i2v)."""
    share = max(size[0] / picture.width, size[1] / picture.height)
    resized = picture.resize((round(picture.width * share), round(picture.height * share)), Image.Resampling.LANCZOS)
    left, top = (resized.width - size[0]) // 2, (resized.height - size[1]) // 2
    return resized.crop((left, top, left + size[0], top + size[1]))


def pixels(picture: Image.Image) -> Tensor:
    """Returns a picture's pixels in -1 … 1, float32.  # (1, 3, H, W)"""
    return torch.from_numpy(np.asarray(picture, np.float32) / 255 * 2 - 1).permute(2, 0, 1).unsqueeze(0).contiguous()


def interpolated(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns an image resized to `size` (width, height), bicubically, without antialiasing (wan/image2video.py)."""
    return torch.nn.functional.interpolate(image, size[::-1], mode="bicubic")
