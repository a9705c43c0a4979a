"""The commands: one thin function each, with its options and examples."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from wanconv import __version__
from wanconv.cli.console import show, show_page
from wanconv.cli.options import (
    ComfyuiGeneration,
    Exclude,
    Expert,
    Jobs,
    Json,
    Layout,
    Loras,
    Quiet,
    Shown,
    Source,
    SourceOrHub,
    Token,
    Verbose,
    complete_layout,
    complete_recipe,
    nbytes,
    pixels,
)
from wanconv.cli.paths import Place, local, name_or_file
from wanconv.cli.progress import mode, telling
from wanconv.cli.streams import bars_of_others
from wanconv.errors import UsageError

app = typer.Typer(
    name="wanconv",
    help="Pre-bake video diffusion checkpoints: download, inspect, convert, verify, validate, publish. Exit codes: "
    "0 done · 1 a check failed · 2 usage or refused · 3 unreadable input · 4 digest mismatch · 5 not finite or "
    "overflow · 6 quality below the gate · 7 cannot write · 130 interrupted, resumable.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),  # users of other converters type --dry_run
    },
)


_HERE = Place(Path())
_LARGEST_SEED = 2**63 - 1  # some are its neighbours, and torch takes 64 bits


def _examples(*lines: str) -> str:
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(lines)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(f"wanconv {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@app.command(
    epilog=_examples(
        "wanconv inspect Wan2.2-T2V-A14B",
        "wanconv inspect high.safetensors --expert high --tensors",
        "wanconv inspect hf://Wan-AI/Wan2.2-TI2V-5B",
    )
)
def inspect(
    path: SourceOrHub = _HERE,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    expert: Expert = None,
    exclude: Exclude = None,
    token: Token = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what a checkpoint is, and which clients read it: family, components, dtypes, sizes. Reads headers only."""
    from wanconv.commands import inspect as verbs

    if (repository := path.repository) is not None:
        show(verbs.inspect_remote(repository, expert, tuple(exclude or ()), tensors, token))
    show(verbs.inspect(path.path, expert, tuple(exclude or ()), tensors))


@app.command(
    epilog=_examples(
        "wanconv recipes",
        "wanconv recipes fp8-plain",
        "wanconv recipes --schema",
        "wanconv recipes experts-bf16-rest-fp16 --on Wan2.2-T2V-A14B --layout diffusers",
    )
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
    layout: Layout = None,
    comfyui_generation: ComfyuiGeneration = None,
    expert: Expert = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the recipes, or explain one: its rules, and on a model which rule takes what."""
    from wanconv.commands import recipes as verbs

    if schema:
        if name is not None or on is not None:
            raise UsageError("--schema is about every recipe", "leave the recipe's name and --on out")
        show_page("recipes", "schema", verbs.schema_page())
    if name is None:
        if on is not None:
            raise UsageError("--on needs a recipe to explain", "name one: wanconv recipes NAME --on SRC")
        show(verbs.list_recipes())
    show(verbs.explain(name, on, layout, comfyui_generation, expert))


@app.command(
    epilog=_examples(
        "wanconv convert Wan2.2-T2V-A14B --recipe experts-bf16-rest-fp16 --layout diffusers --out baked",
        "wanconv convert Wan2.1-T2V-1.3B -r fp8-plain --dry-run",
        "wanconv convert hf://Wan-AI/Wan2.2-T2V-A14B -r fp8-scaled --layout comfyui --out baked",
        "wanconv convert wan2.2_low_noise_14B.safetensors -r bf16 --expert low -o baked",
        "wanconv convert Wan2.2-T2V-A14B -r bf16 --lora high=high.safetensors:0.8 --lora low=low.safetensors -o baked",
    )
)
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
    layout: Layout = None,
    comfyui_generation: ComfyuiGeneration = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            "--output",
            help="The folder to write.",
            show_default="SRC-RECIPE beside SRC",
            parser=local("--out", "target"),
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Print the plan and write nothing.")] = False,
    shard_size: Annotated[
        str | None, typer.Option(help="Largest weight file, such as 5GB.", show_default="the layout's own")
    ] = None,
    expert: Expert = None,
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
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a checkpoint by a recipe: streamed, resumable, and whole or not there at all."""
    from wanconv.commands import convert as verbs
    from wanconv.conversion.options import Options, default_jobs

    options = Options(
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
            show(verbs.preview_remote(repository, options, token, keep_source))
        with telling() as tell:
            made = verbs.convert_remote(repository, options, tell, token, keep_source)
        show(made)
    if keep_source:
        raise UsageError(f"{source.path} is here and stays: --keep-source is for hf://… and ms://…", "leave it out")
    if dry_run:
        show(verbs.preview(source.path, options))
    with telling() as tell:
        made = verbs.convert(source.path, options, tell)
    show(made)


@app.command(
    epilog=_examples(
        "wanconv download Wan-AI/Wan2.2-T2V-A14B",
        "wanconv download ms://Wan-AI/Wan2.2-TI2V-5B --dry-run",
        "wanconv download hf://Wan-AI/Wan2.2-I2V-A14B@main --only experts,vae --local-dir models/i2v",
    )
)
def download(
    repository: Annotated[str, typer.Argument(help="OWNER/NAME, hf://OWNER/NAME[@REVISION] or ms://….")],
    source: Annotated[
        str | None, typer.Option(help="hf or modelscope.", show_default="hf", envvar="WANCONV_SOURCE")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit.", show_default="the main branch")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Take only files that match this glob; repeatable.")] = None,
    exclude: Exclude = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these components, such as experts,vae; repeatable.")
    ] = None,
    local_dir: Annotated[
        Path | None,
        typer.Option(
            "--local-dir",
            "--out",
            "-o",
            help="The folder to fill.",
            show_default="NAME",
            parser=local("--local-dir", "target"),
        ),
    ] = None,
    token: Token = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Print the plan and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that hold other bytes.")] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, max=64, help="Files at a time.", envvar="WANCONV_JOBS")
    ] = 4,
    progress: Shown = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Download from Hugging Face or ModelScope: planned, resumed in the middle of a file, every digest checked."""
    from wanconv.commands import download as verbs
    from wanconv.downloads.selection import Wish

    words = tuple(word for one in only or () for word in one.split(",") if word)
    options = verbs.Options(
        source=source,
        revision=revision,
        wish=Wish(tuple(include or ()), tuple(exclude or ()), words),
        local_dir=local_dir,
        token=token,
        force=force,
        jobs=jobs,
    )
    if dry_run:
        show(verbs.preview(repository, options))
    with telling() as tell:
        report = verbs.download(repository, options, tell)
    show(report)


@app.command(
    epilog=_examples(
        "wanconv verify baked",
        "wanconv verify baked --against Wan2.2-T2V-A14B",
        "wanconv verify baked --for comfyui",
        "wanconv verify Wan2.2-T2V-A14B --sums SHA256SUMS",
        "wanconv verify Wan2.2-T2V-A14B --hub recorded",
    )
)
def verify(
    path: Source = Path(),
    against: Annotated[
        Path | None, typer.Option(help="Prove every element against this source.", parser=local("--against", "model"))
    ] = None,
    lora: Loras = None,
    sums: Annotated[
        list[Path] | None,
        typer.Option(
            help="A sha256sum or md5sum list; repeatable.", show_default="those in the folder", parser=local("--sums")
        ),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(help="Compare with a hub's list: hf://OWNER/NAME, ms://…, or recorded: where it is from."),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option("--for", help="Check that this layout's client reads it.", autocompletion=complete_layout),
    ] = None,
    token: Token = None,
    expert: Expert = None,
    exclude: Exclude = None,
    jobs: Jobs = None,
    progress: Shown = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check headers, cover and digests; with --against, each element within its format's bound."""
    from wanconv.commands.verify import Options
    from wanconv.commands.verify import verify as verb
    from wanconv.conversion.options import default_jobs

    options = Options(
        against,
        tuple(sums or ()),
        expert,
        tuple(exclude or ()),
        jobs or default_jobs(),
        hub,
        token,
        client,
        tuple(lora or ()),
    )
    with telling() as tell:
        report = verb(path, options, tell)
    show(report)


@app.command(
    epilog=_examples(
        "wanconv validate baked --against Wan2.2-T2V-A14B -o report",
        "wanconv validate baked --against Wan2.2-I2V-A14B --image cat.png",
        "wanconv validate Wan2.2-T2V-A14B --numerics fp16",
        "wanconv validate --recheck report/results.json --profile full",
    )
)
def validate(
    candidate: Source = Path(),
    against: Annotated[
        Path | None,
        typer.Option(help="The model it was made from; without it only safety.", parser=local("--against", "model")),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="quick, standard or full, or a .toml file.", parser=name_or_file("--profile"))
    ] = "standard",
    numerics: Annotated[
        str | None,
        typer.Option(
            help="Precision to imitate: official, diffusers, comfyui-fp16, fp16.",
            show_default="the candidate's client's",
        ),
    ] = None,
    full_length: Annotated[bool, typer.Option("--full-length", help="One more step at the task's own length.")] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Sampling steps.", show_default="the profile's")
    ] = None,
    size: Annotated[str | None, typer.Option(help="WxH, such as 832x480.", show_default="the profile's")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="4 n + 1, or 4 n per clip of S2V.", show_default="the profile's")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to generate.", show_default="a cat")] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            help="First frame, for a model that takes one.", show_default="drawn where needed", parser=local("--image")
        ),
    ] = None,
    last_image: Annotated[
        Path | None,
        typer.Option(help="Last frame, likewise.", show_default="drawn where needed", parser=local("--last-image")),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            help="Sound file with a voice, for S2V.", show_default="two seconds that ship", parser=local("--audio")
        ),
    ] = None,
    lpips: Annotated[
        Path | None,
        typer.Option(
            help="Folder with alexnet-owt-7be5be79.pth and LPIPS' alex.pth: compare clips by LPIPS, too.",
            parser=local("--lpips"),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Seed of the noise.")] = 0,
    memory: Annotated[str, typer.Option(help="Weights that may stay in memory.", envvar="WANCONV_MEMORY")] = "2GiB",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", envvar="WANCONV_DEVICE")] = "cpu",
    recheck: Annotated[
        Path | None, typer.Option(help="Judge saved results again; runs nothing.", parser=local("--recheck"))
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", "--output", help="Folder for JSON, HTML and clips.", parser=local("--out", "target")
        ),
    ] = None,
    expert: Expert = None,
    exclude: Exclude = None,
    progress: Shown = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the same short generation with both models and judge: PASS, FAIL, NOT FINITE or CANNOT JUDGE."""
    from wanconv.commands import validate as verbs
    from wanconv.evaluation.backbone import Backbone

    if recheck is not None:
        show(verbs.recheck(recheck, profile))
    options = verbs.Options(
        against=against,
        profile=profile,
        numerics=numerics,
        full_length=full_length,
        steps=steps,
        size=None if size is None else pixels(size),
        frames=frames,
        seed=seed,
        image=image,
        last_image=last_image,
        audio=audio,
        lpips=None if lpips is None else Backbone(lpips),
        memory_nbytes=nbytes(memory, "--memory"),
        device=device,
        out=out,
        expert=expert,
        exclude=tuple(exclude or ()),
        command=("wanconv", *sys.argv[1:]),
    )
    if prompt is not None:
        options = replace(options, prompt=prompt)
    with telling() as tell:
        report = verbs.validate(candidate, options, tell)
    show(report)


@app.command(
    epilog=_examples("wanconv publish baked me/Wan2.2-T2V-A14B-fp8", "wanconv publish baked ms://me/mine --private")
)
def publish(
    folder: Annotated[Path, typer.Argument(help="A converted folder.", parser=local("the folder", "model"))],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME, hf://OWNER/NAME or ms://OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    token: Token = None,
    jobs: Jobs = None,
    progress: Shown = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Upload a converted folder, refused unless it verifies; what the hub then lists is compared."""
    from wanconv.commands import publish as verbs
    from wanconv.conversion.options import default_jobs

    options = verbs.Options(
        token, private, bars=bars_of_others() if mode() == "bars" else None, jobs=jobs or default_jobs()
    )
    with telling() as tell:
        report = verbs.publish(folder, repository, options, tell)
    show(report)


@app.command(epilog=_examples("wanconv demo --dir demo-output"))
def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where to make the demo's folders.", parser=local("--dir", "target"))
    ] = Path("demo-output"),
    progress: Shown = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert the small model that ships for four clients, break one, judge them all and compare them on one page."""
    from wanconv.commands.demo import demo as verb

    with telling() as tell:
        report = verb(folder, tell)
    show(report)
