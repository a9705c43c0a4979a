"""Paths given by callers of the library."""

import os
from pathlib import Path

from wanconv.storage.paths import local_path


def given(path: str | os.PathLike[str], name: str) -> Path:
    """Return the local path that an argument means; raises UsageError for an empty text and an address."""
    return local_path(os.fspath(path), f"`{name}`")


def given_or_none(path: str | os.PathLike[str] | None, name: str) -> Path | None:
    """The same, or None if the argument was left out."""
    return None if path is None else given(path, name)
