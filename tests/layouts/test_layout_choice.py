"""Which layout a recipe gets where the source's own does not take it, and which ones a refusal names."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.errors import Refused
from wanconv.report import Cell

T2V = "wan2.1-t2v-1.3b"


@pytest.mark.parametrize(("recipe", "layout"), [("gguf-q8_0", "gguf"), ("mxfp8", "comfyui"), ("nvfp4", "comfyui")])
def test_a_recipe_that_one_client_alone_reads_gets_its_layout_and_says_so(
    recipe: str, layout: str, tiny: Callable[..., Path]
) -> None:
    made = prepare(tiny(T2V), ConvertOptions(recipe))
    assert made.layout.name == layout
    assert [(one.severity, one.where) for one in made.notes if "chosen" in one.message] == [("note", layout)]
    assert f"chosen, for no other layout takes {recipe}: the official layout" in made.notes[0].message


def test_what_is_converted_without_a_layout_is_that_of_the_chosen_layout(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    report = convert(tiny(T2V), ConvertOptions("gguf-q8_0", out=tmp_path / "out"))
    layout = report.figures["layout"]
    assert isinstance(layout, Cell)
    assert (layout.value, layout.text) == ("gguf", "gguf (the source's is official)")
    assert list((tmp_path / "out").rglob("*.gguf"))
    assert [finding.where for finding in report.findings if "chosen" in finding.message] == ["gguf"]


def test_a_recipe_that_several_clients_read_is_refused_with_their_layouts(tiny: Callable[..., Path]) -> None:
    with pytest.raises(Refused, match=r"^the official layout does not take this recipe") as raised:
        prepare(tiny(T2V), ConvertOptions("int8-row"))
    assert raised.value.hint == "choose another `layout`, which takes this recipe: diffusers, comfyui or lightx2v"
    for layout in ("diffusers", "comfyui", "lightx2v"):
        assert prepare(tiny(T2V), ConvertOptions("int8-row", layout=layout)).layout.name == layout


def test_a_layout_that_is_named_is_never_replaced(tiny: Callable[..., Path]) -> None:
    with pytest.raises(Refused, match=r"^the diffusers layout does not take this recipe") as raised:
        prepare(tiny(T2V), ConvertOptions("gguf-q8_0", layout="diffusers"))
    assert raised.value.hint == "choose another `layout`, which takes this recipe: gguf"


def test_where_no_layout_takes_a_recipe_none_is_advised(tiny: Callable[..., Path]) -> None:
    with pytest.raises(Refused, match=r"only GGUF files hold q8_0$") as raised:
        prepare(tiny("cogvideox-2b"), ConvertOptions("gguf-q8_0"))
    assert raised.value.hint == "choose another `recipe`"
    with pytest.raises(Refused, match=r"^recipe cogvideox-int8 is for cogvideox") as raised:
        prepare(tiny(T2V), ConvertOptions("cogvideox-int8"))
    assert raised.value.hint == "choose another recipe: wanconv recipes"
