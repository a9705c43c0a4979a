"""validate on the command line for models that look at images: every kind of recipe passes, files are handed over."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command import call
from covering import covering

from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions
from wanconv.generation.pictures import drawn

RELEASES = ("wan2.1-i2v-14b", "wan2.1-flf2v-14b")
# one of each kind: untouched, mixed 16 bits, fp8 without and with scales, int8 with scales
RECIPES = ("keep", "experts-bf16-rest-fp16", "fp8-plain", "fp8-scaled", "int8-row")
SMALL = ("--profile", "quick", "--size", "32x32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with two pictures, and a third that is none."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("image", "last_image"):
        drawn(name, (48, 80)).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no image")
    return folder


@covering(("release", "recipe"), RELEASES, RECIPES, strength=1)
def test_a_conversion_passes(release: str, recipe: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    convert(tiny(release), ConvertOptions(recipe, layout="diffusers", out=tmp_path / recipe))
    found = call("validate", recipe, "--against", tiny(release), *SMALL, cwd=tmp_path)
    assert (found.returncode, found.stdout.splitlines()[0]) == (0, f"PASS: {recipe}"), found.stdout + found.stderr


def test_images_are_handed_over_by_file(pictures: Path, tiny: Callable[..., Path]) -> None:
    given = ("--image", "image.png", "--last-image", "last_image.png")
    found = call("validate", tiny("wan2.1-flf2v-14b"), *given, *SMALL, cwd=pictures)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("release", "given", "code", "message"),
    [
        ("wan2.1-flf2v-14b", ("--image", "text.png"), 3, "error[unreadable]: text.png cannot be read as an image: "),
        (
            "wan2.1-i2v-14b",
            ("--image", "image.png", "--last-image", "last_image.png"),
            2,
            "error[usage]: wan2.1-i2v is not given --last-image: it takes --image",
        ),
        (
            "wan2.1-t2v-1.3b",
            ("--image", "image.png"),
            2,
            "error[usage]: wan2.1-t2v is not given --image: it takes a prompt alone",
        ),
    ],
)
def test_an_image_that_is_none_or_not_wanted_is_refused_in_a_sentence(
    release: str, given: tuple[str, ...], code: int, message: str, pictures: Path, tiny: Callable[..., Path]
) -> None:
    found = call("validate", tiny(release), *given, *SMALL, cwd=pictures)
    assert (found.returncode, found.stderr[: len(message)]) == (code, message)
