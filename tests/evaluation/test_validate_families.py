"""Every family that can be judged, by every recipe that is legal for it: converted, verified and judged by commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command import call_all

from wanconv.commands.convert import preview
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Refused
from wanconv.generation.tasks import JUDGED
from wanconv.layouts import LAYOUTS
from wanconv.models import DENOISERS, FAMILIES
from wanconv.recipe import load, names
from wanconv.types.architecture import Family
from wanconv.types.names import matches

FAMILIES_JUDGED = [
    family
    for family in FAMILIES
    if all(network.name in JUDGED for name, network in family.components.items() if name in DENOISERS)
]


def layout_for(source: Path, family: str, recipe: str, folder: Path) -> str | None:
    """Returns the first layout that takes a recipe, None where none does."""
    for layout in LAYOUTS:
        if (family, layout) == ("cogvideox-2b", "comfyui"):  # by shapes alone, as there, a miniature is a 5B
            continue
        try:
            preview(source, ConvertOptions(recipe, layout=layout, out=folder / "preview"))
        except Refused:
            continue
        return layout
    return None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES_JUDGED, ids=lambda family: family.name)
def test_every_legal_recipe_of_a_family_is_converted_verified_and_judged(
    family: Family, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny(family.releases[0].name)
    legal = [name for name in names() if any(matches(glob, family.name) for glob in load(name).families)]
    layouts = {
        name: layout for name in legal if (layout := layout_for(source, family.name, name, tmp_path)) is not None
    }
    assert {"keep", "bf16", "fp32"} <= layouts.keys()
    commands = [
        command
        for name, layout in layouts.items()
        for command in (
            ("convert", str(source), "-r", name, "--layout", layout, "-o", name, "-q"),
            ("verify", name, "--against", str(source), "-q"),
            ("validate", name, "--against", str(source), "--profile", "quick", "--size", "64x64", "-q"),
        )
    ]
    done = call_all(commands, tmp_path)
    failed = {
        " ".join(command): (one.exit_code, one.output, one.errors)
        for command, one in zip(commands, done, strict=True)
        if one.exit_code
    }
    assert failed == {}
