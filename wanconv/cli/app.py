"""The command line, assembled: each command's module has its function and its examples."""

from typing import Annotated

import typer

from wanconv import __version__
from wanconv.cli import convert, demo, download, inspect, publish, recipes, validate, verify
from wanconv.cli.options import reporting
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


def _examples(*lines: str) -> str:
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(lines)


for _module, _command in (
    (inspect, inspect.inspect),
    (recipes, recipes.recipes),
    (convert, convert.convert),
    (download, download.download),
    (verify, verify.verify),
    (validate, validate.validate),
    (publish, publish.publish),
    (demo, demo.demo),
):
    app.command(epilog=_examples(*_module.EXAMPLES))(reporting(_command))
