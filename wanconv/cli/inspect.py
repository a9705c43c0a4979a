"""`wanconv inspect`: its options and examples."""

from pathlib import Path
from typing import Annotated

import typer

from wanconv.cli.console import show
from wanconv.cli.options import Exclude, ExpertRole, SourceOrHub, Token
from wanconv.cli.paths import PathOrHub

EXAMPLES = (
    "wanconv inspect Wan2.2-T2V-A14B",
    "wanconv inspect high.safetensors --expert high --tensors",
    "wanconv inspect hf://Wan-AI/Wan2.2-TI2V-5B",
)
_HERE = PathOrHub(Path())


def inspect(
    path: SourceOrHub = _HERE,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    expert: ExpertRole = None,
    exclude: Exclude = None,
    token: Token = None,
) -> None:
    """Say what a checkpoint is, and which clients read it: family, components, dtypes, sizes. Reads headers only."""
    from wanconv.commands import inspect as commands

    if (repository := path.repository) is not None:
        show(commands.inspect_remote(repository, expert, tuple(exclude or ()), tensors, token))
    show(commands.inspect(path.path, expert, tuple(exclude or ()), tensors))
