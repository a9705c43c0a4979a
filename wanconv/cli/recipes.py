"""`wanconv recipes`: its options and examples."""

from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show, show_page
from wanconv.cli.options import ComfyuiGeneration, ExpertRole, LayoutName, complete_recipe
from wanconv.cli.paths import local, name_or_file
from wanconv.errors import UsageError

EXAMPLES = (
    "wanconv recipes",
    "wanconv recipes fp8-plain",
    "wanconv recipes --schema",
    "wanconv recipes experts-bf16-rest-fp16 --on Wan2.2-T2V-A14B --layout diffusers",
)


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name, or a .toml file.", autocompletion=complete_recipe, parser=name_or_file("the recipe")
        ),
    ] = None,
    on: Annotated[
        Path | None, typer.Option(help="Explain the recipe on this model.", parser=local("--on", "model"))
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print how a recipe is written, in Markdown.")] = False,
    layout: LayoutName = None,
    comfyui_generation: ComfyuiGeneration = None,
    expert: ExpertRole = None,
) -> None:
    """List the recipes, or explain one: its rules, and on a model which rule takes what."""
    from wanconv.commands import recipes as commands

    if schema:
        if name is not None or on is not None:
            raise UsageError("--schema is about every recipe", "leave the recipe's name and --on out")
        show_page("recipes", "schema", commands.schema_page())
    if name is None:
        if on is not None:
            raise UsageError("--on needs a recipe to explain", "name one: wanconv recipes NAME --on SRC")
        show(commands.list_recipes())
    show(commands.explain(name, on, layout, comfyui_generation, expert))
