"""Files that the user excludes: globs on paths, names and folders, and globs that exclude given files."""

import os
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from glob import escape

from wanconv.errors import argument

_MOST = 4  # globs in one hint


def excluded_by(path: str, globs: Collection[str]) -> str | None:
    """Returns the first glob that matches a relative path or a folder above it, by its whole path or its name.

    `*` crosses slashes. A glob that begins with `./` matches whole paths only.
    """
    if not globs:
        return None
    steps = path.split("/")
    paths = ["/".join(steps[: depth + 1]) for depth in range(len(steps))]
    for glob in globs:
        whole = glob.removeprefix("./").rstrip("/")
        if any(fnmatchcase(one, whole) for one in (paths if glob.startswith("./") else [*paths, *steps])):
            return glob
    return None


def unmatched(globs: Iterable[str], paths: Collection[str]) -> tuple[str, ...]:
    """Returns the globs that match none of the paths."""
    return tuple(glob for glob in dict.fromkeys(globs) if not any(excluded_by(path, (glob,)) for path in paths))


def excluding(paths: Sequence[str], kept: Collection[str] = ()) -> str:
    """Returns the argument that excludes files but none of those `kept`: one glob for each file or, if there are many,
    for each folder with nothing else in it."""
    if len(paths) > _MOST:
        homes = {os.path.dirname(path) for path in kept}
        folders = dict.fromkeys(os.path.dirname(path) for path in paths)
        alone = [
            folder for folder in folders if folder and not any(f"{home}/".startswith(f"{folder}/") for home in homes)
        ]
        rest = [path for path in paths if os.path.dirname(path) not in alone]
        globs = [*(f"{escape(folder)}/*" for folder in alone), *map(_whole, rest)]
    else:
        globs = [_whole(path) for path in paths]
    more = f" and {len(globs) - _MOST} more" if len(globs) > _MOST else ""
    return argument("exclude", globs[:_MOST]) + more


def _whole(path: str) -> str:
    return escape(path) if "/" in path else f"./{escape(path)}"
