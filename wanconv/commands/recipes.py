"""recipes: the list of recipes, or one of them explained, on a model if there is one."""

from pathlib import Path
from typing import Literal

from wanconv import recipe as recipes
from wanconv.models import Expert
from wanconv.report import Cell, Report, Table


def list_recipes() -> Report:
    """Returns the recipes that ship with wanconv."""
    found = [recipes.load(name) for name in recipes.names()]
    rows = tuple((one.name, one.summary, Cell(list(one.families), ", ".join(one.families))) for one in found)
    return Report(
        "recipes", "recipes", {"recipes": len(rows)}, (Table("recipes", ("name", "summary", "families"), rows),)
    )


def schema_page() -> str:
    """Returns the Markdown page about the format of recipes."""
    return recipes.schema_page()


def explain(
    name: str,
    on: Path | None = None,
    layout: str | None = None,
    comfyui_generation: Literal["native", "legacy"] | None = None,
    expert: Expert | None = None,
) -> Report:
    """Returns a recipe's rules; with a model, which rule takes what and how many bytes."""
    one = recipes.load(name)
    figures: dict[str, object] = {
        "recipe": one.name,
        "summary": one.summary,
        "families": Cell(list(one.families), ", ".join(one.families)),
    }
    if on is not None:
        from wanconv.conversion.options import ConvertOptions, prepare
        from wanconv.planning import by_component, by_rule, family_in_words

        made = prepare(on, ConvertOptions(name, layout, comfyui_generation, expert=expert, allow_unsafe_fp16=True))
        figures |= {"on": str(on), "family": family_in_words(made.model), "layout": made.layout.name}
        return Report("recipes", one.name, figures, (by_rule(made), by_component(made)), (*made.notes, *made.findings))
    rows = tuple(
        (number, str(rule), rule.format, rule.scale, rule.rounding, rule.fallback or "")
        for number, rule in enumerate(one.rules, 1)
    )
    columns = ("rule", "match", "format", "scale", "rounding", "fallback")
    return Report("recipes", one.name, figures, (Table("rules", columns, rows),))
