"""The model card: front matter that Hugging Face reads, and only claims that are so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from wanconv.workshop.card import model_card
from wanconv.workshop.job import Options, prepare

A14B = "wan2.2-t2v-a14b"


def card(
    source: Path, recipe: str, layout: str = "official", base_model: str | None = None
) -> tuple[dict[str, Any], str]:
    """Returns the front matter as Hugging Face reads it, and the text below."""
    made = ModelCard(model_card(prepare(source, Options(recipe, layout=layout)), base_model).decode())
    data: dict[str, Any] = made.data.to_dict()  # type: ignore[no-untyped-call]  # theirs
    return data, made.text.lstrip()


@pytest.mark.parametrize(("recipe", "relation"), [("keep", None), ("fp32", None), ("bf16", "quantized")])
def test_only_narrowed_numbers_are_called_quantized(
    recipe: str, relation: str | None, tiny: Callable[..., Path]
) -> None:
    data, _ = card(tiny(A14B), recipe, base_model="Wan-AI/Wan2.2-T2V-A14B")
    assert data["base_model"] == "Wan-AI/Wan2.2-T2V-A14B"
    assert data.get("base_model_relation") == relation


@pytest.mark.parametrize(
    ("release", "tag"),
    [
        (A14B, "text-to-video"),
        ("wan2.2-i2v-a14b", "image-to-video"),
        ("wan2.1-flf2v-14b", "image-to-video"),
        ("wan2.2-s2v-14b", None),
    ],
)
def test_the_tags_are_what_the_family_does(release: str, tag: str | None, tiny: Callable[..., Path]) -> None:
    data, _ = card(tiny(release), "keep")
    assert data.get("pipeline_tag") == tag
    assert data["tags"] == ["wan", "wanconv"]


def test_a_cogvideox_is_not_tagged_as_wan(tiny: Callable[..., Path]) -> None:
    data, _ = card(tiny("cogvideox-2b"), "keep", "diffusers")
    assert data["pipeline_tag"] == "text-to-video"
    assert data["tags"] == ["cogvideox", "wanconv"]


def test_the_library_is_named_where_the_layout_is_its_own(tiny: Callable[..., Path]) -> None:
    assert card(tiny(A14B), "keep", "diffusers")[0]["library_name"] == "diffusers"
    assert "library_name" not in card(tiny(A14B), "keep")[0]


def test_no_base_is_claimed_for_a_size_that_nobody_released(tiny: Callable[..., Path]) -> None:
    data, text = card(tiny(A14B), "bf16")
    assert data.keys() == {"pipeline_tag", "tags"}
    assert text.startswith(f"# {A14B}, bf16, official layout")


def test_a_file_that_many_families_share_names_its_network_alone(tiny: Callable[..., Path]) -> None:
    data, text = card(tiny(A14B) / "Wan2.1_VAE.pth", "keep")
    assert text.startswith("# wan-vae-2.1, keep, official layout")
    assert data.keys() == {"tags"}


def test_every_component_is_listed_with_what_it_is_stored_as(tiny: Callable[..., Path]) -> None:
    _, text = card(tiny(A14B), "experts-bf16-rest-fp16", "diffusers")
    assert "| expert.high | wan-t2v | bf16, fp32 |" in text
    assert "| text_encoder | umt5 | fp16 |" in text
