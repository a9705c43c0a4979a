"""`wanconv convert`: its options and examples."""

from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show
from wanconv.cli.options import (
    ComfyuiGeneration,
    Exclude,
    ExpertRole,
    Jobs,
    LayoutName,
    Loras,
    Shown,
    SourceOrHub,
    Token,
    complete_recipe,
    nbytes,
)
from wanconv.cli.paths import PathOrHub, local, name_or_file
from wanconv.cli.progress import telling
from wanconv.errors import UsageError

EXAMPLES = (
    "wanconv convert Wan2.2-T2V-A14B --recipe experts-bf16-rest-fp16 --layout diffusers --out baked",
    "wanconv convert Wan2.1-T2V-1.3B -r fp8-plain --dry-run",
    "wanconv convert hf://Wan-AI/Wan2.2-T2V-A14B -r fp8-scaled --layout comfyui --out baked",
    "wanconv convert wan2.2_low_noise_14B.safetensors -r bf16 --expert low -o baked",
    "wanconv convert Wan2.2-T2V-A14B -r bf16 --lora high=high.safetensors:0.8 --lora low=low.safetensors -o baked",
)
_HERE = PathOrHub(Path())


def convert(
    source: SourceOrHub = _HERE,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            help="A recipe's name, or a .toml file.",
            autocompletion=complete_recipe,
            parser=name_or_file("--recipe"),
            envvar="WANCONV_RECIPE",
        ),
    ] = ...,  # type: ignore[assignment]  # Typer's way to say that an option is required
    layout: LayoutName = None,
    comfyui_generation: ComfyuiGeneration = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            "--output",
            help="The folder to write.",
            show_default="SRC-RECIPE next to SRC",
            parser=local("--out", "target"),
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Print the plan and write nothing.")] = False,
    shard_size: Annotated[
        str | None, typer.Option(help="Largest weight file, such as 5GB.", show_default="the layout's own")
    ] = None,
    expert: ExpertRole = None,
    exclude: Exclude = None,
    lora: Loras = None,
    lora_allow_unmatched: Annotated[
        bool, typer.Option("--lora-allow-unmatched", help="Merge a LoRA without its keys that name nothing here.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="The base that the model card names.", metavar="OWNER/NAME")
    ] = None,
    hash_source: Annotated[
        bool, typer.Option("--hash-source", help="Put full digests of the source into the manifest.")
    ] = False,
    keep_source: Annotated[
        bool, typer.Option("--keep-source", help="Of hf://… or ms://…: keep what is downloaded, in OUT.source.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an OUT that wanconv wrote, and what another run left of it.")
    ] = False,
    allow_unsafe_fp16: Annotated[
        bool, typer.Option("--allow-unsafe-fp16", help="Store in fp16 what is known to break when computed in it.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            help="The results.json of validate SRC --numerics fp16, which lets SRC be stored in fp16.",
            parser=local("--report"),
        ),
    ] = None,
    token: Token = None,
    jobs: Jobs = None,
    progress: Shown = "auto",
) -> None:
    """Convert a checkpoint by a recipe: streamed, resumable, and whole or not there at all."""
    from wanconv.commands import convert as commands
    from wanconv.conversion.options import ConvertOptions, default_jobs

    options = ConvertOptions(
        recipe=recipe,
        layout=layout,
        comfyui_generation=comfyui_generation,
        out=out,
        shard_nbytes=None if shard_size is None else nbytes(shard_size, "--shard-size"),
        expert=expert,
        exclude=tuple(exclude or ()),
        base_model=base_model,
        loras=tuple(lora or ()),
        lora_allow_unmatched=lora_allow_unmatched,
        hash_source=hash_source,
        force=force,
        allow_unsafe_fp16=allow_unsafe_fp16,
        report=report,
        jobs=jobs or default_jobs(),
    )
    if (repository := source.repository) is not None:
        if dry_run:
            show(commands.preview_remote(repository, options, token, keep_source))
        with telling() as tell:
            made = commands.convert_remote(repository, options, tell, token, keep_source)
        show(made)
    if keep_source:
        raise UsageError(f"{source.path} is here and stays: --keep-source is for hf://… and ms://…", "leave it out")
    if dry_run:
        show(commands.preview(source.path, options))
    with telling() as tell:
        made = commands.convert(source.path, options, tell)
    show(made)
