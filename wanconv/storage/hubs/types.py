"""Data of a hub: a repository's files at one revision, and the address of each file's bytes."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from wanconv.errors import UsageError

Algorithm = Literal["sha256", "git-sha1"]


class Hasher(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its hub lists it; `git-sha1` is git's name of a blob, which hubs give for files outside of LFS."""

    path: str
    nbytes: int
    algorithm: Algorithm
    digest: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files. `commit` is None if the hub names none: then only the digests identify the files."""

    hub: str
    repository: str
    revision: str
    commit: str | None
    files: tuple[RemoteFile, ...]

    @property
    def uri(self) -> str:
        return f"{self.hub}://{self.repository}@{self.commit or self.revision}"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a file's bytes; `secrets` are headers for the origin of `url` only."""

    url: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Hub(Protocol):
    """`name` is the hub's word in `--source` and in `hf://…`, `title` the one for people, `token_name` its variable."""

    name: str
    title: str
    token_name: str

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """Returns the files of a revision, pinned; raises InputError if the hub refuses or cannot be reached."""

    def address(self, snapshot: Snapshot, path: str) -> Address:
        """Returns the address of a listed file's bytes, without a request."""

    def publish(self, folder: Path, paths: Sequence[str], repository: str, private: bool, bars: bool) -> None:
        """Uploads these files of a folder as one commit, to a repository that is made if there is none; `bars` shows
        the client's own progress on stderr."""


def hasher(algorithm: str, nbytes: int) -> Hasher:
    """Returns the hasher of a file of this length: hashlib's, or git's, which hashes a line before the content."""
    if algorithm == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)
    return hashlib.new(algorithm)


def endpoint(variable: str, default: str) -> str:
    """Returns a hub's address from the environment; raises UsageError if it is not an HTTP address."""
    url = (os.environ.get(variable) or default).rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{variable} is {url[:100]!r}, which is not a valid address", f"write it as {default}")
    return url


def usable_token(token: str | None, variable: str) -> str | None:
    """Returns a token that is valid in a header; otherwise raises UsageError, which does not show the token."""
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token holds characters that no token has", f"copy it again, into {variable}")
    return token or None
