"""Digests that are known of a folder's files: lists of sha256sum and md5sum, and what downloads left beside them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wanconv.checkpoint.files import regular_file
from wanconv.errors import CheckFailed, DigestMismatch, InputError
from wanconv.progress import Progress, total
from wanconv.report import Finding
from wanconv.workshop import downloaded, manifest

_LISTS = ("*sha256sum*", "*SHA256SUMS*", "*.sha256", "*md5sum*", "*MD5SUMS*", "*.md5")
_MAX_NBYTES = 64_000_000
_BY_LENGTH = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
_BY_TAG = {"MD5": "md5", **{f"SHA{bits}": f"sha{bits}" for bits in (1, 224, 256, 384, 512)}}
_GNU_LINE = re.compile(r"(\\?)([0-9a-fA-F]+) [ *](.+)")
_BSD_LINE = re.compile(r"(\\?)([A-Za-z0-9/-]+) \((.+)\) = ([0-9a-fA-F]+)")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_HINT = "give a list that sha256sum or md5sum wrote"


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of a digest list; `origin` says which."""

    path: str
    algorithm: str
    digest: str
    origin: str


def lists_in(folder: Path) -> list[Path]:
    """Returns the files of a folder that are digest lists, by their names."""
    return sorted({file for glob in _LISTS for file in folder.glob(glob) if file.is_file()})


def read_list(path: Path) -> list[Listed]:
    """Returns the lines of a list, GNU or BSD style; raises InputError for anything else."""
    with regular_file(path) as file:
        raw = file.read(0, min(file.size, _MAX_NBYTES))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no list of digests: it is not UTF-8", _HINT) from None
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip() and not line.startswith("#"):
            lines.append(_parse(line, f"{path}, line {number}", path.name))
    if not lines:
        raise InputError(f"{path} lists nothing", _HINT)
    return lines


def _parse(line: str, where: str, origin: str) -> Listed:
    if gnu := _GNU_LINE.fullmatch(line):
        escaped, digest, name = gnu.groups()
        algorithm = _BY_LENGTH.get(len(digest))
    elif bsd := _BSD_LINE.fullmatch(line):
        escaped, tag, name, digest = bsd.groups()
        algorithm = _BY_TAG.get(tag)
    else:
        raise InputError(f"{where} is no digest and file name", _HINT)
    if algorithm is None or _BY_LENGTH.get(len(digest)) != algorithm:
        raise InputError(f"{where}: a digest of {len(digest)} digits is of no known kind", _HINT)
    if escaped:
        name = re.sub(r"\\[\\nr]", lambda match: _ESCAPES[match[0]], name)
    return Listed(name.removeprefix("./"), algorithm, digest.lower(), origin)


def known_to_hugging_face(root: Path, paths: Sequence[str]) -> list[Listed]:
    """Returns the files whose digest Hugging Face's client left: sha256, or git's sha1 of those outside of LFS."""
    found = ((path, manifest.known_etag(root, path)) for path in paths)
    algorithms = {64: "sha256", 40: "git-sha1"}
    return [Listed(path, algorithms[len(etag)], etag, "Hugging Face's client") for path, etag in found if etag]


def recorded(root: Path) -> list[Listed]:
    """Returns the files of the download that a folder came from; raises InputError for a record that is none."""
    record = downloaded.read(root)
    return [Listed(file.path, file.algorithm, file.digest, downloaded.NAME) for file in record.files] if record else []


def check(root: Path, listed: Sequence[Listed], progress: Progress, jobs: int) -> list[Finding]:
    """Returns a failure for every listed file that is missing, elsewhere or of other bytes."""
    findings, inside = [], []
    for line in listed:
        if not manifest.is_inside(line.path):
            message = f"{line.origin} lists it, and it is no file of this folder"
            findings.append(Finding("failure", line.path, message, "give the folder it belongs to", CheckFailed.code))
        elif finding := manifest.unreadable(root, line.path):
            findings.append(finding)
        else:
            inside.append(line)
    tell = total(progress, "checking digests", sum((root / line.path).stat().st_size for line in inside))
    for algorithm in sorted({line.algorithm for line in inside}):
        lines = [line for line in inside if line.algorithm == algorithm]
        found = manifest.digest_files(root, [line.path for line in lines], algorithm, tell, jobs)
        for line in lines:
            digest = found[line.path]
            if isinstance(digest, OSError):
                message, fix, code = f"cannot be read: {digest.strerror}", "check the disk", InputError.code
            elif digest != line.digest:
                message, code = f"{algorithm} is {digest}, and {line.origin} says {line.digest}", DigestMismatch.code
                fix = "get the file again"
            else:
                continue
            findings.append(Finding("failure", line.path, message, fix, code))
    return findings
