"""publish: uploads a verified conversion to a hub's repository, and compares it with the hub's list."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from wanconv.commands import verify as verifying
from wanconv.errors import CheckFailed, DigestMismatch, UsageError
from wanconv.provenance import manifest
from wanconv.report import Cell, Finding, Report, Table
from wanconv.storage.hubs import Patience, Snapshot, open_hub, parse
from wanconv.types.figures import count
from wanconv.types.progress import Progress, silent, total
from wanconv.verification import checksums

_MAX_SHOWN = 200  # most characters of an unchecked name


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """The options of `publish`; `private` applies to a new repository. Within `bars` the hub's client draws its
    progress; without them the upload is one step of `progress`."""

    token: str | None = field(default=None, repr=False)
    private: bool = False
    bars: AbstractContextManager[None] | None = None
    jobs: int = 2
    patience: Patience = field(default_factory=Patience)


def publish(
    folder: Path,
    repository: str,
    options: PublishOptions,
    progress: Progress = silent,
) -> Report:
    """Uploads the files of the folder's manifest, and the manifest; returns their address. Raises CheckFailed for a
    folder that fails verification, and DigestMismatch if the hub then lists other bytes."""
    reference = parse(repository)
    if reference.revision is not None:
        raise UsageError(f"{repository} names a revision", "leave it out: what is published becomes the latest one")
    known = manifest.read(folder) if folder.is_dir() else None
    if known is None:
        raise UsageError(f"{folder} has no {manifest.NAME}: it is not a conversion", "convert first, then publish OUT")
    files = {file.path: file.nbytes for file in manifest.files(known)}
    files[manifest.NAME] = (folder / manifest.NAME).stat().st_size
    if unseen := [ascii(path) for path in files if not path.isprintable()]:
        message = f"{folder} has {count(len(unseen), 'file')} with characters in the name that cannot be seen"
        raise UsageError(message, "convert again to another folder: who downloads them would be misled", unseen)
    _check(folder, options, progress)
    hub = open_hub(reference.hub, options.token, options.patience)
    advance = total(silent if options.bars else progress, "uploading", sum(files.values()))
    with options.bars or nullcontext():
        hub.publish(folder, tuple(files), reference.repository, options.private, options.bars is not None)
    advance(sum(files.values()))
    snapshot = hub.snapshot(reference.repository, None)
    lines = [checksums.Listed(file.path, file.algorithm, file.digest, snapshot.uri) for file in snapshot.files]
    lines = [line for line in lines if line.path in files]
    wrong = [finding.message for finding in checksums.check(folder, lines, progress, options.jobs)[0]]
    wrong += [f"{path} is not listed" for path in sorted(files.keys() - {line.path for line in lines})]
    if wrong:
        raise DigestMismatch(f"{repository} does not hold what {folder} does", "publish again", wrong)
    figures = {
        "published": Cell(len(files), f"{count(len(files), 'file')}, every digest as {hub.title} lists it"),
        "repository": snapshot.uri,
        "published_nbytes": sum(files.values()),
    }
    table = Table("files", ("path", "size_nbytes"), tuple(files.items()))
    return Report("publish", f"{folder.name}: published", figures, (table,), _others(snapshot, files), tone="success")


def _others(snapshot: Snapshot, files: Collection[str]) -> list[Finding]:
    """Returns a warning about older files in the repository: every download includes them."""
    others = [file.path for file in snapshot.files if file.path not in files and not file.path.startswith(".")]
    if not others:
        return []
    shown = ", ".join(path[:_MAX_SHOWN] for path in others[:3]) + (" …" if len(others) > 3 else "")
    which = "which comes" if len(others) == 1 else "which come"
    message = f"holds {count(len(others), 'file')} besides these, {which} with every download: {shown}"
    return [Finding("warning", snapshot.uri, message, "delete there what is not of this model")]


def _check(folder: Path, options: PublishOptions, progress: Progress) -> None:
    report = verifying.verify(folder, verifying.VerifyOptions(jobs=options.jobs), progress)
    if report.exit_code:
        failures = [f"{one.where}: {one.message}" for one in report.findings if one.severity == "failure"]
        raise CheckFailed(
            f"{folder} does not verify, and nothing was published", f"wanconv verify {quote(str(folder))}", failures
        )
