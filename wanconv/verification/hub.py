"""Compares a folder with its hub's list: the digests it should have, and missing and extra files."""

import os
import re
from pathlib import Path

from wanconv.errors import CheckFailed, UsageError
from wanconv.provenance import download_record
from wanconv.report import Finding
from wanconv.storage.hubs import Patience, Reference, Snapshot, open_hub, parse
from wanconv.verification.checksums import Listed

RECORDED = "recorded"
# folders where the hubs' clients keep models, by the hub's name
_SLASH = 2 * "-"  # the separator in both clients' cache names
_CACHES = {
    "hf": re.compile(r"/models--(?P<repository>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})"),
    "ms": re.compile(r"/models/(?P<repository>[^/]+--[^/]+)/snapshots/(?P<revision>[^/]+)"),
}


def compare(
    root: Path, which: str, token: str | None, patience: Patience | None = None
) -> tuple[list[Listed], list[Finding]]:
    """Returns the lines of the hub's list about this folder's files, and findings about the other differences.

    `which` is a repository, or `recorded`: the one that the download's record or the path of a client's cache names.
    Files that a recorded download left out are not missing.
    """
    record = download_record.read(root)
    reference = _recorded(root, record) if which == RECORDED else parse(which)
    snapshot = open_hub(reference.hub, token, patience).snapshot(reference.repository, reference.revision)
    remote = {file.path: file for file in snapshot.files}
    local = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() or path.is_symlink()}
    wanted = {file.path for file in record.files} if record and which == RECORDED else local & remote.keys()
    findings = [
        Finding("failure", path, f"is not in {snapshot.uri} any more", "run wanconv download again", CheckFailed.code)
        for path in sorted(wanted - remote.keys())
    ]
    findings += [
        Finding("warning", path, f"is not in {snapshot.uri}", "remove it if nobody needs it")
        for path in sorted(local - remote.keys() - wanted)
        if not any(part.startswith(".") for part in path.split("/"))
    ]
    if not (record and which == RECORDED):
        findings += [
            Finding("warning", path, f"is in {snapshot.uri} and not here") for path in sorted(remote.keys() - local)
        ]
    lines = [remote[path] for path in sorted(wanted & remote.keys())]
    return [Listed(file.path, file.algorithm, file.digest, snapshot.uri) for file in lines], findings


def _recorded(root: Path, record: Snapshot | None) -> Reference:
    if record is not None:
        return Reference(record.hub, record.repository, record.commit or record.revision)
    for hub, cache in _CACHES.items():
        if match := cache.search(os.path.realpath(root)):
            return Reference(hub, match["repository"].replace(_SLASH, "/", 1), match["revision"])
    hint = 'name it: `hub="hf://OWNER/NAME"` or `hub="ms://OWNER/NAME"`'
    raise UsageError(f"nothing in {root} says which repository it is from", hint)
