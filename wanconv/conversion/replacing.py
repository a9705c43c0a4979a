"""Folders that may be replaced: an empty one, or one that wanconv wrote whole and that is not in use otherwise.

A folder is wanconv's if its own `wanconv.json` lists every file in it. Anything else in it, such as an empty folder, a
link or another file system, belongs to someone else, and then nothing in the folder is touched.
"""

import errno
import os
import pwd
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from wanconv.errors import InputError, Occupied, UsageError
from wanconv.provenance import manifest
from wanconv.storage.reading import node_kind
from wanconv.types.documents import Json

_MOST_NAMED = 10  # most files that a refusal names
_BY_HAND = "choose another folder for the output, or move it away by hand"
_ELSEWHERE = "name a new folder for the output"
_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


def is_free(out: Path) -> bool:
    """True if OUT can appear: the path does not exist, or is an empty folder. Raises OSError."""
    return not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))


def check_place(out: Path, reads: Iterable[Path] = ()) -> None:
    """Raises UsageError if OUT is a mount point, or is or contains a folder that must stay: home, the current folder,
    those of the running Python and of wanconv, and the input (`reads`). No option changes that."""
    if os.path.ismount(out) or os.path.realpath(out) in mount_points():
        raise UsageError(f"{out} is a mount point", _ELSEWHERE)
    _check_apart(out, (*_standing(), *(("the source", path) for path in reads)))


def check_not_home(folder: Path) -> None:
    """Raises UsageError for a folder that is or contains a home folder: files with names from outside (`.profile`) must
    not be written there."""
    _check_apart(folder, [("the home folder", home) for home in _homes()])


def _check_apart(out: Path, places: Iterable[tuple[str, Path]]) -> None:
    real, known = os.path.realpath(out), _identity(out)
    for what, place in places:
        for path in dict.fromkeys((place, Path(os.path.realpath(place)))):
            for at in (path, *path.parents):
                if str(at) == real or (known is not None and _identity(at) == known):  # a bind mount is another path
                    raise UsageError(f"{out} is {what}" if at == path else f"{out} holds {what}, {place}", _ELSEWHERE)


def check_replaceable(out: Path) -> None:
    """Raises UsageError unless OUT is free or wanconv's alone. Raises OSError."""
    if not is_free(out) and (obstacle := others_in(out)) is not None:
        raise obstacle


def others_in(out: Path) -> UsageError | None:
    """Returns why OUT is not wanconv's alone; None if it is. Raises OSError."""
    mode = out.lstat().st_mode
    if not stat.S_ISDIR(mode):
        return Occupied(f"{out} is {_kind(mode)}, not a folder, and is not replaced", _BY_HAND)
    try:
        listed = names(known) if (known := manifest.read(out)) is not None else set()
    except InputError:
        listed = set()
    if not listed:
        return Occupied(f"wanconv did not write {out}, and does not replace it", _BY_HAND)
    if others := list(islice(foreign(out, listed), _MOST_NAMED)):
        return Occupied(f"{out} holds what wanconv did not write, and is not replaced", _BY_HAND, others)
    return None


def names(known: Json) -> set[str]:
    """Returns the files that a manifest from read() lists, and the manifest itself."""
    return {manifest.NAME, *(file.path for file in manifest.files(known))}


def foreign(folder: Path, listed: Collection[str]) -> Iterator[str]:
    """Yields the entries below a folder that are not listed, each with the reason. Raises OSError."""
    ways, is_mount = _ways(listed), mounts_in(folder)
    for path, status in entries(folder):
        if is_mount(path, status):
            yield f"{path} is a mount point"
        elif stat.S_ISDIR(status.st_mode):
            if path not in ways:
                yield f"{path} is a folder of others"
        elif not stat.S_ISREG(status.st_mode):
            yield f"{path} is {_kind(status.st_mode)}"
        elif path not in listed:
            yield f"{path} is not listed in {manifest.NAME}"


def _ways(listed: Collection[str]) -> set[str]:
    """Returns the folders that lead to files."""
    return {
        str(parent)
        for path in {os.path.dirname(path) for path in listed}
        for parent in (Path(path), *Path(path).parents)
    }


def entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yields all entries below a folder, each folder before its content; follows no link. Raises OSError."""
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(folder / below) as found:
            for entry in sorted(found, key=lambda one: one.name):
                path, status = os.path.join(below, entry.name), entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(path)
                yield path, status


def remove(folder: Path, listed: Collection[str], keep_root: bool = False) -> bool:
    """Removes the listed files and the folders that become empty, but with `keep_root` not `folder` itself; True if
    nothing is left. Raises OSError.

    It works by descriptors and follows no link. The manifest is the last file to be removed, so that the remains of a
    killed run are still known as wanconv's.
    """

    def fail(error: OSError) -> None:  # by default, a folder that cannot be listed is skipped
        raise error

    ways = _ways(listed)
    for root, folders, files, descriptor in os.fwalk(folder, topdown=False, onerror=fail):
        way = os.path.relpath(root, folder)
        for name in folders:
            if os.path.normpath(os.path.join(way, name)) in ways:
                remove_if_empty(name, descriptor)
        for name in sorted(files, key=lambda name: (name == manifest.NAME, name)):
            if os.path.normpath(os.path.join(way, name)) in listed:
                os.unlink(name, dir_fd=descriptor)
    if not keep_root:
        remove_if_empty(folder)
    return not os.path.lexists(folder)


def remove_if_empty(folder: str | Path, descriptor: int | None = None) -> None:
    """Removes a folder if it is empty; its content, or a link in its place, stays. Raises OSError."""
    try:
        os.rmdir(folder, dir_fd=descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise


def _standing() -> Iterator[tuple[str, Path]]:
    """Yields the folders that a process and its user need."""
    for home in _homes():
        yield "the home folder", home
    with suppress(OSError):
        yield "the current folder", Path.cwd()
    for python in (sys.prefix, sys.base_prefix, os.path.dirname(sys.executable), os.path.dirname(os.__file__)):
        yield "the folder of the running Python", Path(python)
    yield "the folder of wanconv itself", Path(__file__).parent.parent


def _homes() -> Iterator[Path]:
    """Yields the user's home folders: by the environment, by the system, and of the user who became root."""
    if home := os.environ.get("HOME"):
        yield Path(home)
    users = {os.getuid(), os.geteuid()}
    with suppress(KeyError, ValueError):
        users.add(int(os.environ["SUDO_UID"]))
    for user in users:
        with suppress(KeyError, OverflowError):
            yield Path(pwd.getpwuid(user).pw_dir)


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def mount_points() -> set[str]:
    """Returns every mount point, if the system lists them: `ismount` does not see a folder that is bound to another
    of the same file system."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return set()
    fields = [line.split(b" ") for line in lines]
    return {os.fsdecode(_OCTAL.sub(lambda code: bytes((int(code[1], 8),)), one[4])) for one in fields if len(one) > 4}


def mounts_in(folder: Path) -> Callable[[str, os.stat_result], bool]:
    """Returns a test of whether a path below a folder, a file or a folder, is a mount point. Raises
    OSError."""
    real, device = os.path.realpath(folder), folder.lstat().st_dev
    found = {os.path.relpath(mount, real) for mount in mount_points() if mount.startswith(f"{real}/")}
    return lambda path, status: path in found or (stat.S_ISDIR(status.st_mode) and status.st_dev != device)


def _kind(mode: int) -> str:
    return "a link" if stat.S_ISLNK(mode) else "a file" if stat.S_ISREG(mode) else node_kind(mode)
