"""Conditioning images: what is read, what is drawn, and how both come to a clip's size."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wanconv.errors import InputError
from wanconv.generation.pictures import covering, cropped, drawn, interpolated, pixels, read


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_an_image_file_is_read_in_rgb(tmp_path: Path) -> None:
    image = noise(6, 4)
    image.save(tmp_path / "image.png")
    assert read(tmp_path / "image.png").tobytes() == image.tobytes()
    image.convert("L").save(tmp_path / "grey.png")
    assert read(tmp_path / "grey.png").mode == "RGB"


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01\x00\x01\x00"])
def test_what_is_no_image_is_told_in_a_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path} cannot be read as an image: ")) as caught:
        read(path)
    assert (caught.value.exit_code, caught.value.hint) == (3, "give a PNG, JPEG or WebP file")


def test_an_image_that_ends_early_is_told_in_a_sentence(tmp_path: Path) -> None:
    noise(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read as an image"):
        read(tmp_path / "cut.png")


def test_a_drawn_picture_is_the_same_every_time_and_its_disc_moves() -> None:
    first, last = (drawn(name, (48, 32)) for name in ("image", "last_image"))
    assert first.size == last.size == (48, 32)
    assert first.tobytes() == drawn("image", (48, 32)).tobytes() != last.tobytes()
    rightmost = [int(np.asarray(picture)[16, :, 0].argmax()) for picture in (first, last)]
    assert rightmost[0] <= rightmost[1]


def test_pixels_are_those_that_torchvision_and_the_official_code_make() -> None:
    values = pixels(noise(5, 3))
    official = (torch.from_numpy(np.array(noise(5, 3))).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    assert (values.shape, values.dtype) == ((1, 3, 3, 5), torch.float32)
    assert torch.equal(values, official)


@pytest.mark.parametrize(
    ("given", "wanted", "box"),
    [
        ((64, 32), (32, 32), (16, 0, 48, 32)),
        ((30, 90), (64, 32), (0, 37, 30, 52)),
        ((7, 7), (64, 64), (0, 0, 7, 7)),
        ((1, 500), (64, 32), (0, 249, 1, 250)),
    ],
)
def test_the_middle_of_a_picture_has_the_proportions_of_the_clip(
    given: tuple[int, int], wanted: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    picture = noise(*given)
    assert cropped(picture, wanted).tobytes() == picture.crop(box).tobytes()


def test_a_picture_covers_the_clip_and_a_picture_of_its_size_stays_as_it_is() -> None:
    for size in ((64, 32), (33, 70), (200, 20)):
        assert covering(noise(*size), (64, 32)).size == (64, 32)
    assert covering(noise(64, 32), (64, 32)).tobytes() == noise(64, 32).tobytes()
    assert torch.equal(interpolated(pixels(noise(64, 32)), (64, 32)), pixels(noise(64, 32)))
    assert interpolated(pixels(noise(10, 20)), (64, 32)).shape == (1, 3, 32, 64)
