"""Rows of a hub's list, or of a record of it, as files: each field is checked, and an invalid one is shown."""

import re
from collections.abc import Mapping

from wanconv.storage.hubs.types import Algorithm, RemoteFile

DIGITS: Mapping[str, int] = {"sha256": 64, "git-sha1": 40}
MAX_FILE_NBYTES = 1 << 43  # 8 TiB: hubs take half of one, and a file system that makes room for it may take 16
_MAX_PATH = 4096  # characters; hubs.names decides what may be written
_MAX_DEPTH = 64  # folders: checks that visit all folders of all listed files must end in seconds
_HEX = re.compile(r"[0-9a-f]*")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1, and its SHA-256
_MAX_SHOWN = 60


def remote_file(path: object, nbytes: object, algorithm: object, digest: object) -> RemoteFile:
    """Returns a row of a list as a file; raises ValueError that says which field is invalid, and what it holds."""
    if not isinstance(path, str) or len(path) > _MAX_PATH:
        raise ValueError(f"path is {shown(path)}")
    if (depth := path.count("/")) > _MAX_DEPTH:
        raise ValueError(f"path is {shown(path)}, {depth} folders deep")
    where = f"(of {shown(path)})"
    if type(nbytes) is not int or not 0 <= nbytes <= MAX_FILE_NBYTES:
        raise ValueError(f"size is {shown(nbytes)} {where}")
    if not isinstance(algorithm, str) or algorithm not in DIGITS:
        raise ValueError(f"algorithm is {shown(algorithm)} {where}")
    if not isinstance(digest, str) or len(digest) != DIGITS[algorithm] or not _HEX.fullmatch(digest):
        raise ValueError(f"{algorithm} is {shown(digest)} {where}")
    named: Algorithm = "sha256" if algorithm == "sha256" else "git-sha1"
    return RemoteFile(path, nbytes, named, digest)


def shown(value: object) -> str:
    """Returns a hub's text for a message: one line, shortened, with invisible characters escaped."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = ascii(value[:_MAX_SHOWN]) if not value.isprintable() else repr(value[:_MAX_SHOWN])
        return text + ("…" if len(value) > _MAX_SHOWN else "")
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**30):
        return repr(value)
    return {dict: "an object", list: "a list", int: "a number of more than 30 digits"}.get(type(value), "a value")


def is_commit(value: object) -> bool:
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None
