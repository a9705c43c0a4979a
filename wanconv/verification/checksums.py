"""Known digests of a folder's files: lists of sha256sum and md5sum, and the records of downloads."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wanconv.containers.files import explained
from wanconv.errors import CheckFailed, DigestMismatch, InputError
from wanconv.provenance import download_record, manifest
from wanconv.report import Finding
from wanconv.storage.digests import digests_of
from wanconv.storage.reading import JSON_NBYTES, brief, read_small
from wanconv.types.progress import Progress, total
from wanconv.types.text import printable

_KINDS = r"(?:md5|sha(?:1|224|256|384|512))"
_LIST_NAME = re.compile(rf"(?i).*{_KINDS}[-_]?sums?.*|.*\.{_KINDS}(?:\.txt)?")
_NO_LISTS = (  # files that are not lists, by suffix: signatures of lists, programs that make lists, texts about them
    *(".asc", ".sig", ".gpg", ".minisig"),
    *(".py", ".sh", ".bat", ".ps1", ".md", ".html", ".ipynb", ".json", ".toml", ".yml", ".yaml"),
)
_BY_LENGTH = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
_BY_TAG = {"MD5": "md5", **{f"SHA{bits}": f"sha{bits}" for bits in (1, 224, 256, 384, 512)}}
_BY_TAG |= {f"SHA2-{bits}": f"sha{bits}" for bits in (224, 256, 384, 512)}  # OpenSSL's
_GNU_LINE = re.compile(r"(\\?)([0-9a-fA-F]+)(?: [ *]|[ \t]+)(.+)")
_BSD_LINE = re.compile(r"(\\?)([A-Za-z0-9/-]+) ?\((.+)\) ?= ([0-9a-fA-F]+)")
_BARE_LINE = re.compile(r"([0-9a-fA-F]+)(?: [ *]-)?\s*")
_OVERWRITTEN = re.compile(r"#([0-9a-fA-F]+)[ \t*]")  # a digest, the first digit of which became a #
_SWALLOWED = re.compile(r"[^\s0-9a-fA-F#(:=][0-9a-fA-F]{32,128} [ *]")  # a line joined to the comment before it
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_HINT = "get the list again, or give one that sha256sum or md5sum wrote"
_ANY = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of a digest list; `origin` names the list. A digest without a name has no path: any file may have it."""

    path: str
    algorithm: str
    digest: str
    origin: str


@dataclass(frozen=True, slots=True)
class DigestList:
    """The lines of a list, and a failure for each one that is damaged."""

    lines: list[Listed] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def __add__(self, other: "DigestList") -> "DigestList":
        return DigestList(self.lines + other.lines, self.findings + other.findings)


def lists_in(folder: Path) -> list[Path]:
    """Returns the files of a folder that are digest lists, by their names."""
    return sorted(
        file
        for file in folder.iterdir()
        if _LIST_NAME.fullmatch(file.name) and not file.name.lower().endswith(_NO_LISTS) and file.is_file()
    )


def read_list(path: Path) -> DigestList:
    """Returns the lines of a list, GNU or BSD style; raises InputError for a file without a valid line."""
    with explained(path):
        raw = read_small(path, JSON_NBYTES).removeprefix(b"\xef\xbb\xbf")
    read = DigestList()
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            parsed = _parse(line.removesuffix(b"\r"), path)
        except ValueError as error:
            read.findings.append(Finding("failure", str(path), f"line {number} {error}", _HINT, InputError.code))
        else:
            read.lines.extend(parsed)
    if read.lines:
        return read
    if not read.findings:
        raise InputError(f"{path} lists nothing", _HINT)
    details = [finding.message for finding in read.findings[1:]]
    raise InputError(f"{path} is not a list of digests: {read.findings[0].message}", _HINT, details)


def _parse(raw: bytes, path: Path) -> list[Listed]:
    """Returns a line's entries, none for a comment; raises ValueError for an invalid line."""
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if not line.strip():
        return []
    if line.startswith("#"):
        _check_comment(line)
        return []
    name, escaped = _ANY, ""
    if bare := _BARE_LINE.fullmatch(line):
        digest = bare[1]
        algorithm = _BY_LENGTH.get(len(digest))
        stem = path.name.rpartition(".")[0]
        name = stem if stem and (path.parent / stem).is_file() else _ANY  # FILE.sha256 is about FILE
    elif gnu := _GNU_LINE.fullmatch(line):
        escaped, digest, name = gnu.groups()
        algorithm = _BY_LENGTH.get(len(digest))
    elif bsd := _BSD_LINE.fullmatch(line):
        escaped, tag, name, digest = bsd.groups()
        algorithm = _BY_TAG.get(tag.upper())
    else:
        raise ValueError(f"is not a digest and a file name: {brief(line)}")
    if algorithm is None or _BY_LENGTH.get(len(digest)) != algorithm:
        raise ValueError(f"has a digest of an unknown kind, with {len(digest)} digits")
    if escaped:
        name = re.sub(r"\\[\\nr]", lambda match: _ESCAPES[match[0]], name)
    return [Listed(name.removeprefix("./"), algorithm, digest.lower(), path.name)]


def _check_comment(line: str) -> None:
    """Raises ValueError for a comment that is probably a damaged line of the list: one wrong bit is enough."""
    overwritten = _OVERWRITTEN.match(line)
    if not printable(line.replace("\t", " ")) or _SWALLOWED.search(line):
        raise ValueError(f"is a comment that holds more than a comment: {brief(line)}")
    if overwritten and len(overwritten[1]) + 1 in _BY_LENGTH:
        raise ValueError(f"is a comment that was a digest: {brief(line)}")


def placed(read: DigestList, root: Path) -> DigestList:
    """Returns the list with paths relative to a folder: a list made further up has more folders before its files.

    Which ones follows from the files here, or else from the folder's name; if both leave it open, that is a failure.
    """
    named = [line for line in read.lines if line.path]
    if not named or any(_is_here(root, line.path) for line in named):
        return read
    prefixes = {prefix for line in named if (prefix := _prefix(root, line.path)) is not None}
    if len(prefixes) > 1:
        prefixes = {prefix for prefix in prefixes if prefix[-1] == root.resolve().name} or prefixes
    if not prefixes:
        return read
    if len(prefixes) > 1:
        ways = ", ".join(sorted("/".join(prefix) for prefix in prefixes))
        message = f"its lines fit {root} in {len(prefixes)} ways, as any of {ways}"
        finding = Finding("failure", named[0].origin, message, "give a list that was made in it", CheckFailed.code)
        return DigestList([line for line in read.lines if not line.path], [*read.findings, finding])
    (prefix,) = prefixes
    lines = [line for line in read.lines if not line.path]
    for line in named:
        parts = tuple(line.path.split("/"))
        if parts[: len(prefix)] == prefix:
            lines.append(replace(line, path="/".join(parts[len(prefix) :])))
    others = len(read.lines) - len(lines)
    note = Finding("note", named[0].origin, f"{others} of its lines are about files elsewhere")
    return DigestList(lines, [*read.findings, *([note] if others else [])])


def _prefix(root: Path, path: str) -> tuple[str, ...] | None:
    """Returns the folders before the longest end of a path that names a file here; None if no end does."""
    parts = tuple(path.split("/"))
    return next((parts[:cut] for cut in range(1, len(parts)) if _is_here(root, "/".join(parts[cut:]))), None)


def _is_here(root: Path, path: str) -> bool:
    return manifest.is_inside(path) and os.path.lexists(root / path)


def about_file(read: DigestList, file: Path) -> DigestList:
    """Returns the lines about one file, by its name and, if there are several, by its folders; raises InputError if two
    lines remain with different digests."""
    there = (*file.resolve().parent.parts, file.name)
    shared: dict[Listed, int] = {}
    for line in read.lines:
        parts = tuple(line.path.split("/")) if line.path else (file.name,)
        if parts[-1] == file.name:
            same = zip(reversed(parts), reversed(there), strict=False)
            shared[line] = next((count for count, (one, other) in enumerate(same) if one != other), len(parts))
    best = [line for line, count in shared.items() if count == max(shared.values())]
    said: dict[str, Listed] = {}
    for line in best:
        if said.setdefault(line.algorithm, line).digest != line.digest:
            message = f"{said[line.algorithm].path} and {line.path} of {line.origin} could both be {file}"
            raise InputError(message, "give the folder that the list was made for")
    return DigestList([replace(line, path=file.name) for line in best], read.findings)


def known_to_hugging_face(root: Path, paths: Sequence[str]) -> list[Listed]:
    """Returns the files whose digest Hugging Face's client left: sha256, or git's sha1 of those outside of LFS."""
    found = ((path, manifest.known_etag(root, path)) for path in paths)
    algorithms = {64: "sha256", 40: "git-sha1"}
    return [Listed(path, algorithms[len(etag)], etag, "Hugging Face's client") for path, etag in found if etag]


def recorded(root: Path) -> list[Listed]:
    """Returns the files of the download that a folder came from; raises InputError for an invalid record."""
    record = download_record.read(root)
    return (
        [Listed(file.path, file.algorithm, file.digest, download_record.NAME) for file in record.files]
        if record
        else []
    )


def check(
    root: Path,
    listed: Sequence[Listed],
    progress: Progress,
    jobs: int,
    known: dict[str, str] | None = None,
) -> tuple[list[Finding], set[str]]:
    """Returns a failure for every listed file that is missing, outside the folder or different, and the compared files.
    Each is read once, even if it is listed several times; `known` are sha256 that were read already."""
    findings, inside = [], []
    for line in listed:
        if line.path and not manifest.is_inside(line.path):
            message = f"{line.origin} lists it, and its path is not inside this folder"
            findings.append(Finding("failure", line.path, message, "give the folder it belongs to", CheckFailed.code))
        elif line.path and (finding := manifest.unreadable(root, line.path)):
            findings.append(finding)
        else:
            inside.append(line)
    found = _digests(root, inside, progress, jobs, known or {})
    compared = set()
    for line in inside:
        if not line.path:
            same = {path for path, digests in found.items() if _digest(digests, line.algorithm) == line.digest}
            compared |= same
            findings += [] if same else [_nobodys(line)]
            continue
        compared.add(line.path)
        digests = found[line.path]
        if isinstance(digests, OSError):
            message, fix, code = f"cannot be read: {digests.strerror}", "check the disk", InputError.code
        elif (digest := digests[line.algorithm]) != line.digest:
            message, code = f"{line.algorithm} is {digest}, and {line.origin} says {line.digest}", DigestMismatch.code
            fix = "get the file again"
        else:
            continue
        findings.append(Finding("failure", line.path, message, fix, code))
    return list(dict.fromkeys(findings)), compared


def _digest(digests: dict[str, str] | OSError, algorithm: str) -> str | None:
    return None if isinstance(digests, OSError) else digests.get(algorithm)


def _nobodys(line: Listed) -> Finding:
    message = f"no file of this folder has the {line.algorithm} {line.digest}"
    return Finding("failure", line.origin, message, "get the file again that it is of", DigestMismatch.code)


def _digests(
    root: Path, lines: Sequence[Listed], progress: Progress, jobs: int, known: dict[str, str]
) -> dict[str, dict[str, str] | OSError]:
    """Returns the digests of all files that lines name; if a line has no name, of every file of the folder."""
    wanted: dict[str, set[str]] = {}
    for line in lines:
        if line.path:
            wanted.setdefault(line.path, set()).add(line.algorithm)
    if nameless := {line.algorithm for line in lines if not line.path}:
        for path in _files(root):
            wanted.setdefault(path, set()).update(nameless)
    unread = {path: kinds - ({"sha256"} if path in known else set()) for path, kinds in wanted.items()}
    unread = {path: kinds for path, kinds in unread.items() if kinds}
    tell = total(progress, "checking digests", sum((root / path).stat().st_size for path in unread))
    found = digests_of(root, unread, tell, jobs)
    for path in wanted:
        digests = found.setdefault(path, {})
        if path in known and not isinstance(digests, OSError):
            digests["sha256"] = known[path]
    return found


def _files(root: Path) -> Iterator[str]:
    """Yields the files that a digest without a name may belong to: neither hidden ones nor lists."""
    lists = set(lists_in(root))
    for file in root.rglob("*"):
        path = file.relative_to(root).as_posix()
        hidden = any(part.startswith(".") for part in path.split("/"))
        if not hidden and file not in lists and manifest.is_inside(path) and not manifest.unreadable(root, path):
            yield path
