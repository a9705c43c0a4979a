"""verify: headers, cover and digests of a folder; against its source, a proof element by element."""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path, PurePosixPath

import torch

from wanconv.checkpoint import open_checkpoint
from wanconv.errors import REGISTRY, CheckFailed, DigestMismatch, InputError, NotFinite, Refused
from wanconv.families import homeless, identify
from wanconv.families.identify import Expert
from wanconv.formats.plain import Caster
from wanconv.layouts import source_layout
from wanconv.report import Finding, Report, Table
from wanconv.tensors import Model, ModelTensor
from wanconv.workshop import manifest
from wanconv.workshop.mover import Reader, Sources, runs
from wanconv.workshop.progress import Progress, total

_LISTS = ("*sha256sum*", "*SHA256SUMS*", "*.sha256", "*md5sum*", "*MD5SUMS*", "*.md5")
_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
_GNU_LINE = re.compile(r"(\\?)([0-9a-fA-F]+) [ *](.+)")
_BSD_LINE = re.compile(r"[A-Z0-9-]+ \((.+)\) = ([0-9a-fA-F]+)")


@dataclass(frozen=True, slots=True)
class Options:
    """What `verify` is asked for: `sums` are digest lists (none: those that lie in the folder)."""

    against: Path | None = None
    sums: tuple[Path, ...] = ()
    expert: Expert | None = None
    exclude: tuple[str, ...] = ()
    jobs: int = 2


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a digest list."""

    path: str
    digest: str
    origin: str


def verify(path: Path, options: Options, progress: Progress = lambda what, done, total: None) -> Report:
    """Returns what was checked and every failure; raises InputError where headers or cover are already wrong."""
    known = manifest.read(path) if path.is_dir() else None
    findings: list[Finding] = []
    figures: dict[str, object] = {}
    if known is not None:
        files = manifest.files(known)
        tell = total(progress, "checking digests", sum(file.nbytes for file in files))
        findings += manifest.check_files(path, known, tell, options.jobs)
        figures["manifest"] = f"{len(files)} files listed"
    listed = _listed(path, options.sums) if known is None or options.sums else []
    figures["digest_lists"] = f"{len(listed)} files listed"
    findings += _check_listed(path if path.is_dir() else path.parent, listed, progress, options.jobs)
    damaged = bool([one for one in findings if one.severity == "failure"])
    try:
        model = identify(open_checkpoint(path, options.exclude), options.expert)
    except InputError:
        if not damaged:
            raise
        return _report(path, figures, [], findings)  # the digests say more than the header that broke
    figures = {
        "family": model.family.name,
        "layout": source_layout(model).name,
        "cover": f"{len(model.tensors)} tensors, every one known and none missing",
        **figures,
    }
    if known is None and not listed:
        findings.append(
            Finding(
                "warning", str(path), "no digest is known: headers and cover are all that was checked", "give --sums"
            )
        )
    if known is not None:
        findings += _extra(path, known)
    tables: list[Table] = []
    if options.against is not None:
        source = identify(open_checkpoint(options.against), options.expert)
        compared, failures = _compare(model, source, progress, options.jobs)
        findings += failures
        tables.append(compared)
        figures["against"] = str(options.against)
    return _report(path, figures, tables, findings)


def _report(path: Path, figures: dict[str, object], tables: list[Table], findings: list[Finding]) -> Report:
    failures = [finding for finding in findings if finding.severity == "failure"]
    outcome = f"{len(failures)} failures" if failures else "as it should be"
    code = max((REGISTRY[failure.code].exit_code for failure in failures), default=0)
    return Report(
        "verify", f"{path}: {outcome}", {**figures, "failures": len(failures)}, tables, findings, exit_code=code
    )


def _listed(path: Path, sums: Sequence[Path]) -> list[Listed]:
    """Returns the lines of the digest lists: those named, or those that lie in the folder."""
    lists = list(sums)
    if not lists and path.is_dir():
        lists = sorted({file for glob in _LISTS for file in path.glob(glob) if file.is_file()})
    return [line for file in lists for line in _parse(file)]


def _parse(file: Path) -> list[Listed]:
    """Returns the lines of a sha256sum, md5sum, shasum list, GNU or BSD style; raises InputError for anything else."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}", "give a list that sha256sum or md5sum wrote") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if gnu := _GNU_LINE.fullmatch(line):
            escaped, digest, name = gnu.groups()
            name = name.replace("\\n", "\n").replace("\\\\", "\\") if escaped else name
        elif bsd := _BSD_LINE.fullmatch(line):
            name, digest = bsd.groups()
        else:
            raise InputError(
                f"{file}, line {number} is no digest and file name", "give a list that sha256sum or md5sum wrote"
            )
        if len(digest) not in _ALGORITHMS:
            raise InputError(
                f"{file}, line {number}: a digest of {len(digest)} digits is of no known kind", "use sha256sum"
            )
        lines.append(Listed(name, digest.lower(), file.name))
    if not lines:
        raise InputError(f"{file} lists nothing", "give a list that sha256sum or md5sum wrote")
    return lines


def _check_listed(root: Path, listed: Sequence[Listed], progress: Progress, jobs: int) -> list[Finding]:
    """Returns a failure for every listed file that is missing, elsewhere or of other bytes."""
    findings, inside = [], []
    for line in listed:
        name = PurePosixPath(line.path)
        if name.is_absolute() or ".." in name.parts:
            findings.append(_failure(line.path, f"{line.origin} names a file outside of the folder", CheckFailed.code))
        elif not (root / line.path).is_file():
            findings.append(_failure(line.path, f"is missing, and {line.origin} lists it", CheckFailed.code))
        else:
            inside.append(line)
    tell = total(progress, "checking digests", sum((root / line.path).stat().st_size for line in inside))
    for algorithm in sorted({_ALGORITHMS[len(line.digest)] for line in inside}):
        lines = [line for line in inside if _ALGORITHMS[len(line.digest)] == algorithm]
        found = manifest.digest_files(root, [line.path for line in lines], algorithm, tell, jobs)
        for line in lines:
            digest = found[line.path]
            if isinstance(digest, OSError):
                findings.append(_failure(line.path, f"cannot be read: {digest.strerror}", InputError.code))
            elif digest != line.digest:
                findings.append(
                    _failure(
                        line.path, f"{algorithm} is {digest}, and {line.origin} says {line.digest}", DigestMismatch.code
                    )
                )
    return findings


def _failure(where: str, message: str, code: str) -> Finding:
    return Finding("failure", where, message, "get the file again", code)


def _extra(path: Path, known: manifest.Json) -> list[Finding]:
    listed = {file.path for file in manifest.files(known)} | {manifest.NAME}
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    return [Finding("warning", name, "is not in the manifest") for name in sorted(found - listed)]


def _compare(model: Model, source: Model, progress: Progress, jobs: int) -> tuple[Table, list[Finding]]:
    """Returns how near each format came to its bound, and the first bad element of every tensor that breaks it."""
    ours, theirs = model.tensors, source.tensors
    findings = [
        Finding("failure", name, "is in the source and not here", "convert again", CheckFailed.code)
        for name in theirs
        if name not in ours and not _is_homeless(model, name)
    ]
    findings += [
        Finding(
            "failure",
            name,
            "is here and not in the source",
            "compare with the model it was made from",
            CheckFailed.code,
        )
        for name in ours
        if name not in theirs
    ]
    both = [name for name in theirs if name in ours]
    tell = total(progress, "comparing", sum(theirs[name].nbytes for name in both))
    lock = threading.Lock()
    worst: dict[tuple[str, str], tuple[int, int, float]] = {}
    sources, local = Sources(), threading.local()

    def one(name: str) -> Finding | None:
        if not hasattr(local, "tools"):
            local.tools = Reader(sources), Reader(sources), Caster()
        finding, ratio = _compare_tensor(theirs[name], ours[name], *local.tools)
        pair = theirs[name].dtype, ours[name].dtype
        with lock:
            tensors, elements, highest = worst.get(pair, (0, 0, 0.0))
            worst[pair] = tensors + 1, elements + ours[name].numel, max(highest, ratio)
            tell(theirs[name].nbytes)
        return finding

    torch.set_num_threads(1)  # the pool's threads are the parallelism
    with closing(sources), ThreadPoolExecutor(jobs) as pool:
        findings += [finding for finding in pool.map(one, both) if finding is not None]
    rows = tuple(
        (*pair, tensors, elements, f"{ratio:.6f}") for pair, (tensors, elements, ratio) in sorted(worst.items())
    )
    return Table("formats", ("from", "stored", "tensors", "elements", "largest error / bound"), rows), findings


def _compare_tensor(
    source: ModelTensor, stored: ModelTensor, reader: Reader, other: Reader, caster: Caster
) -> tuple[Finding | None, float]:
    if source.shape != stored.shape:
        message = f"has shape {list(stored.shape)}, and {list(source.shape)} in the source"
        return Finding("failure", source.name, message, "convert again", CheckFailed.code), inf
    worst = 0.0
    for start, count in runs(0, source.numel):
        try:
            violation, ratio = caster.first_violation(
                reader.values(source, start, count), other.values(stored, start, count), start
            )
        except Refused as error:  # a change between dtypes that no format makes
            return Finding("failure", source.name, error.message, "convert again", CheckFailed.code), inf
        worst = max(worst, ratio)
        if violation is not None:
            finite = isfinite(violation.source) and isfinite(violation.stored)
            message = (
                f"element {violation.index} is {violation.stored:.9g}, and {violation.source:.9g} in the source: "
                f"more than {violation.bound:.3g} apart"
            )
            return Finding(
                "failure", source.name, message, "convert again", CheckFailed.code if finite else NotFinite.code
            ), worst
    return None, worst


def _is_homeless(model: Model, name: str) -> bool:
    component = model.components.get(name.partition("/")[0])
    if component is None:
        return False
    left_out = homeless(component.architecture, component.scheme, component.dims)
    return name.partition("/")[2] in left_out
