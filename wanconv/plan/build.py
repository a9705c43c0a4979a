"""Recipe × Model × Layout → Plan: every output byte's place and format, decided from headers alone."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from wanconv import recipe as recipes
from wanconv.checkpoint.writer import Image
from wanconv.errors import Refused
from wanconv.families import targets, vocabulary
from wanconv.formats import FORMATS
from wanconv.layouts import Layout, Override, source_layout
from wanconv.naming import matches
from wanconv.plan.files import Slot, lay_out, to_json
from wanconv.recipe import Recipe
from wanconv.report import Finding
from wanconv.tensors import DTYPES, Component, Model, ModelTensor


@dataclass(frozen=True, slots=True)
class Step:
    """One canonical tensor on its way: `format` is what it is stored in, `dtype` the dtype on disk, `rule` who says so.

    `fallback` is the format that an overflow leads to; `reason` is set where the format is not the rule's own.
    """

    tensor: ModelTensor
    format: str
    dtype: str
    rule: int
    fallback: str | None = None
    reason: str = ""

    @property
    def nbytes(self) -> int:
        return self.tensor.numel * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an output file, filled by its steps one after the other."""

    slot: Slot
    steps: tuple[Step, ...]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will do: `documents` are derived files (path -> bytes), `copies` sidecars (path -> source)."""

    model: Model
    recipe: Recipe
    layout: Layout
    images: tuple[Image, ...]
    outputs: Mapping[str, Output]
    documents: Mapping[str, bytes]
    copies: Mapping[str, Path]
    findings: tuple[Finding, ...]

    @property
    def steps(self) -> Iterator[Step]:
        return (step for output in self.outputs.values() for step in output.steps)

    @property
    def nbytes(self) -> int:
        """Bytes that the output takes on disk, without the manifest and the card."""
        copied = sum(path.stat().st_size for path in self.copies.values())
        return sum(image.nbytes for image in self.images) + sum(map(len, self.documents.values())) + copied

    @property
    def identity(self) -> str:
        """A digest of what goes where: two plans with the same one write the same files from the same source bytes."""
        table = [
            [image.identity for image in self.images],
            {path: hashlib.sha256(content).hexdigest() for path, content in self.documents.items()},
            sorted(self.copies),
            [
                [
                    step.tensor.name,
                    step.format,
                    step.dtype,
                    [[p.ref.name, p.start, p.count] for p in step.tensor.pieces],
                ]
                for step in self.steps
            ],
        ]
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def plan(
    model: Model,
    recipe: Recipe,
    layout: Layout,
    shard_nbytes: int | None = None,
    overflowing: frozenset[str] = frozenset(),
) -> Plan:
    """Returns the plan, or raises Refused with every reason at once.

    `overflowing` are canonical tensors whose values are known to exceed their rule's format: they take its fallback.
    """
    problems: list[str] = []
    findings: list[Finding] = []
    if layout.refused and model.family.name in layout.refused:
        raise Refused(
            f"{model.family.name} has no {layout.name} layout: {layout.refused[model.family.name]}",
            f"choose another --layout; the source's own is {source_layout(model).name}",
        )
    steps = _steps(model, recipe, layout, overflowing, problems)
    images: list[Image] = []
    outputs: dict[str, Output] = {}
    documents = {path: to_json(value) for path, value in layout.documents(model).items()}
    for component in model.components.values():
        place = layout.place(component.name, component.architecture.name)
        if place is None:
            problems.append(
                f"{component.name}: the {layout.name} layout has no place for {component.architecture.name}"
            )
            continue
        made = _outputs(component, layout, steps, problems, findings)
        outputs |= {output.slot.key: output for output in made}
        component_images, index = lay_out(place, [output.slot for output in made], shard_nbytes or layout.shard_nbytes)
        images += component_images
        documents |= index
    if problems:
        raise Refused(
            f"recipe {recipe.name} cannot be written in the {layout.name} layout",
            "choose another recipe or layout; the lines above name each tensor",
            problems,
        )
    copies = _copies(model, layout, documents, findings)
    documents = {path: content for path, content in documents.items() if path not in copies}
    findings = _findings(model, layout, list(steps.values())) + findings
    return Plan(model, recipe, layout, tuple(images), outputs, documents, copies, tuple(findings))


def _steps(
    model: Model, recipe: Recipe, layout: Layout, overflowing: frozenset[str], problems: list[str]
) -> dict[str, Step]:
    """Returns canonical name -> step for every tensor of the model; what no format takes goes to `problems`."""
    dims = {name: component.dims for name, component in model.components.items()}
    decided = recipes.assign(recipe, model.family.name, vocabulary(model.family, dims))
    steps = {}
    for name, tensor in model.tensors.items():
        index = decided[name]
        rule = recipe.rules[index]
        chosen, fallback, reason = rule.format, rule.fallback, ""
        refusal = FORMATS[chosen].refuses(tensor.dtype, tensor.role.kind, tensor.shape)
        if name in overflowing:
            refusal = f"a value exceeds {DTYPES[FORMATS[chosen].stored(tensor.dtype)].largest:g}"
        if refusal and fallback:
            chosen, fallback, reason = fallback, None, f"fallback from {chosen}: {refusal}"
            refusal = FORMATS[chosen].refuses(tensor.dtype, tensor.role.kind, tensor.shape)
        if refusal:
            problems.append(f"{name} as {chosen}: {refusal}")
            continue
        for override in layout.overrides:
            if _demands(override, tensor, chosen):
                chosen, fallback, reason = override.instead, None, override.reason
        dtype = FORMATS[chosen].stored(tensor.dtype)
        if DTYPES[dtype].holds(DTYPES[tensor.dtype]):
            fallback = None
        steps[name] = Step(tensor, chosen, dtype, index, fallback, reason)
    return steps


def _demands(override: Override, tensor: ModelTensor, chosen: str) -> bool:
    if chosen == "keep" or chosen in override.allowed or not matches(override.match, tensor.name):
        return False
    exact = DTYPES[FORMATS[chosen].stored(tensor.dtype)].holds(DTYPES[tensor.dtype])
    return not (exact and override.unless_exact)


def _outputs(
    component: Component,
    layout: Layout,
    steps: Mapping[str, Step],
    problems: list[str],
    findings: list[Finding],
) -> list[Output]:
    """Returns the tensors that `layout` stores for a component, in the order of its table."""
    made, housed = [], set()
    for target in targets(component.architecture, layout.scheme, component.dims):
        names = [f"{component.name}/{source}" for source in target.sources]
        housed.update(names)
        missing = [name for name in names if name not in component.tensors]
        parts = [steps[name] for name in names if name in steps]
        if missing and target.optional:
            continue
        if missing:
            problems += [
                f"{name}: the {layout.name} layout needs it, and the source does not hold it" for name in missing
            ]
        elif len(parts) == len(names):
            if len({part.dtype for part in parts}) > 1:
                problems.append(f"{', '.join(names)}: one tensor in {layout.name}, so they need one format")
            slot = Slot(f"{component.name}/{target.name}", target.name, parts[0].dtype, target.shape)
            made.append(Output(slot, tuple(parts), target.transposed))
    homeless = [name for name in component.tensors if name not in housed]
    if homeless:
        findings.append(
            Finding(
                "note",
                component.name,
                f"{len(homeless)} tensors have no home in the {layout.name} layout and are left out: "
                + ", ".join(homeless[:3])
                + (" …" if len(homeless) > 3 else ""),
            )
        )
    return made


def _copies(model: Model, layout: Layout, documents: Mapping[str, bytes], findings: list[Finding]) -> dict[str, Path]:
    """Returns where each sidecar goes: into the client's folder for its group, or to the path that it has."""
    source = source_layout(model)
    copies = {}
    for sidecar in model.checkpoint.sidecars:
        target: str | None = sidecar
        if source is not layout:
            target = _moved(sidecar, source, layout)
        if target is None:
            findings.append(Finding("note", sidecar, f"has no place in the {layout.name} layout and is left out"))
        elif target in ("wanconv.json", "README.md"):
            if target == "README.md":
                copies["README.source.md"] = model.checkpoint.root / sidecar
        elif source is layout or not any(fnmatchcase(sidecar, glob) for glob in source.derived):
            copies[target] = model.checkpoint.root / sidecar
    return copies


def _moved(sidecar: str, source: Layout, layout: Layout) -> str | None:
    for group, folder in source.folders.items():
        if sidecar.startswith(f"{folder}/"):
            home = layout.folders.get(group)
            return None if home is None else home + sidecar[len(folder) :]
    return sidecar


def _findings(model: Model, layout: Layout, steps: Sequence[Step]) -> list[Finding]:
    """Returns what a user should know before: overrides, fallbacks, what is absent, what brings a client nothing."""
    findings = [
        Finding("note", component, f"not in the source, so not in the output ({model.family.name} has one)")
        for component in model.absent
    ]
    findings += [Finding("note", component, f"its role comes from {why}") for component, why in model.evidence.items()]
    for reason, names in _grouped((step.reason, step.tensor.name) for step in steps if step.reason):
        findings.append(Finding("note", _some(names), f"stored as {_formats(steps, names)}: {reason}"))
    undecided = [step.tensor.name for step in steps if step.fallback]
    if undecided:
        findings.append(
            Finding(
                "note", _some(undecided), "may take the rule's fallback: only the values can tell, as they are read"
            )
        )
    for name, sentence in (layout.coarse or {}).items():
        if any(step.format == name for step in steps):
            findings.append(Finding("warning", name, sentence))
    for override in layout.overrides:
        kept = [
            step.tensor.name
            for step in steps
            if step.format == "keep"
            and step.dtype not in override.allowed
            and not override.unless_exact
            and matches(override.match, step.tensor.name)
        ]
        if kept:
            findings.append(Finding("warning", _some(kept), f"kept as it is, although {override.reason}"))
    for component in model.components.values():
        findings += [
            Finding("note", canonical, f"stands in {component.part.path} a second time as {ref.name}; written once")
            for ref, canonical in component.tied
        ]
    return findings


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for reason, name in pairs:
        groups.setdefault(reason, []).append(name)
    return list(groups.items())


def _formats(steps: Sequence[Step], names: Sequence[str]) -> str:
    wanted = set(names)
    return ", ".join(sorted({step.format for step in steps if step.tensor.name in wanted}))


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
