"""The model card: front matter that Hugging Face reads, and only claims that are so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.provenance.card import model_card
from wanconv.provenance.markdown import inline, line
from wanconv.provenance.markdown import yaml as yaml_string

A14B = "wan2.2-t2v-a14b"


def card(
    source: Path, recipe: str, layout: str = "official", base_model: str | None = None
) -> tuple[dict[str, Any], str]:
    """Returns the front matter as Hugging Face reads it, and the text below."""
    made = ModelCard(model_card(prepare(source, ConvertOptions(recipe, layout=layout)), base_model).decode())
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


# fmt: off
HOSTILE = [
    "# heading", "## x", "> said", "- list", "+ list", "* list", "1. list", "12) list", "---", "===", "***",
    "~~~ fence", "``` fence", "    code", "[a](javascript:alert(1))", "![a](https://x.example/p.png)", "<https://x.example>",
    "<script>alert(1)</script>", "<!-- gone -->", "&lt;b&gt; &amp;", "a | b | c", "|---|", "`code`",
    "*strong* _em_ ~~no~~",
    "[a]: https://x.example", "a\\", "\\<b>", "$$x^2$$", "[^1] and [^1]: note", "\u2028# x", "fp8_e4m3fn __init__",
]
# fmt: on
MARKDOWN = MarkdownIt().enable(["table", "strikethrough"])


def shown(source: str) -> tuple[list[str], str]:
    """Returns the blocks that Markdown makes of a text, and the text that it shows: markup alone would change it."""
    tokens = MARKDOWN.parse(source)
    inside = [one for token in tokens for one in token.children or ()]
    assert {one.type for one in inside} <= {"text", "text_special"}, source
    return [token.type for token in tokens], "".join(one.content for one in inside)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stands_in_a_card_as_it_is_written(text: str) -> None:
    plain = " ".join(text.split())
    assert shown(line(text)) == (["paragraph_open", "inline", "paragraph_close"], plain)
    assert shown("# " + inline(text))[1] == plain.rstrip("#").rstrip()
    cells = MARKDOWN.parse(f"| a | b |\n|---|---|\n| {inline(text)} | last |")
    assert [token.content for token in cells if token.type == "inline"][-1] == "last"
    assert sum(token.type == "td_open" for token in cells) == 2


@pytest.mark.parametrize(
    "text",
    ["o/n\n---\n# x", "o/n: x", '"o/n', "o/n # x", "{a: b}", "- a", "!!python/object:os.system", "null", "1/\u2028x"],
)
def test_text_in_the_front_matter_is_one_string(text: str) -> None:
    assert yaml.safe_load(f"base_model: {yaml_string(text)}\ntags: []") == {
        "base_model": " ".join(text.split()),
        "tags": [],
    }
    assert "\n" not in yaml_string(text)


def test_a_repository_stands_in_the_front_matter_without_quotes() -> None:
    assert yaml_string("Wan-AI/Wan2.2-T2V-A14B") == "Wan-AI/Wan2.2-T2V-A14B"


def test_what_cannot_be_seen_is_replaced() -> None:
    assert inline("a\x00b\x1b[31mc\u202ed\ud800") == "a\ufffdb\ufffd\\[31mc\ufffdd\ufffd"


def front_matter(card: str) -> dict[str, object]:
    """Returns what Hugging Face reads of a card, but for the base that it names."""
    found: dict[str, object] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]  # theirs
    return {key: value for key, value in found.items() if not key.startswith("base_model")}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_recipe_cannot_write_markup_into_a_card(text: str, tiny: Callable[..., Path]) -> None:
    made = prepare(tiny("wan2.1-t2v-1.3b"), ConvertOptions("bf16"))
    before = model_card(made, None).decode()
    summary = f"{text}\n---\nbase_model: evil/evil\n---\n# owned"
    after = model_card(replace(made, recipe=replace(made.recipe, name=text, summary=summary)), text).decode()
    assert front_matter(after) == front_matter(before)
    blocks = [[token.type for token in MARKDOWN.parse(ModelCard(one).text)] for one in (before, after)]
    assert blocks[0] == blocks[1]
    html = MARKDOWN.render(ModelCard(after).text)
    assert "<script" not in html
    assert "<a " not in html
    assert "<img" not in html


def test_a_lora_named_as_markup_is_a_cell_of_its_table(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, name = tiny("wan2.1-t2v-1.3b"), "a | b <img src=x onerror=alert(1)> `c` [d](e).safetensors"
    key = "blocks.0.self_attn.q"
    width = (
        prepare(source, ConvertOptions("bf16"))
        .model.components["dit"]
        .tensors["dit/blocks.0.self_attn.q.weight"]
        .shape[0]
    )
    factors = {f"{key}.lora_A.weight": torch.zeros(1, width), f"{key}.lora_B.weight": torch.zeros(width, 1)}
    save_file(factors, tmp_path / name)
    recipe = tmp_path / "# <b>mine.toml"
    recipe.write_text('schema = 1\nsummary = "<b>x\\n\\n# y"\n[[rule]]\nmatch = "**"\nformat = "bf16"\n')
    convert(source, ConvertOptions(str(recipe), out=tmp_path / "out", loras=(str(tmp_path / name),)))
    tokens = MARKDOWN.parse(ModelCard.load(tmp_path / "out" / "README.md").text)
    cells = ["".join(one.content for one in token.children or ()) for token in tokens if token.type == "inline"]
    assert name in cells
    assert [token.type for token in tokens].count("heading_open") == 1
    assert cells[0] == "wan2.1-t2v, # <b>mine, official layout"
