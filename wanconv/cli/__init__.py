"""The command line: parse, call one verb, render its Report."""

from wanconv.cli.app import main

__all__ = ["main"]
