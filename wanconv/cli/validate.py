"""`wanconv validate`: its options and examples."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show
from wanconv.cli.options import Exclude, ExpertRole, Shown, Source, nbytes, pixels
from wanconv.cli.paths import local, name_or_file
from wanconv.cli.progress import telling

EXAMPLES = (
    "wanconv validate baked --against Wan2.2-T2V-A14B -o report",
    "wanconv validate baked --against Wan2.2-I2V-A14B --image cat.png",
    "wanconv validate Wan2.2-T2V-A14B --numerics fp16",
    "wanconv validate --recheck report/results.json --profile full",
)
_LARGEST_SEED = 2**63 - 1  # derived seeds add small offsets; all must fit torch's 64 bits


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
            help="Imitate: official, diffusers, comfyui-fp16, fp16, fp32, official-fp16 or diffusers-fp16.",
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
    expert: ExpertRole = None,
    exclude: Exclude = None,
    progress: Shown = "auto",
) -> None:
    """Run the same short generation with both models and judge: PASS, FAIL, NOT FINITE or CANNOT JUDGE."""
    from wanconv.commands import validate as commands
    from wanconv.evaluation.backbone import Backbone

    if recheck is not None:
        show(commands.recheck(recheck, profile))
    options = commands.ValidateOptions(
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
        report = commands.validate(candidate, options, tell)
    show(report)
