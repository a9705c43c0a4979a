"""`wanconv publish`: its options and examples."""

from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show
from wanconv.cli.options import Jobs, Shown, Token
from wanconv.cli.paths import local
from wanconv.cli.progress import mode, telling
from wanconv.cli.streams import bars_of_others

EXAMPLES = ("wanconv publish baked me/Wan2.2-T2V-A14B-fp8", "wanconv publish baked ms://me/mine --private")


def publish(
    folder: Annotated[Path, typer.Argument(help="A converted folder.", parser=local("the folder", "model"))],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME, hf://OWNER/NAME or ms://OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    token: Token = None,
    jobs: Jobs = None,
    progress: Shown = "auto",
) -> None:
    """Upload a converted folder, refused unless it verifies; what the hub then lists is compared."""
    from wanconv.commands import publish as commands
    from wanconv.conversion.options import default_jobs

    options = commands.PublishOptions(
        token, private, bars=bars_of_others() if mode() == "bars" else None, jobs=jobs or default_jobs()
    )
    with telling() as tell:
        report = commands.publish(folder, repository, options, tell)
    show(report)
