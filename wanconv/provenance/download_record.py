""".wanconv-download.json: a folder's repository and revision, with the hub's digest for every file.

It is written before the first byte, so that an incomplete folder is known as incomplete.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from wanconv.containers.files import regular_file, strict_json
from wanconv.errors import InputError
from wanconv.storage.hubs import RemoteFile, Snapshot
from wanconv.storage.hubs.names import check_names
from wanconv.storage.hubs.rows import is_commit, remote_file
from wanconv.storage.local import describe_output_error, publish, write_file

NAME = ".wanconv-download.json"
SCHEMA = "wanconv.download/1"
_MAX_NBYTES = 64_000_000
_HINT = "run wanconv download again"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}")


def write(root: Path, snapshot: Snapshot) -> None:
    """Records a snapshot, whose files are the requested ones; the new record replaces the old one in one step."""
    record = {"schema": SCHEMA, **asdict(snapshot)}
    content = json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n"
    temporary = root / f"{NAME}.tmp"
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise describe_output_error(error, temporary) from error
    write_file(temporary, content)
    publish(temporary, root / NAME)


def sha256_by_file(record: Snapshot | None) -> dict[tuple[str, int], str]:
    """Returns the sha256 in a record, by path and length of a file."""
    files = record.files if record else ()
    return {(file.path, file.nbytes): file.digest for file in files if file.algorithm == "sha256"}


def read(root: Path) -> Snapshot | None:
    """Returns a folder's record, None if there is none; raises InputError for one that cannot be trusted."""
    path = root / NAME
    if not os.path.lexists(path):
        return None
    with regular_file(path) as file:
        record = strict_json(file.read(0, file.size), str(path)) if file.size <= _MAX_NBYTES else None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a valid download record: its schema is not {SCHEMA}", _HINT)
    hub, repository, revision = (record.get(key) for key in ("hub", "repository", "revision"))
    commit, files = record.get("commit"), record.get("files")
    named = isinstance(hub, str) and _SCHEME.fullmatch(hub) is not None
    named = named and isinstance(repository, str) and isinstance(revision, str)
    if not named or not (commit is None or (isinstance(commit, str) and is_commit(commit))):
        raise InputError(f"{path} does not say which repository it is about", _HINT)
    try:
        listed = tuple(_file(entry) for entry in files) if isinstance(files, list) else None
    except ValueError as error:
        raise InputError(f"{path} does not list its files: {error}", _HINT) from error
    if listed is None:
        raise InputError(f"{path} does not list its files", _HINT)
    check_names((file.path for file in listed), str(path))
    return Snapshot(str(hub), str(repository), str(revision), commit, listed)


def _file(entry: object) -> RemoteFile:
    """Returns a file of a record; raises ValueError for values that `write` does not write."""
    if not isinstance(entry, Mapping) or entry.keys() != {"path", "nbytes", "algorithm", "digest"}:
        raise ValueError("an entry has other fields")
    return remote_file(entry["path"], entry["nbytes"], entry["algorithm"], entry["digest"])
