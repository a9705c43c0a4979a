"""inspect: identifies a file or folder from its headers."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wanconv.containers import open_checkpoint
from wanconv.downloads.selection import Wish
from wanconv.errors import InputError
from wanconv.layouts import LAYOUTS, source_layout
from wanconv.models import DENOISERS, Expert, identify
from wanconv.planning import dead_of, family_in_words, left_out, marks_of, notes_of, release_of, roles_of, without_match
from wanconv.provenance import twins
from wanconv.report import Cell, Finding, Report, Table
from wanconv.types.model import Component, Model
from wanconv.verification.clients import bare_weights, since, why_not

if TYPE_CHECKING:
    from wanconv.storage.hubs import Patience

_NOTES = 20  # most texts of a header that are shown
YES, NO = Cell(True, "yes"), Cell(False, "no")  # whether a client reads it


def inspect(path: Path, expert: Expert | None = None, exclude: tuple[str, ...] = (), tensors: bool = False) -> Report:
    """Returns family, release, components, naming, dtypes and sizes, and which clients read it; `tensors` lists every
    tensor. Reads headers only."""
    model = identify(open_checkpoint(path, exclude), expert)
    return _report(model, str(path), tensors, twins.sampled(model))


def _report(model: Model, title: str, tensors: bool, same_experts: InputError | None) -> Report:
    family, absent = family_in_words(model), model.absent
    if not any(name in DENOISERS for name in model.components):
        family, absent = f"not known from {', '.join(model.components)} alone: a denoiser is needed", ()
    findings = left_out(model)
    findings += [Finding("note", name, f"absent ({family} has one)") for name in absent]
    findings += [*marks_of(model), *roles_of(model)]
    findings += [
        Finding("note", canonical, f"stands in {component.part.path} a second time as {ref.name}")
        for component in model.components.values()
        for ref, canonical in component.tied
    ]
    findings += dead_of(model)
    findings += twins.finding(same_experts, "warning")
    findings += bare_weights(model)
    unread = sum(len(component.dead) for component in model.components.values())
    dtypes = _dtypes(list(model.components.values()))
    clients = _clients(model)
    figures: dict[str, object] = {
        "family": family,
        "release": release_of(model),
        "layout": source_layout(model).name,
        "clients": _listed([str(row[0]) for row in clients.rows if row[1] == YES]),
        "tensors": len(model.tensors),
        **({"unread_tensors": unread} if unread else {}),
        "parameters": sum(tensor.numel for tensor in model.tensors.values()),
        "total_nbytes": sum(tensor.nbytes for tensor in model.tensors.values()),
        "dtypes": _counted(dtypes),
    }
    tables = [_components(model), clients]
    if (notes := _notes(model)).rows:
        tables.append(notes)
    if tensors:
        tables.append(_tensors(model))
    return Report("inspect", title, figures, tables, findings)


def inspect_remote(
    repository: str,
    expert: Expert | None = None,
    exclude: tuple[str, ...] = (),
    tensors: bool = False,
    token: str | None = None,
    patience: "Patience | None" = None,
) -> Report:
    """Returns the same for a repository (`hf://…`, `ms://…`), of which only the headers are downloaded."""
    from wanconv.downloads.headers import mirrored  # imports an HTTP client, which local files do not need

    with mirrored(repository, Wish(exclude=exclude), token, patience) as mirror:
        model = identify(open_checkpoint(mirror.root), expert)
        same = twins.listed(model, {file.path: file.digest for file in mirror.snapshot.files})
        report = _report(model, mirror.uri, tensors, same)
        figures = {**report.figures, "read_nbytes": mirror.read_nbytes}
        return replace(report, figures=figures, findings=[*without_match(mirror.unmatched), *report.findings])


def _listed(names: list[str]) -> Cell:
    return Cell(names, ", ".join(names) or "none")


def _counted(dtypes: dict[str, int]) -> Cell:
    return Cell(dtypes, ", ".join(f"{dtype} {count}" for dtype, count in dtypes.items()))


def _dtypes(components: list[Component]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for component in components:
        for tensor in component.tensors.values():
            counts[tensor.stored_as] = counts.get(tensor.stored_as, 0) + 1
    return dict(sorted(counts.items(), key=lambda one: -one[1]))


def _components(model: Model) -> Table:
    rows = tuple(
        (
            component.name,
            component.architecture.name,
            component.scheme,
            component.part.path,
            len(component.part.files),
            len(component.tensors),
            _counted(_dtypes([component])),
            sum(tensor.nbytes for tensor in component.tensors.values()),
            component.fingerprint,
        )
        for component in model.components.values()
    )
    columns = ("component", "network", "names", "path", "files", "tensors", "dtypes", "total_nbytes", "fingerprint")
    return Table("components", columns, rows)


def _clients(model: Model) -> Table:
    rows = []
    for layout in LAYOUTS.values():
        reason = why_not(model, layout)
        rows.append((layout.name, NO if reason else YES, "" if reason else since(model, layout), reason))
    return Table("clients", ("client", "reads_it", "since", "why_not"), tuple(rows))


def _notes(model: Model) -> Table:
    """Returns the further texts in the headers, the first ones of each component."""
    rows = [(component.name, *note) for component in model.components.values() for note in notes_of(component)[:_NOTES]]
    return Table("notes", ("component", "field", "text"), tuple(rows))


def _tensors(model: Model) -> Table:
    rows = tuple(
        (
            tensor.name,
            tensor.role.kind,
            tensor.stored_as,
            Cell(list(tensor.shape), str(list(tensor.shape))),
            tensor.nbytes,
            tensor.pieces[0].ref.name,
        )
        for tensor in model.tensors.values()
    )
    return Table("tensors", ("name", "kind", "dtype", "shape", "size_nbytes", "on_disk"), rows)
