"""convert: run a plan, streamed and on several threads, into a folder that appears at once and whole."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wanconv import __version__
from wanconv.containers.writer import write_images
from wanconv.conversion import replacing
from wanconv.conversion.options import ConvertOptions, prepare, target_folder
from wanconv.conversion.sources import Here, Origin
from wanconv.conversion.workspace import Workspace, open_workspace, partial_folder, writing
from wanconv.downloads.selection import Wish
from wanconv.errors import DigestMismatch, InputError, NotFinite, Occupied, OutputError, UsageError
from wanconv.layouts import source_layout
from wanconv.planning import (
    Plan,
    by_component,
    by_lora,
    by_rule,
    conversion_memory,
    family_in_words,
    plan,
    release_of,
    without_match,
)
from wanconv.provenance import manifest, twins
from wanconv.provenance.card import model_card
from wanconv.report import Cell, Finding, Report
from wanconv.storage.digests import read_chunks
from wanconv.storage.disk import free_nbytes
from wanconv.storage.local import Written, write_chunks, write_file
from wanconv.storage.paths import check_target
from wanconv.types.documents import Json
from wanconv.types.figures import sizes
from wanconv.types.model import Model, Opened
from wanconv.types.progress import Advance, Progress, silent, total

if TYPE_CHECKING:  # it imports an HTTP client, which local files do not need
    from wanconv.downloads.headers import Mirror
    from wanconv.storage.hubs import Patience


EXISTING = Cell("existing", "was there already and is as it should be")
WRITTEN = Cell("written", "written")


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of a plan: the folder of its output, and the plan as it was carried out.

    `plan` has the fallbacks that the values needed. `written` is False if `out` already held this conversion.
    """

    out: Path
    plan: Plan
    written: bool
    report: Report

    @property
    def findings(self) -> Sequence[Finding]:
        """Its findings for the user."""
        return self.report.findings


def preview(source: Path, options: ConvertOptions) -> Report:
    """Returns the plan as a report, with disk and memory; writes nothing."""
    made = prepare(source, options)
    out = target_folder(source, options)
    _refuse_source(made.model, source, out)
    return _preview(made, Here(), str(source), out, options, manifest.plan_key(made, options.base_model))


def preview_remote(
    repository: str,
    options: ConvertOptions,
    token: str | None = None,
    keep: bool = False,
    patience: "Patience | None" = None,
) -> Report:
    """Returns the plan for a repository (`hf://…`, `ms://…`), of which only the headers are downloaded."""
    from wanconv.conversion.hub_source import HubSource
    from wanconv.downloads.headers import mirrored  # imports an HTTP client, which files here do without

    _check_remote(repository, options)
    with mirrored(repository, Wish(exclude=options.exclude), token, patience) as mirror:
        out = _remote_target(mirror.root.name, options)
        made = _prepared(mirror, options)
        report = _preview(made, HubSource(mirror, out, keep), mirror.uri, out, options)
        weights = sum((mirror.root / path).stat().st_size for path in made.model.checkpoint.weight_files)
        return replace(
            report, figures={**report.figures, "to_fetch_nbytes": weights, "read_nbytes": mirror.read_nbytes}
        )


def _check_remote(repository: str, options: ConvertOptions) -> None:
    """Raises UsageError for errors that are known before a request to the hub."""
    if options.report is not None:
        message = f"`report` is held against the source's numbers, and {repository} is not here"
        raise UsageError(message, "wanconv download it first; or say `allow_unsafe_fp16=True`")
    if options.out is not None:
        check_target(options.out)
        replacing.check_place(target_folder(Path(), options))


def _prepared(mirror: "Mirror", options: ConvertOptions) -> Plan:
    """Returns the plan of a mirror's files: excluded files are not in it."""
    made = prepare(mirror.root, replace(options, exclude=()))
    opened = Opened(mirror.root, options.expert, options.exclude)
    model = replace(made.model, opened=opened)
    return replace(made, model=model, notes=(*without_match(mirror.unmatched), *made.notes))


def _remote_target(name: str, options: ConvertOptions) -> Path:
    """Returns OUT as an absolute path: `--out`, or `<NAME>-<recipe>` in the current folder."""
    return target_folder(Path(name), replace(options, out=options.out or Path(f"{name}-{Path(options.recipe).stem}")))


def _preview(
    made: Plan, origin: Origin, source: str, out: Path, options: ConvertOptions, key: str | None = None
) -> Report:
    """Returns the plan as a report; `key` is None if the sidecars, which are part of it, are not downloaded."""
    _refuse_same_experts(origin.same_experts(made.model))
    findings = [*made.notes, *made.findings]
    needed = made.nbytes + origin.disk_nbytes(made, options, None)
    with writing(out):
        _check_target(made, out, options)
        free = free_nbytes(out)
    if free < needed:
        message = "{} are needed and {} are free".format(*sizes(needed, free))
        findings.append(Finding("failure", str(out), message, "free space, or another `out`"))
    return Report(
        "convert",
        f"plan: {source} → {out}",
        {
            **_identity(made),
            "disk_needed_nbytes": needed,
            "disk_free_nbytes": free,
            "conversion_memory_nbytes": conversion_memory(made, options.jobs),
        },
        (by_component(made), by_rule(made), *by_lora(made)),
        findings,
        _details(made, key),
        exit_code=OutputError.exit_code if free < needed else 0,
    )


def convert(source: Path, options: ConvertOptions, progress: Progress = silent) -> Report:
    """Writes the converted model and returns the result; if it raises WanconvError, there is no OUT."""
    return carry_out(prepare(source, options), target_folder(source, options), options, progress).report


def carry_out(
    made: Plan, out: Path, options: ConvertOptions, progress: Progress = silent, origin: Origin | None = None
) -> Conversion:
    """Carries out a plan into the folder `out`; if it raises WanconvError, there is no OUT.

    The plan says what is written. Only the `options` that the plan leaves open are used: base_model, hash_source,
    force, jobs and block_nbytes.
    """
    opened = made.model.opened or Opened(made.model.checkpoint.root)
    if origin is None:
        origin = Here()
        _refuse_source(made.model, opened.source, out)
    options = replace(options, shard_nbytes=made.shard_nbytes, expert=opened.expert, exclude=opened.exclude)
    return _convert(made, origin, out, options, progress)


def convert_remote(
    repository: str,
    options: ConvertOptions,
    progress: Progress = silent,
    token: str | None = None,
    keep: bool = False,
    patience: "Patience | None" = None,
) -> Report:
    """Converts a repository (`hf://…`, `ms://…`) while it is downloaded: each weight file is downloaded when it is
    needed, checked, read and deleted. With `keep` all of them stay, in `OUT.source`."""
    from wanconv.conversion.hub_source import sidecars, streamed
    from wanconv.downloads.headers import complete, mirrored  # imports an HTTP client, which files here do without

    _check_remote(repository, options)
    with mirrored(repository, Wish(exclude=options.exclude), token, patience) as mirror:
        out = _remote_target(mirror.root.name, options)
        complete(mirror, sidecars(_prepared(mirror, options), mirror))
        made = _prepared(mirror, options)
        with streamed(mirror, out, keep) as origin:
            report = carry_out(made, out, options, progress, origin).report
            return replace(report, figures={**report.figures, "source": mirror.uri})


def _convert(made: Plan, origin: Origin, out: Path, options: ConvertOptions, progress: Progress) -> Conversion:
    with writing(out):
        _check_target(made, out, options)
    _refuse_same_experts(origin.same_experts(made.model))
    key = manifest.plan_key(made, options.base_model)
    if (finished := _finished(made, origin, out, key, options, progress)) is not None:
        origin.end(progress)
        proof = Finding(
            "note", str(out), origin.compared, "wanconv `verify(out, against=source)` compares every element"
        )
        findings = [proof, *finished.notes, *finished.findings]
        return _conversion(finished, out, findings, EXISTING, key)
    origin.begin(made)
    with open_workspace(out, _state_key(made, origin, key, options), key, options.force, _reads(made)) as workspace:
        if workspace.complete:
            made = _as_recorded(made, workspace.folder, options.shard_nbytes)
            origin.prove(made, workspace.folder)
        else:
            _check_space(made, origin, workspace, options)
            made = _write_all(made, origin, key, workspace, options, progress)
        origin.end(progress)
        replaced = workspace.finish(out, options.force)
    findings = [*made.notes, *made.findings]
    if replaced is not None:
        message = f"others wrote to what stood there while it was removed: what is left of it is {replaced}"
        findings.append(Finding("warning", str(out), message, "look through it, and delete it if nobody needs it"))
    return _conversion(made, out, findings, WRITTEN, key)


def _refuse_same_experts(error: InputError | None) -> None:
    if error is not None:
        raise error


def _write_all(
    made: Plan, origin: Origin, key: str, workspace: Workspace, options: ConvertOptions, progress: Progress
) -> Plan:
    """Writes weights, sidecars, card and manifest; returns the plan with the fallbacks that the values needed."""
    folder = workspace.folder
    try:
        made, written = _write_weights(made, origin, workspace, options, progress)
    except NotFinite:
        workspace.discard()
        raise
    if _state_key(made, origin, key, options) != workspace.key:
        workspace.discard()
        raise InputError(
            f"{made.model.checkpoint.root} changed while it was read", "run again when nothing writes to it"
        )
    if (same := twins.written(made, written)) is not None:
        workspace.discard()
        raise same
    files = dict(made.documents)
    files["README.md"] = model_card(made, options.base_model)
    written += [replace(write_file(folder / path, content), path=path) for path, content in files.items()]
    written += [
        replace(write_chunks(folder / path, _sidecar(copied)), path=path) for path, copied in made.copies.items()
    ]
    recorded: Json = {
        "shard_nbytes": options.shard_nbytes,
        "base_model": options.base_model,
        "expert": options.expert,
        "exclude": list(options.exclude),
    }
    listed = origin.listed(made, options, progress)
    write_file(folder / manifest.NAME, manifest.build(made, key, written, listed, recorded))
    return made


def _write_weights(
    made: Plan, origin: Origin, workspace: Workspace, options: ConvertOptions, progress: Progress
) -> tuple[Plan, list[Written]]:
    """Writes every weight file. An overflow that has a fallback ends the attempt: the plan is made again with the
    fallbacks of every tensor that needs one, and files written under the same header are kept."""
    from wanconv.conversion.encode import NeedsFallback, TensorEncoder  # imports torch, which a plan does not need

    def fallen(name: str) -> None:
        workspace.remember(workspace.overflowing | {name})  # before the journal can list its (no) bytes

    while True:
        fallbacks = workspace.overflowing
        made = _again(made, options.shard_nbytes, fallbacks)
        workspace.claim(_files(made))
        tell = total(progress, "converting", sum(image.nbytes for image in made.images))
        with (
            closing(workspace.journal()) as journal,
            TensorEncoder(made, files := origin.files(made, options, journal, progress)) as mover,
        ):
            try:
                written = write_images(
                    workspace.folder,
                    made.images,
                    origin.filling(made, mover, fallen),
                    journal,
                    _both(tell, files.written),
                    options.jobs,
                    options.block_nbytes,
                    files.stop,
                )
            except NeedsFallback:
                workspace.remember(workspace.overflowing | mover.overflowing())
            if workspace.overflowing == fallbacks:
                return replace(made, findings=(*made.findings, *mover.findings())), written


def _files(made: Plan) -> set[str]:
    """Returns every file in the output of a plan."""
    return {*(image.path for image in made.images), *made.documents, *made.copies, "README.md", manifest.NAME}


def _both(one: Advance, other: Callable[[int], None]) -> Advance:
    def both(more: int, kept: bool = False) -> None:
        one(more, kept)
        other(more)

    return both


def _sidecar(path: Path) -> Iterator[memoryview]:
    try:
        yield from read_chunks(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the file") from None


def _check_space(made: Plan, origin: Origin, workspace: Workspace, options: ConvertOptions) -> None:
    """Raises OutputError if the disk has less free space than the rest of the output needs."""
    folder = workspace.folder
    with closing(workspace.journal()) as journal:
        more = origin.disk_nbytes(made, options, journal)
    with writing(folder):
        there = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
        needed, free = made.nbytes + more - there, free_nbytes(folder)
    if needed > free:
        room, wanted = sizes(free, needed)
        message = f"{folder.parent} has {room} free, and {wanted} are needed"
        raise OutputError(message, "free space or choose another `out`")


def _details(made: Plan, key: str | None) -> dict[str, object]:
    """Returns the fields for programs, in addition to the figures. The plan's key is the manifest's, a key for
    caches."""
    return {"plan": key, "source_layout": source_layout(made.model).name}


def _identity(made: Plan) -> dict[str, object]:
    model = made.model
    return {
        "family": family_in_words(model),
        "release": release_of(model),
        "recipe": Cell(made.recipe.name, f"{made.recipe.name}: {made.recipe.summary}"),
        "layout": Cell(made.layout.name, f"{made.layout.name} (the source's is {source_layout(model).name})"),
    }


def _conversion(made: Plan, out: Path, findings: Sequence[Finding], outcome: Cell, key: str) -> Conversion:
    figures = {**_identity(made), "out": str(out), "outcome": outcome, "written_nbytes": made.nbytes}
    tables = (by_component(made), by_rule(made), *by_lora(made))
    title = f"{out.name}: {outcome.text}"
    report = Report("convert", title, figures, tables, tuple(findings), _details(made, key))
    return Conversion(out, made, outcome == WRITTEN, report)


def _refuse_source(model: Model, source: Path, out: Path) -> None:
    """Refuses an OUT (and its OUT.partial) that is the source, contains it or lies in it, by any path to it."""
    root, home = _real(source), _real(model.checkpoint.root)
    named = [home / file for file in model.checkpoint.weight_files] + [lora.file for lora in model.loras]
    own = {root, *named, *map(_real, named)}
    for folder in (out, partial_folder(out) if out.name else out):
        target = _real(folder)
        inside = source.is_dir() and root in target.parents
        if inside or any(target == path or target in path.parents for path in own):
            raise UsageError(f"{folder} is, holds or lies in the source {source}", "choose an `out` next to the source")


def _reads(made: Plan) -> list[Path]:
    """Returns the folders that a conversion reads."""
    checkpoint = made.model.checkpoint
    return [checkpoint.root, *(checkpoint.root / file for file in checkpoint.weight_files)] + [
        lora.file for lora in made.model.loras
    ]


def _check_target(made: Plan, out: Path, options: ConvertOptions) -> None:
    """Raises UsageError if OUT cannot be written or, with `force`, replaced; this is checked again before replacing."""
    if options.out is not None:
        check_target(options.out)
    replacing.check_place(out, _reads(made))
    if options.force:
        replacing.check_replaceable(out)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises at a loop of links


def _finished(
    made: Plan, origin: Origin, out: Path, key: str, options: ConvertOptions, progress: Progress
) -> Plan | None:
    """Returns the plan of a verified OUT that holds it, or None if OUT is to be written. Else raises."""
    with writing(out):
        if out.is_symlink():
            raise UsageError(f"{out} is a link", "name the folder itself with `out`")
        if options.force or replacing.is_free(out):
            return None
        others = replacing.others_in(out)
    way_out = others.hint if others else "choose another `out`, or `overwrite=True` to replace it"
    try:
        known = manifest.read(out)
    except InputError:
        known = None
    if known is None:
        raise Occupied(f"{out} exists and wanconv did not write it", way_out)
    if known["plan"] != key:
        raise Occupied(
            f"{out} holds another conversion (recipe {_recipe_name(known)}, layout {known.get('layout')}), "
            "or its source, `base_model` or `loras` has changed",
            way_out,
            others.details if others else (),
        )
    tell = total(progress, "verifying", sum(file.nbytes for file in manifest.files(known)))
    if failures := manifest.check_files(out, known, tell):
        raise DigestMismatch(
            f"{out} holds this conversion, but damaged",
            "`overwrite=True` writes it again",
            [f"{failure.where}: {failure.message}" for failure in failures],
        )
    made = _as_recorded(made, out, options.shard_nbytes)
    origin.prove(made, out)
    return made


def _as_recorded(made: Plan, folder: Path, shard_nbytes: int | None) -> Plan:
    """Returns the plan with the fallbacks that an undamaged folder's manifest records."""
    known = manifest.read(folder)
    assert known is not None
    formats: dict[str, dict[str, str]] = known["tensors"]  # type: ignore[assignment]  # read() has checked it
    fallen = frozenset(
        step.tensor.name
        for step in made.steps
        if step.fallback and formats.get(step.tensor.name, {}).get("format") == step.fallback
    )
    return _again(made, shard_nbytes, fallen)


def _again(made: Plan, shard_nbytes: int | None, fallen: frozenset[str]) -> Plan:
    """Returns the plan with the fallbacks of tensors that need them."""
    return replace(plan(made.model, made.recipe, made.layout, shard_nbytes, fallen), notes=made.notes)


def _recipe_name(known: Json) -> object:
    recipe = known.get("recipe")
    return recipe.get("name") if isinstance(recipe, dict) else None


def _state_key(made: Plan, origin: Origin, key: str, options: ConvertOptions) -> str:
    """Returns what a resumed run must share with the run that it resumes: the same source files and LoRAs, unchanged.

    Raises InputError for a LoRA that is missing.
    """
    table = [key, origin.identity(made), _lora_stats(made.model), options.block_nbytes, __version__]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def _lora_stats(model: Model) -> list[list[int]]:
    try:
        return [[known.st_size, known.st_mtime_ns] for lora in model.loras for known in [lora.file.stat()]]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}", "check the file") from None
