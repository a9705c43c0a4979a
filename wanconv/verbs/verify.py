"""verify: headers, cover and digests of a folder; against its source, a proof element by element."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wanconv.checkpoint import open_checkpoint
from wanconv.errors import REGISTRY, InputError, UsageError
from wanconv.families import Expert, identify
from wanconv.layouts import source_layout
from wanconv.progress import Progress, silent, total
from wanconv.report import Finding, Report, Table
from wanconv.tensors import Checkpoint, Model
from wanconv.workshop import hub_list, manifest, sums
from wanconv.workshop.client import bare_weights, check_client, since
from wanconv.workshop.job import named_layout
from wanconv.workshop.lora import with_loras


@dataclass(frozen=True, slots=True)
class Options:
    """What `verify` is asked for: `sums` are digest lists (none: those that lie in the folder).

    `expert` and `exclude` are about what is verified; how its source was read stands in its manifest. `hub` names a
    repository, or is `recorded`; `token` may read its list. `client` is a layout whose rules are checked.
    `loras` are merged into `against`, as they were into what is verified.
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


def verify(path: Path, options: Options, progress: Progress = silent) -> Report:
    """Returns what was checked and every failure; raises InputError where headers or cover are already wrong."""
    client = None if options.client is None else named_layout(options.client)
    known = manifest.read(path) if path.is_dir() else None
    source = _source(path, options, known)  # first: a wrong path is told before hours of reading
    digests, findings = _check_digests(path, known, options, progress)
    failed = any(finding.severity == "failure" for finding in findings)
    try:
        checkpoint = open_checkpoint(path, options.exclude)
        model = identify(checkpoint, options.expert)
    except InputError:
        if not failed:
            raise
        return _report(path, {"digests": digests}, (), findings)  # they say more than the header that broke
    if known is not None:
        findings += _unlisted(checkpoint, known)
    figures: dict[str, object] = {
        "family": model.family.name,
        "layout": source_layout(model).name,
        "cover": f"{len(model.tensors)} tensors, every one known and none missing",
        "digests": digests,
    }
    findings += bare_weights(model)
    if client is not None:
        findings += check_client(model, client)
        figures["client"] = client.name
        if version := since(model, client):
            figures["since"] = version
    if source is None:
        return _report(path, figures, (), findings)
    from wanconv.workshop.compare import compare  # imports torch, which nothing else here needs

    unclipped = manifest.unclipped(known) if known is not None else frozenset()
    table, failures = compare(model, source, progress, options.jobs, unclipped)
    return _report(path, figures | {"against": str(options.against)}, (table,), findings + failures)


def _source(path: Path, options: Options, known: manifest.Json | None) -> Model | None:
    """Returns --against as a model, read as the conversion read it: with the expert and the globs of its manifest, and
    with the same LoRAs merged. Raises UsageError where they are not the same."""
    if options.against is None:
        if options.loras:
            raise UsageError("--lora is about the source, and there is none", "name it: --against SRC")
        return None
    expert, exclude = (None, ()) if known is None else manifest.source_options(known)
    model = identify(open_checkpoint(options.against, exclude), expert or options.expert)
    if options.loras:
        model = with_loras(model, options.loras, allow_unmatched=True)
    if known is not None:
        _same_loras(path, manifest.loras(known), manifest.lora_entries(model))
    return model


def _same_loras(path: Path, recorded: Sequence[manifest.Json], given: Sequence[manifest.Json]) -> None:
    """Raises UsageError unless the LoRAs that were merged are those that are given: same bytes, component, strength."""
    keys = ("sha256", "component", "strength")
    if [[one[key] for key in keys] for one in recorded] == [[one[key] for key in keys] for one in given]:
        return
    again = " ".join(f"--lora {one['component']}={one['file']}:{one['strength']}" for one in recorded)
    if not recorded:
        raise UsageError(f"{path} holds no merged LoRA, and --lora is given", "leave it out")
    if not given:
        message = f"{path} holds merged LoRAs, and cannot be compared with its source without them"
        raise UsageError(message, f"give them with their paths: {again}")
    raise UsageError(f"{path} was made with other LoRAs, or other strengths, than are given", f"it holds {again}")


def _check_digests(
    path: Path, known: manifest.Json | None, options: Options, progress: Progress
) -> tuple[str, list[Finding]]:
    """Returns which digests were compared, in words, and every failure: the manifest's and those of lists."""
    findings: list[Finding] = []
    compared: dict[str, int] = {}
    if known is not None:
        files = manifest.files(known)
        tell = total(progress, "checking digests", sum(file.nbytes for file in files))
        findings += manifest.check_files(path, known, tell, options.jobs)
        compared[manifest.NAME] = len(files)
    if known is None or options.sums or options.hub:
        listed, problems = _listed(path, options)
        findings += problems + sums.check(path if path.is_dir() else path.parent, listed, progress, options.jobs)
        for line in listed:
            compared[line.origin] = compared.get(line.origin, 0) + 1
    if not compared:
        message = "no digest is known: headers and cover are all that is checked"
        findings.append(Finding("warning", str(path), message, "give a list with --sums, or a repository with --hub"))
    return ", ".join(f"{count} files by {origin}" for origin, count in compared.items()) or "none known", findings


def _listed(path: Path, options: Options) -> tuple[list[sums.Listed], list[Finding]]:
    """Returns the lines of the lists that are named, the hub's among them; or else those of the lists in the folder and
    of the record of its download, ours or Hugging Face's."""
    named = options.sums
    if options.hub is not None:
        if not path.is_dir():
            raise UsageError(f"{path} is one file, and --hub is about folders", "give the folder")
        lines, problems = hub_list.compare(path, options.hub, options.token)
        return lines + [line for file in named for line in sums.read_list(file)], problems
    if not path.is_dir():
        lines = [line for file in named for line in sums.read_list(file) if Path(line.path).name == path.name]
        if named and not lines:
            raise InputError(
                f"no line of {', '.join(map(str, named))} is about {path.name}", "give the list that has it"
            )
        return lines or sums.known_to_hugging_face(path.parent, [path.name]), []
    if named:
        return [line for file in named for line in sums.read_list(file)], []
    listed, problems = [], []
    for file in sums.lists_in(path):
        try:
            listed += sums.read_list(file)
        except InputError as error:
            problems.append(Finding("warning", str(file), error.message, "remove it, or give a list with --sums"))
    if record := sums.recorded(path):
        return listed + record, problems + _not_downloaded(path, record)
    paths = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return listed + sums.known_to_hugging_face(path, paths), problems


def _not_downloaded(root: Path, record: Sequence[sums.Listed]) -> list[Finding]:
    """Returns a warning for every file that the download did not bring; hidden ones are not looked at."""
    found = {file.relative_to(root) for file in root.rglob("*") if file.is_file()}
    seen = {file.as_posix() for file in found if not any(part.startswith(".") for part in file.parts)}
    return [
        Finding("warning", name, "is not of the download") for name in sorted(seen - {line.path for line in record})
    ]


def _unlisted(checkpoint: Checkpoint, known: manifest.Json) -> list[Finding]:
    listed = {file.path for file in manifest.files(known)} | {manifest.NAME}
    found = {*checkpoint.sidecars, *checkpoint.weight_files}
    return [Finding("warning", name, "is not in the manifest") for name in sorted(found - listed)]


def _report(path: Path, figures: dict[str, object], tables: Sequence[Table], findings: Sequence[Finding]) -> Report:
    codes = [finding.code for finding in findings if finding.severity == "failure"]
    outcome = f"{len(codes)} failures" if codes else "as it should be"
    code = max((REGISTRY[code].exit_code for code in codes), default=0)
    return Report("verify", f"{path}: {outcome}", figures | {"failures": len(codes)}, tables, findings, exit_code=code)
