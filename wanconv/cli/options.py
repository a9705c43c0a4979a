"""Options that commands share, and their values: sizes, repositories, completed names."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Literal

import typer

from wanconv.cli.console import SETTINGS
from wanconv.cli.paths import PathOrHub, local, local_or_hub
from wanconv.errors import UsageError


def complete_recipe(incomplete: str) -> list[str]:
    from wanconv.recipe import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_layout(incomplete: str) -> list[str]:
    from wanconv.layouts import LAYOUTS

    return [name for name in LAYOUTS if name.startswith(incomplete)]


def _set_quiet(value: bool) -> bool:
    SETTINGS.quiet = SETTINGS.quiet or value
    return value


def _set_verbose(value: bool) -> bool:
    SETTINGS.verbose = SETTINGS.verbose or value
    return value


def _set_progress(value: str) -> str:
    SETTINGS.progress = value
    return value


def _check_globs(globs: list[str] | None) -> list[str] | None:
    if not all(glob.strip() for glob in globs or ()):
        raise UsageError("--exclude: the glob is empty", "name one; a variable that is not set leaves it empty")
    return globs


_Json = Annotated[bool, typer.Option("--json", help="Print the report, or the error, as JSON on stdout.")]
_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing unless something is wrong.", callback=_set_quiet)
]
_Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print every line of long lists.", callback=_set_verbose)
]
_REPORT = {"json": _Json, "quiet": _Quiet, "verbose": _Verbose}


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that also takes the options of its report: they act when they are parsed, before it runs."""

    @wraps(command)
    def run(**options: object) -> None:
        command(**{name: value for name, value in options.items() if name not in _REPORT})

    own = signature(command)
    added = [Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind) for name, kind in _REPORT.items()]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **_REPORT}
    return run


Shown = Annotated[
    Literal["auto", "plain", "json", "none"],
    typer.Option(
        "--progress",
        help="How far it is, on stderr: plain is a line every ten seconds, json one every second.",
        show_default="bars on a terminal, plain elsewhere",
        callback=_set_progress,
        case_sensitive=False,
        envvar="WANCONV_PROGRESS",
    ),
]


Source = Annotated[
    Path,
    typer.Argument(
        help="A model folder, or one weight file.",
        show_default="the current folder",
        parser=local("the model", "model"),
    ),
]
SourceOrHub = Annotated[
    PathOrHub,
    typer.Argument(
        help="A model folder, one weight file, or hf://OWNER/NAME, ms://…",
        show_default="the current folder",
        parser=local_or_hub("the model"),
    ),
]
ExpertRole = Annotated[
    Literal["high", "low"] | None,
    typer.Option(help="The role of a lone Wan 2.2 expert: high or low noise.", case_sensitive=False),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Leave out files whose path or name matches this glob; repeatable.", callback=_check_globs),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        help="Merge a LoRA, with its strength: FILE:0.8; into one expert: high=FILE, low=FILE. Repeatable.",
        metavar="[EXPERT=]FILE[:STRENGTH]",
    ),
]
LayoutName = Annotated[
    str | None,
    typer.Option(
        help="The client to write for, such as diffusers or comfyui.",
        show_default="the source's own",
        autocompletion=complete_layout,
        envvar="WANCONV_LAYOUT",
    ),
]
ComfyuiGeneration = Annotated[
    Literal["native", "legacy"] | None,
    typer.Option(
        help="How --layout comfyui stores scales: legacy is scaled_fp8.", show_default="native", case_sensitive=False
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        help="The hub's access token.", show_default="HF_TOKEN or MODELSCOPE_API_TOKEN, or the login of their clients"
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        max=64,
        help="Threads.",
        show_default="two more than cores, at most 8",
        envvar="WANCONV_JOBS",
    ),
]


_PIXELS = re.compile(r"([0-9]{1,6})x([0-9]{1,6})", re.IGNORECASE)


def pixels(text: str) -> tuple[int, int]:
    if (size := _PIXELS.fullmatch(text)) is None:
        raise UsageError(f"--size: {text!r} is not a size", "write it as 832x480")
    return int(size[1]), int(size[2])


# fmt: off
_UNITS = {
    "": 1,
    "KB":  10**3, "MB":  10**6, "GB":  10**9, "TB":  10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}
# fmt: on


def nbytes(text: str, option: str) -> int:
    digits = text.strip().upper().rstrip("BIKMGT")
    unit = text.strip().upper()[len(digits) :]
    try:
        value = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{option}: {text!r} is not a size", "write it as 5GB, 500MB or 2GiB") from None
    if value < 10**6:
        raise UsageError(f"{option} {text} is below 1 MB", "choose a larger one")
    return value
