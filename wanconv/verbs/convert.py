"""convert: run a plan, streamed and on several threads, into a folder that appears at once and whole."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from wanconv import __version__
from wanconv.checkpoint.writer import Written, write_chunks, write_file, write_images
from wanconv.errors import DigestMismatch, InputError, NotFinite, OutputError, UsageError
from wanconv.layouts import source_layout
from wanconv.plan import Plan, by_component, by_rule, conversion_memory, plan
from wanconv.report import Finding, Report
from wanconv.tensors import Model
from wanconv.workshop import manifest
from wanconv.workshop.card import model_card
from wanconv.workshop.disk import free_nbytes
from wanconv.workshop.job import Options, prepare, target_folder
from wanconv.workshop.progress import Progress, total
from wanconv.workshop.selection import Wish
from wanconv.workshop.workspace import Workspace, is_free, open_workspace, partial_folder, writing

_READ_AHEAD_NBYTES = 2 << 30
_SAMPLE_NBYTES = 1 << 16


def preview(source: Path, options: Options) -> Report:
    """Returns the plan as a report, with disk and memory; writes nothing."""
    made = prepare(source, options)
    out = target_folder(source, options)
    _refuse_source(made.model, source, out)
    findings = list(made.findings)
    with writing(out):
        free = free_nbytes(out)
    if free < made.nbytes:
        findings.append(
            Finding(
                "failure",
                str(out),
                f"{made.nbytes} bytes are needed and {free} are free",
                "free space, or another --out",
            )
        )
    return Report(
        "convert",
        f"plan: {source} → {out}",
        {
            **_identity(made),
            "disk_needed_nbytes": made.nbytes,
            "disk_free_nbytes": free,
            "conversion_memory_nbytes": conversion_memory(options.jobs),
        },
        (by_component(made), by_rule(made)),
        findings,
        exit_code=OutputError.exit_code if free < made.nbytes else 0,
    )


def preview_remote(repository: str, options: Options, token: str | None = None) -> Report:
    """Returns the plan for a repository (`hf://…`, `ms://…`), of which the headers alone are downloaded."""
    from wanconv.workshop.mirror import mirrored  # imports an HTTP client, which files here do without

    with mirrored(repository, Wish(exclude=options.exclude), token) as mirror:
        out = options.out or Path(f"{mirror.root.name}-{Path(options.recipe).stem}")
        report = preview(mirror.root, replace(options, out=out, exclude=()))
        figures = {**report.figures, "read_nbytes": mirror.read_nbytes}
        return replace(report, title=f"plan: {mirror.uri} → {out}", figures=figures)


def convert(source: Path, options: Options, progress: Progress = lambda what, done, total: None) -> Report:
    """Writes the converted model and returns what was done; raises WanconvError, and then there is no OUT."""
    made = prepare(source, options)
    out = target_folder(source, options)
    _refuse_source(made.model, source, out)
    key = manifest.plan_key(made, options.base_model)
    if (finished := _finished(made, out, key, options, progress)) is not None:
        how = "its bytes are those once written; of the source, headers and a sample of every tensor were compared"
        proof = Finding("note", str(out), how, "wanconv verify --against compares every element")
        return _report(finished, out, [proof, *finished.findings], "was there already and is as it should be")
    _read_ahead(made)
    _confirm(made)
    with open_workspace(out, _state_key(made, key, options), key, options.force) as workspace:
        if workspace.complete:
            made = _as_recorded(made, workspace.folder, options.shard_nbytes)
        else:
            _check_space(made, workspace.folder)
            made = _write_all(made, key, workspace, options, progress)
        replaced = workspace.finish(out, options.force)
    findings = list(made.findings)
    if replaced is not None:
        findings.append(
            Finding("warning", str(out), f"what stood there is now {replaced}", "delete it if nobody needs it")
        )
    return _report(made, out, findings, "written")


def _read_ahead(made: Plan) -> None:
    """Has the kernel read what is converted first: the disk works while torch is imported."""
    refs = [piece.ref for step in made.steps for piece in step.tensor.pieces]

    def advise() -> None:
        left = _READ_AHEAD_NBYTES
        for ref in refs:
            if left <= 0:
                return
            with suppress(OSError), ref.file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), ref.offset, ref.nbytes, os.POSIX_FADV_WILLNEED)
            left -= ref.nbytes

    threading.Thread(target=advise, daemon=True).start()


def _confirm(made: Plan) -> None:
    from wanconv.workshop.mover import Mover  # imports torch, which a plan does without

    with Mover(made) as mover:
        mover.confirm()


def _write_all(made: Plan, key: str, workspace: Workspace, options: Options, progress: Progress) -> Plan:
    """Writes weights, sidecars, card and manifest; returns the plan with the fallbacks that the values called for."""
    folder = workspace.folder
    try:
        made, written = _write_weights(made, workspace, options, progress)
    except NotFinite:
        workspace.discard()
        raise
    if _state_key(made, key, options) != workspace.key:
        workspace.discard()
        raise InputError(
            f"{made.model.checkpoint.root} changed while it was read", "run again when nothing writes to it"
        )
    files = dict(made.documents)
    files["README.md"] = model_card(made, options.base_model)
    written += [replace(write_file(folder / path, content), path=path) for path, content in files.items()]
    written += [
        replace(write_chunks(folder / path, _sidecar(copied)), path=path) for path, copied in made.copies.items()
    ]
    recorded: manifest.Json = {
        "shard_nbytes": options.shard_nbytes,
        "base_model": options.base_model,
        "expert": options.expert,
        "exclude": list(options.exclude),
    }
    sources = _sources(made.model, options, progress)
    write_file(folder / manifest.NAME, manifest.build(made, key, written, sources, recorded))
    return made


def _write_weights(
    made: Plan, workspace: Workspace, options: Options, progress: Progress
) -> tuple[Plan, list[Written]]:
    """Writes every weight file. An overflow that a rule foresees ends the attempt: the plan is made again with the
    fallbacks of every tensor that needs one, and what was written under the same header is kept."""
    from wanconv.workshop.mover import Mover, NeedsFallback  # imports torch, which a plan does without

    while True:
        made = plan(made.model, made.recipe, made.layout, options.shard_nbytes, workspace.overflowing)
        with Mover(made) as mover, closing(workspace.journal()) as journal:
            tell = total(progress, "converting", sum(image.nbytes for image in made.images))
            images = made.images
            try:
                written = write_images(
                    workspace.folder, images, mover.fill, journal, tell, options.jobs, options.block_nbytes
                )
                return replace(made, findings=(*made.findings, *mover.findings())), written
            except NeedsFallback:
                workspace.remember(workspace.overflowing | mover.overflowing())


def _sidecar(path: Path) -> Iterator[memoryview]:
    try:
        yield from manifest.read_chunks(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the file") from None


def _sources(model: Model, options: Options, progress: Progress) -> list[manifest.Json]:
    """Returns the source's files for the manifest; `--hash-source` reads them whole."""
    if not options.hash_source:
        return manifest.source_files(model.checkpoint)
    root = model.checkpoint.root
    paths = model.checkpoint.weight_files
    tell = total(progress, "hashing the source", sum((root / path).stat().st_size for path in paths))
    found = manifest.digest_files(root, paths, "sha256", tell, options.jobs)
    digests = {}
    for path, digest in found.items():
        if isinstance(digest, OSError):
            raise InputError(f"{root / path} cannot be read: {digest.strerror}", "check the disk")
        digests[path] = digest
    return manifest.source_files(model.checkpoint, digests)


def _check_space(made: Plan, folder: Path) -> None:
    """Raises OutputError where the disk has less room than is still to be written."""
    with writing(folder):
        there = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
        needed, free = made.nbytes - there, free_nbytes(folder)
    if needed > free:
        raise OutputError(
            f"{folder.parent} has {free} bytes free, and {needed} are needed", "free space or choose another --out"
        )


def _identity(made: Plan) -> dict[str, object]:
    model = made.model
    return {
        "family": model.family.name,
        "release": model.release.name if model.release else "none: not a released size",
        "recipe": f"{made.recipe.name}: {made.recipe.summary}",
        "layout": f"{made.layout.name} (the source's is {source_layout(model).name})",
    }


def _report(made: Plan, out: Path, findings: list[Finding] | tuple[Finding, ...], outcome: str) -> Report:
    figures = {**_identity(made), "out": str(out), "outcome": outcome, "written_nbytes": made.nbytes}
    return Report("convert", f"{out.name}: {outcome}", figures, (by_component(made), by_rule(made)), tuple(findings))


def _refuse_source(model: Model, source: Path, out: Path) -> None:
    """Refuses an OUT (and its OUT.partial) that is the source, holds it or lies in it, by any path that leads there."""
    root, home = _real(source), _real(model.checkpoint.root)
    named = [home / file for file in model.checkpoint.weight_files]
    own = {root, *named, *map(_real, named)}
    for folder in (out, partial_folder(out) if out.name else out):
        target = _real(folder)
        inside = source.is_dir() and root in target.parents
        if inside or any(target == path or target in path.parents for path in own):
            raise UsageError(f"{folder} is, holds or lies in the source {source}", "choose an --out beside the source")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises at a loop of links


def _finished(made: Plan, out: Path, key: str, options: Options, progress: Progress) -> Plan | None:
    """Returns the plan as OUT holds it, verified, or None where OUT is still to be written. Else raises."""
    with writing(out):
        if out.is_symlink():
            raise UsageError(f"{out} is a link", "name the folder itself with --out")
        if options.force or is_free(out):
            return None
    try:
        known = manifest.read(out)
    except InputError:
        known = None
    if known is None:
        raise UsageError(f"{out} exists and wanconv did not write it", "choose another --out, or --force to replace it")
    if known["plan"] != key:
        raise UsageError(
            f"{out} holds another conversion (recipe {_recipe_name(known)}, layout {known.get('layout')}), "
            "or its source or --base-model has changed",
            "choose another --out, or --force to replace it",
        )
    tell = total(progress, "verifying", sum(file.nbytes for file in manifest.files(known)))
    if failures := manifest.check_files(out, known, tell):
        raise DigestMismatch(
            f"{out} holds this conversion, but damaged",
            "--force writes it again",
            [f"{failure.where}: {failure.message}" for failure in failures],
        )
    return _as_recorded(made, out, options.shard_nbytes)


def _as_recorded(made: Plan, folder: Path, shard_nbytes: int | None) -> Plan:
    """Returns the plan with the fallbacks that an undamaged folder's manifest records.

    Raises UsageError where the source would give other numbers, for the header of a fine-tune is that of its base: the
    middle of every tensor is made again and compared.
    """
    from wanconv.workshop.mover import Mover, NeedsFallback  # imports torch, which a plan does without

    known = manifest.read(folder)
    assert known is not None
    formats: dict[str, dict[str, str]] = known["tensors"]  # type: ignore[assignment]  # read() has checked it
    fallen = frozenset(
        step.tensor.name
        for step in made.steps
        if step.fallback and formats.get(step.tensor.name, {}).get("format") == step.fallback
    )
    made = plan(made.model, made.recipe, made.layout, shard_nbytes, fallen)
    with Mover(made) as mover:
        for image in made.images:
            with (folder / image.path).open("rb") as stream:
                for payload in image.payloads:
                    if made.outputs[payload.key].scales_of:  # the payload that they scale tells as much
                        continue
                    nbytes = min(payload.nbytes, _SAMPLE_NBYTES)
                    start = (payload.nbytes - nbytes) // 2 // _SAMPLE_NBYTES * _SAMPLE_NBYTES
                    sample = bytearray(nbytes)
                    stream.seek(payload.offset + start)
                    try:
                        mover.fill(payload.key, start, memoryview(sample))
                        same = stream.read(nbytes) == sample
                    except NeedsFallback:
                        same = False
                    if not same:
                        raise UsageError(
                            f"{folder} was made from other numbers, for instance in "
                            f"{made.outputs[payload.key].step.tensor.name}: its source has changed",
                            "choose another --out, or --force to write it again",
                        )
    return made


def _recipe_name(known: manifest.Json) -> object:
    recipe = known.get("recipe")
    return recipe.get("name") if isinstance(recipe, dict) else None


def _state_key(made: Plan, key: str, options: Options) -> str:
    """Returns what a resumed run must share with the one it goes on from: the same source files, untouched."""
    root = made.model.checkpoint.root
    stats = []
    for file in made.model.checkpoint.weight_files:
        try:
            known = (root / file).stat()
        except OSError as error:
            raise InputError(f"{root / file} cannot be read: {error.strerror}", "check the file") from None
        stats.append([file, known.st_size, known.st_mtime_ns])
    return hashlib.sha256(json.dumps([key, stats, options.block_nbytes, __version__]).encode()).hexdigest()
