"""From the text of a path to the path, and names that an output folder must not have.

The text is needed, since a `Path` drops a leading `./` and one of the two slashes of an address: `./~root` is a folder
of that name, and `~root` is a user's home.
"""

from pathlib import Path

from wanconv.errors import UsageError
from wanconv.storage.places import scheme_of, unsupported
from wanconv.types.tensors import CONTAINERS
from wanconv.types.text import printable


def local_path(text: str, where: str) -> Path:
    """Returns the local path that a text means; a leading `~` is read like in a shell.

    `where` names the argument with the text. Raises UsageError for an empty text, an address, and an unknown home
    folder. A path that could be mistaken for a home folder or an address (`./~root`, `./s3:/x`) is returned as an
    absolute path.
    """
    if not text.strip():
        raise UsageError(f"{where}: the path is empty", "name one; a variable that is not set leaves it empty")
    check_scheme(text, where)
    if text.startswith("~"):
        return _at_home(Path(text), where)
    path = Path(text)
    return Path.cwd() / path if str(path).startswith("~") or scheme_of(str(path)) else path


def _at_home(path: Path, where: str) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        if path.parts[0] != "~":
            return path  # no user has that name: a shell leaves it unchanged, too
        raise UsageError(f"{where}: {path}: this user has no home folder", "set HOME, or give the whole path") from None


def check_scheme(text: str, where: str = "", hubs: bool = False) -> None:
    """Raises UsageError for an address; with `hubs`, only for one that is not a repository's."""
    if fault := unsupported(text, hubs):
        raise UsageError(f"{where}: {fault[0]}" if where else fault[0], fault[1])


def check_target(folder: Path, *suffixes: str) -> None:
    """Raises UsageError if a folder that is to be written has the name of a weight file, or of a file with one of
    `suffixes`, or one that cannot be printed, or is an address."""
    if not printable(str(folder)):  # no command would read a folder of this name
        raise UsageError(f"{str(folder)!r} holds characters that no path should have", "choose another name")
    if not folder.is_absolute():
        check_scheme(str(folder))
    if folder.suffix.lower() in (*CONTAINERS, *suffixes):
        message = f"{folder} is the name of a file, and a folder is written there"
        raise UsageError(message, f"name a folder: {folder.with_suffix('')}")
