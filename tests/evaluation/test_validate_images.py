"""validate on the command line for models that look at images: every kind of recipe passes, files are handed over."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Done, run_in_turn

from wanconv.generation.pictures import drawn

RELEASES = ("wan2.1-i2v-14b", "wan2.1-flf2v-14b")
# one of each kind: untouched, mixed 16 bits, fp8 without and with scales, int8 with scales
RECIPES = ("keep", "experts-bf16-rest-fp16", "fp8-plain", "fp8-scaled", "int8-row")
SMALL = ("--profile", "quick", "--size", "32x32")


@pytest.fixture(scope="module")
def done(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Done]:
    """Returns what became of each validation, by release and recipe, or by release and images."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("image", "last_image"):
        drawn(name, (48, 80)).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no image")
    first, last = ("--image", "image.png"), ("--last-image", "last_image.png")
    cases: dict[tuple[str, ...], tuple[str, ...]] = {
        ("flf2v", "both"): (str(tiny("wan2.1-flf2v-14b")), *first, *last),
        ("flf2v", "broken"): (str(tiny("wan2.1-flf2v-14b")), "--image", "text.png"),
        ("i2v", "two"): (str(tiny("wan2.1-i2v-14b")), *first, *last),
        ("t2v", "one"): (str(tiny("wan2.1-t2v-1.3b")), *first),
    }
    conversions = []
    for release in RELEASES:
        for recipe in RECIPES:
            source, out = str(tiny(release)), f"{release}-{recipe}"
            conversions.append(("convert", source, "--recipe", recipe, "--layout", "diffusers", "--out", out))
            cases[release, recipe] = (out, "--against", source)
    validations = [("validate", *case, *SMALL) for case in cases.values()]
    found = run_in_turn([*conversions, *validations], folder)
    assert [one.errors for one in found[: len(conversions)] if one.exit_code] == []
    return dict(zip(cases, found[len(conversions) :], strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("release", RELEASES)
def test_a_conversion_passes(release: str, recipe: str, done: dict[tuple[str, ...], Done]) -> None:
    found = done[release, recipe]
    expected = f"PASS: {release}-{recipe}\n"
    assert (found.exit_code, found.output[: len(expected)]) == (0, expected), found.output + found.errors


def test_images_are_handed_over_by_file(done: dict[tuple[str, ...], Done]) -> None:
    assert done["flf2v", "both"].exit_code == 0, done["flf2v", "both"].errors


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        (("flf2v", "broken"), 3, "error[unreadable]: text.png cannot be read as an image: "),
        (("i2v", "two"), 2, "error[usage]: wan2.1-i2v is not given --last-image: it takes --image"),
        (("t2v", "one"), 2, "error[usage]: wan2.1-t2v is not given --image: it takes a prompt alone"),
    ],
)
def test_an_image_that_is_none_or_not_wanted_is_refused_in_a_sentence(
    case: tuple[str, ...], code: int, message: str, done: dict[tuple[str, ...], Done]
) -> None:
    assert (done[case].exit_code, done[case].errors[: len(message)]) == (code, message)
