"""`wanconv demo`: its options and examples."""

from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show
from wanconv.cli.options import Shown
from wanconv.cli.paths import local
from wanconv.cli.progress import telling

EXAMPLES = ("wanconv demo --dir demo-output",)


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where to make the demo's folders.", parser=local("--dir", "target"))
    ] = Path("demo-output"),
    progress: Shown = "auto",
) -> None:
    """Convert the small model that ships for four clients, break one, judge them all and compare them on one page."""
    from wanconv.commands.demo import demo as command

    with telling() as tell:
        report = command(folder, tell)
    show(report)
