"""Paths as options and arguments take them: one reader for all, which sees the text before it becomes a Path."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wanconv.errors import InputError, UsageError
from wanconv.storage.places import repository_of

Use = Literal["model", "file", "target"]


@dataclass(frozen=True, slots=True)
class PathOrHub:
    """A model as the user names it: a local path, or the address of a repository."""

    path: Path
    repository: str | None = None


def local(where: str, use: Use = "file") -> Callable[[str | Path], Path]:
    """Returns the reader of a local path, for `parser=`; `where` is the option's or the argument's name."""

    def read(text: str | Path) -> Path:
        if isinstance(text, Path):  # the default
            return text
        if (repository := repository_of(text)) is not None:
            raise _is_elsewhere(where, repository, use)
        from wanconv.storage.paths import local_path  # importing it takes a large part of the time for help

        return local_path(text, where)

    read.__name__ = "path"  # Typer shows it in place of a value
    return read


def local_or_hub(where: str) -> Callable[[str | PathOrHub], PathOrHub]:
    """Returns the reader of a model's path or a repository's address."""

    def read(text: str | PathOrHub) -> PathOrHub:
        if isinstance(text, PathOrHub):  # the default
            return text
        if (repository := repository_of(text)) is not None:
            return PathOrHub(Path(repository), repository)
        from wanconv.storage.paths import check_scheme, local_path

        check_scheme(text, where, hubs=True)
        path = local_path(text, where)
        _refuse_bare_repository(text, path)
        return PathOrHub(path)

    read.__name__ = "path"  # Typer shows it in place of a value
    return read


def name_or_file(where: str) -> Callable[[str], str]:
    """Returns the reader of a name that ships with wanconv, or of the path of a `.toml` file."""

    def read(text: str) -> str:
        if text.endswith(".toml") or not text.strip() or "/" in text or text.startswith("~"):
            return str(local(where)(text))
        return text

    read.__name__ = "str"
    return read


def _is_elsewhere(where: str, repository: str, use: Use) -> UsageError:
    if use == "model":
        message = f"{repository} is a repository, and this command reads what is here"
        return UsageError(message, f"wanconv download {repository} brings it here")
    hint = f"write to a folder, then wanconv publish FOLDER {repository}" if use == "target" else "download it first"
    return UsageError(f"{where}: {repository} is a repository, not a path on this machine", hint)


def _refuse_bare_repository(text: str, path: Path) -> None:
    """Raises InputError for OWNER/NAME that is not a local path."""
    if (
        text.count("/") == 1
        and ":" not in text
        and text[0] not in "/.~"
        and not text.endswith("/")
        and not os.path.lexists(path)
    ):
        raise InputError(f"{text} does not exist", f"check the path, or write hf://{text} where it is a repository")
