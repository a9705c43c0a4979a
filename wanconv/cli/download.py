"""`wanconv download`: its options and examples."""

from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show
from wanconv.cli.options import Exclude, Shown, Token
from wanconv.cli.paths import local
from wanconv.cli.progress import telling

EXAMPLES = (
    "wanconv download Wan-AI/Wan2.2-T2V-A14B",
    "wanconv download ms://Wan-AI/Wan2.2-TI2V-5B --dry-run",
    "wanconv download hf://Wan-AI/Wan2.2-I2V-A14B@main --only experts,vae --local-dir models/i2v",
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
) -> None:
    """Download from Hugging Face or ModelScope: planned, resumed in the middle of a file, every digest checked."""
    from wanconv.commands import download as commands
    from wanconv.downloads.selection import Wish

    words = tuple(word for one in only or () for word in one.split(",") if word)
    options = commands.DownloadOptions(
        source=source,
        revision=revision,
        wish=Wish(tuple(include or ()), tuple(exclude or ()), words),
        local_dir=local_dir,
        token=token,
        force=force,
        jobs=jobs,
    )
    if dry_run:
        show(commands.preview(repository, options))
    with telling() as tell:
        report = commands.download(repository, options, tell)
    show(report)
