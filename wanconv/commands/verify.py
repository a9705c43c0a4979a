"""verify: headers, cover and digests of a folder; against its source, a proof element by element."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wanconv.containers import open_checkpoint
from wanconv.conversion.options import named_layout
from wanconv.errors import REGISTRY, InputError, UsageError, argument
from wanconv.layouts import source_layout
from wanconv.models import Expert, identify
from wanconv.planning import family_in_words, left_out
from wanconv.provenance import manifest, twins
from wanconv.report import Cell, Finding, Report, Table, Tone
from wanconv.storage.hubs import Patience
from wanconv.types.documents import Json
from wanconv.types.figures import count
from wanconv.types.model import Model
from wanconv.types.progress import Progress, silent, total
from wanconv.types.tensors import Checkpoint
from wanconv.verification import checksums, hub
from wanconv.verification.clients import bare_weights, changed_marks, check_client, since
from wanconv.weights.lora import with_loras

_BOUND = Cell(1, "1 is the most that rounding to a format can do: errors up to it are normal, above is damage")


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of `verify`: `sums` are digest lists (none: those in the folder).

    `expert` and `exclude` apply to the verified folder; its manifest says how its source was read. `hub` names a
    repository, or is `recorded`; `token` may read its list. `client` is a layout whose rules are checked.
    `loras` are merged into `against`, as in the verified conversion.
    """

    against: Path | None = None
    sums: tuple[Path, ...] = ()
    expert: Expert | None = None
    exclude: tuple[str, ...] = ()
    jobs: int = 2
    hub: str | None = None
    token: str | None = field(default=None, repr=False)
    client: str | None = None
    loras: tuple[str, ...] = ()
    patience: Patience = field(default_factory=Patience)


def verify(path: Path, options: VerifyOptions, progress: Progress = silent) -> Report:
    """Returns the checks and every failure; raises InputError if headers or cover are already invalid."""
    client = None if options.client is None else named_layout(options.client)
    known = manifest.read(path) if path.is_dir() else None
    source = _source(path, options, known)  # first: a wrong path is refused before hours of reading
    digests = _check_digests(path, known, options, progress)
    findings = list(digests.findings)
    failed = any(finding.severity == "failure" for finding in findings)
    try:
        checkpoint = open_checkpoint(path, options.exclude)
        model = identify(checkpoint, options.expert)
    except InputError:
        if not failed:
            raise
        return _report(path, {"digests": digests.words}, (), findings)  # digests say more than the broken header
    if known is None:
        findings += _without_digest(checkpoint, digests)
    else:
        findings += _unlisted(checkpoint, known)
        findings += changed_marks(model, manifest.says(known), manifest.NAME)
    figures: dict[str, object] = {
        "family": family_in_words(model),
        "layout": source_layout(model).name,
        "cover": Cell(len(model.tensors), f"{count(len(model.tensors), 'tensor')}, every one known and none missing"),
        "digests": digests.words,
    }
    findings += [*left_out(model), *twins.finding(twins.sampled(model))]
    findings += bare_weights(model)
    if client is not None:
        findings += check_client(model, client)
        figures["client"] = client.name
        if version := since(model, client):
            figures["since"] = version
    if source is None:
        return _report(path, figures, (), findings)
    findings += changed_marks(model, manifest.says_entry(source), str(options.against))
    from wanconv.verification.bounds import compare  # imports torch, which only this needs

    unclipped = manifest.unclipped(known) if known is not None else frozenset()
    table, failures = compare(model, source, progress, options.jobs, unclipped)
    figures |= {"against": str(options.against)}
    if table.rows:
        figures["bound"] = _BOUND
    return _report(path, figures, (table,), findings + failures)


def _source(path: Path, options: VerifyOptions, known: Json | None) -> Model | None:
    """Returns --against as a model, read as the conversion read it: with the expert and the globs of its manifest, and
    with the same LoRAs merged. Raises UsageError if they differ."""
    if options.against is None:
        if options.loras:
            raise UsageError("`loras` is about the source, and there is none", "name it: `against` SRC")
        return None
    expert, exclude = (None, ()) if known is None else manifest.source_options(known)
    model = identify(open_checkpoint(options.against, exclude), expert or options.expert)
    if options.loras:
        model = with_loras(model, options.loras, allow_unmatched=True)
    if known is not None:
        _same_loras(path, manifest.loras(known), manifest.lora_entries(model))
    return model


def _same_loras(path: Path, recorded: Sequence[Json], given: Sequence[Json]) -> None:
    """Raises UsageError unless the merged LoRAs are the given ones: same bytes, component, strength."""
    keys = ("sha256", "component", "strength")
    if [[one[key] for key in keys] for one in recorded] == [[one[key] for key in keys] for one in given]:
        return
    words = [f"{one['component']}={one['file']}:{one['strength']}" for one in recorded]
    again = argument("loras", words)
    if not recorded:
        raise UsageError(f"{path} holds no merged LoRA, and `loras` is given", "leave it out")
    if not given:
        message = f"{path} holds merged LoRAs, and cannot be compared with its source without them"
        raise UsageError(message, f"give them with their paths: {again}")
    raise UsageError(f"{path} was made with other LoRAs, or other strengths, than are given", f"it holds {again}")


@dataclass(frozen=True, slots=True)
class _Digests:
    """The compared digests in words, every failure, and the compared files."""

    words: str
    findings: list[Finding]
    compared: set[str]


def _check_digests(path: Path, known: Json | None, options: VerifyOptions, progress: Progress) -> _Digests:
    """Compares the manifest's digests and those of lists."""
    findings: list[Finding] = []
    files: dict[str, int] = {}  # by the origin of the list
    read: dict[str, str] = {}
    compared: set[str] = set()
    if known is not None:
        written = manifest.files(known)
        tell = total(progress, "checking digests", sum(file.nbytes for file in written))
        findings += manifest.check_files(path, known, tell, options.jobs, read)
        files[manifest.NAME] = len(written)
        compared |= {file.path for file in written}
    if known is None or options.sums or options.hub:
        listed = _listed(path, options)
        root = path if path.is_dir() else path.parent
        problems, found = checksums.check(root, listed.lines, progress, options.jobs, read)
        findings += [*listed.findings, *problems]
        compared |= found
        for line in set(listed.lines):
            files[line.origin] = files.get(line.origin, 0) + 1
    if not files and not any(finding.severity == "failure" for finding in findings):
        message = "no digest is known: headers and cover are all that is checked"
        findings.append(
            Finding("warning", str(path), message, "give a list with `checksums`, or a repository with `hub`")
        )
    words = (
        ", ".join(f"{count(number, 'file')} by {origin}" for origin, number in sorted(files.items())) or "none known"
    )
    return _Digests(words, findings, compared)


def _without_digest(checkpoint: Checkpoint, digests: _Digests) -> list[Finding]:
    """Returns a warning for each weight file without a known digest, if there are digests of others."""
    told = {finding.where for finding in digests.findings}
    return [
        Finding("warning", name, "no digest of it is known", "give a list that has it, with `checksums`")
        for name in checkpoint.weight_files
        if digests.compared and name not in digests.compared | told
    ]


def _listed(path: Path, options: VerifyOptions) -> checksums.DigestList:
    """Returns the lines of the named lists, including the hub's; without any, those of the lists in the folder and of
    the record of its download, wanconv's or Hugging Face's."""
    named = checksums.DigestList()
    for file in options.sums:
        read = checksums.read_list(file)
        named += checksums.placed(read, path) if path.is_dir() else read
    if options.hub is not None:
        if not path.is_dir():
            raise UsageError(f"{path} is one file, and `hub` is about folders", "give the folder")
        return checksums.DigestList(*hub.compare(path, options.hub, options.token, options.patience)) + named
    if not path.is_dir():
        about = checksums.about_file(named, path)
        if options.sums and not about.lines:
            raise InputError(
                f"no line of {', '.join(map(str, options.sums))} is about {path.name}", "give the list that has it"
            )
        known = [] if about.lines else checksums.known_to_hugging_face(path.parent, [path.name])
        return about + checksums.DigestList(known)
    if options.sums:
        return named
    listed = checksums.DigestList()
    for file in checksums.lists_in(path):
        try:
            listed += checksums.placed(checksums.read_list(file), path)
        except InputError as error:
            listed.findings.append(Finding("failure", str(file), error.message, error.hint, error.code))
    if record := checksums.recorded(path):
        return listed + checksums.DigestList(record, _not_downloaded(path, record))
    paths = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return listed + checksums.DigestList(checksums.known_to_hugging_face(path, paths))


def _not_downloaded(root: Path, record: Sequence[checksums.Listed]) -> list[Finding]:
    """Returns a warning for every file that the download did not contain; hidden files are ignored."""
    found = {file.relative_to(root) for file in root.rglob("*") if file.is_file()}
    seen = {file.as_posix() for file in found if not any(part.startswith(".") for part in file.parts)}
    return [
        Finding("warning", name, "is not of the download") for name in sorted(seen - {line.path for line in record})
    ]


def _unlisted(checkpoint: Checkpoint, known: Json) -> list[Finding]:
    listed = {file.path for file in manifest.files(known)} | {manifest.NAME}
    found = {*checkpoint.sidecars, *checkpoint.weight_files}
    return [Finding("warning", name, "is not in the manifest") for name in sorted(found - listed)]


def _report(path: Path, figures: dict[str, object], tables: Sequence[Table], findings: Sequence[Finding]) -> Report:
    codes = [finding.code for finding in findings if finding.severity == "failure"]
    outcome = count(len(codes), "failure") if codes else "as it should be"
    code = max((REGISTRY[code].exit_code for code in codes), default=0)
    tone: Tone = "failure" if codes else "success"
    return Report("verify", f"{path}: {outcome}", figures | {"failures": len(codes)}, tables, findings, {}, code, tone)
