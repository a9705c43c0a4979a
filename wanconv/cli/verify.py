"""`wanconv verify`: its options and examples."""

from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show
from wanconv.cli.options import Exclude, ExpertRole, Jobs, Loras, Shown, Source, Token, complete_layout
from wanconv.cli.paths import local
from wanconv.cli.progress import telling

EXAMPLES = (
    "wanconv verify baked",
    "wanconv verify baked --against Wan2.2-T2V-A14B",
    "wanconv verify baked --for comfyui",
    "wanconv verify Wan2.2-T2V-A14B --sums SHA256SUMS",
    "wanconv verify Wan2.2-T2V-A14B --hub recorded",
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
    expert: ExpertRole = None,
    exclude: Exclude = None,
    jobs: Jobs = None,
    progress: Shown = "auto",
) -> None:
    """Check headers, cover and digests; with --against, each element within its format's bound."""
    from wanconv.commands.verify import VerifyOptions
    from wanconv.commands.verify import verify as command
    from wanconv.conversion.options import default_jobs

    options = VerifyOptions(
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
        report = command(path, options, tell)
    show(report)
