""".wanconv-download.json: what a folder was downloaded from, with the digest that the hub lists for every file.

It is written before the first byte, so that a folder that is not complete is known as such.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from wanconv.checkpoint.files import regular_file, strict_json
from wanconv.checkpoint.output import describe_output_error, publish, write_file
from wanconv.errors import InputError
from wanconv.hubs import RemoteFile, Snapshot
from wanconv.hubs.names import check_names

NAME = ".wanconv-download.json"
SCHEMA = "wanconv.download/1"
_MAX_NBYTES = 64_000_000
_DIGITS = {"sha256": 64, "git-sha1": 40}
_HINT = "run wanconv download again"


def write(root: Path, snapshot: Snapshot) -> None:
    """Records a snapshot, whose files are those that were asked for; the old record is there until the new one is."""
    record = {"schema": SCHEMA, **asdict(snapshot)}
    content = json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n"
    temporary = root / f"{NAME}.tmp"
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise describe_output_error(error, temporary) from error
    write_file(temporary, content)
    publish(temporary, root / NAME)


def sha256_of(record: Snapshot | None, path: str, nbytes: int) -> str | None:
    """Returns the sha256 that a record has for a file of this length, None where it has none."""
    for file in record.files if record else ():
        if (file.path, file.nbytes, file.algorithm) == (path, nbytes, "sha256"):
            return file.digest
    return None


def read(root: Path) -> Snapshot | None:
    """Returns a folder's record, None where there is none; raises InputError for one that cannot be trusted."""
    path = root / NAME
    if not os.path.lexists(path):
        return None
    with regular_file(path) as file:
        record = strict_json(file.read(0, file.size), str(path)) if file.size <= _MAX_NBYTES else None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path} is no record of a download: its schema is not {SCHEMA}", _HINT)
    hub, repository, revision = (record.get(key) for key in ("hub", "repository", "revision"))
    commit, files = record.get("commit"), record.get("files")
    named = hub in ("hf", "ms") and isinstance(repository, str) and isinstance(revision, str)
    if not named or not (commit is None or isinstance(commit, str)):
        raise InputError(f"{path} does not say which repository it is about", _HINT)
    if not isinstance(files, list) or not all(map(_is_file, files)):
        raise InputError(f"{path} does not list its files", _HINT)
    check_names((file["path"] for file in files), str(path))
    return Snapshot(str(hub), str(repository), str(revision), commit, tuple(RemoteFile(**file) for file in files))


def _is_file(entry: object) -> bool:
    if not isinstance(entry, Mapping) or entry.keys() != {"path", "nbytes", "algorithm", "digest"}:
        return False
    path, nbytes, digest = entry["path"], entry["nbytes"], entry["digest"]
    return (
        isinstance(path, str)
        and type(nbytes) is int
        and isinstance(digest, str)
        and re.fullmatch(r"[0-9a-f]*", digest) is not None
        and len(digest) == _DIGITS.get(str(entry["algorithm"]))
    )
