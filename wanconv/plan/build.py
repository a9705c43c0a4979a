"""Recipe × Model × Layout → Plan: every output byte's place and format, decided from headers alone."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wanconv import recipe as recipes
from wanconv.checkpoint.writer import Image
from wanconv.errors import Refused
from wanconv.families import DENOISERS, targets, vocabulary
from wanconv.formats import FORMATS
from wanconv.layouts import Layout, Override, Place, source_layout
from wanconv.naming import matches
from wanconv.plan.files import Slot, lay_out
from wanconv.plan.sidecars import beside
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
    refusals: list[Refused] = []
    steps: dict[str, Step] = {}
    images: list[Image] = []
    outputs: dict[str, Output] = {}
    documents: dict[str, bytes] = {}
    findings: list[Finding] = []
    with _collected(refusals):
        steps = _steps(model, recipe, layout, overflowing)
    if layout.refused and model.family.name in layout.refused:
        raise _all_of([_no_layout(model, layout, layout.refused[model.family.name]), *refusals])
    stored: dict[str, set[str]] = {}
    for component in model.components.values():
        with _collected(refusals):
            made, left_out = _outputs(component, layout, steps)
            files, index = lay_out(
                _place(component, layout), [output.slot for output in made], shard_nbytes or layout.shard_nbytes
            )
            stored[component.name] = {output.slot.dtype for output in made}
            outputs |= {output.slot.key: output for output in made}
            images += files
            documents |= index
            findings += left_out
    with _collected(refusals):
        derived, copies, left_out = beside(model, layout, {name: stored.get(name, set()) for name in model.components})
        findings = _findings(model, recipe, layout, list(steps.values())) + findings + left_out
    if refusals:
        raise _all_of(refusals)
    return Plan(model, recipe, layout, tuple(images), outputs, documents | derived, copies, tuple(findings))


@contextmanager
def _collected(refusals: list[Refused]) -> Iterator[None]:
    """Keeps a refusal for later, so that all of them can be told at once."""
    try:
        yield
    except Refused as refusal:
        refusals.append(refusal)


def _all_of(refusals: Sequence[Refused]) -> Refused:
    """Returns one refusal that says all of them: first what each is about, then its lines."""
    first, *others = refusals
    if not others:
        return first
    details = [*(other.message for other in others), *(line for refusal in refusals for line in refusal.details)]
    more = f"{len(others)} more reason" + ("s" if len(others) > 1 else "")
    return Refused(f"{first.message}; and {more}", first.hint, details)


def _no_layout(model: Model, layout: Layout, reason: str) -> Refused:
    own = source_layout(model).name
    return Refused(
        f"{model.family.name} has no {layout.name} layout: {reason}",
        f"choose another --layout; the source's own is {own}",
    )


def _place(component: Component, layout: Layout) -> Place:
    place = layout.place(component.name, component.architecture.name)
    if place is None:
        raise Refused(
            f"the {layout.name} layout has no place for {component.name}, {component.architecture.name}",
            f"leave it out: {_excluding(component)}",
        )
    return place


def _excluding(component: Component) -> str:
    """Returns the option that leaves a component out."""
    folder = component.part.folder
    return f"--exclude '{folder}/*'" if folder else " ".join(f"--exclude '{file}'" for file in component.part.files)


def _steps(model: Model, recipe: Recipe, layout: Layout, overflowing: frozenset[str]) -> dict[str, Step]:
    """Returns canonical name -> step for every tensor of the model; raises Refused for those that no format takes."""
    dims = {name: component.dims for name, component in model.components.items()}
    decided = recipes.assign(recipe, model.family.name, vocabulary(model.family, dims))
    overflowing = _with_companions(model, layout, overflowing)
    steps, problems = {}, []
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
    if problems:
        raise Refused(
            f"recipe {recipe.name} does not fit the numbers of {model.checkpoint.root}",
            "give the rule that takes them another format or a fallback",
            problems,
        )
    return steps


def _with_companions(model: Model, layout: Layout, overflowing: frozenset[str]) -> frozenset[str]:
    """Returns the tensors and those that share a tensor on disk with one: fused q, k and v have one format."""
    if not overflowing:
        return overflowing
    together = (
        {f"{component.name}/{source}" for source in target.sources}
        for component in model.components.values()
        for target in targets(component.architecture, layout.scheme, component.dims)
    )
    return overflowing.union(*(names for names in together if names & overflowing))


def _demands(override: Override, tensor: ModelTensor, chosen: str) -> bool:
    if chosen == "keep" or chosen in override.allowed or not matches(override.match, tensor.name):
        return False
    exact = DTYPES[FORMATS[chosen].stored(tensor.dtype)].holds(DTYPES[tensor.dtype])
    return not (exact and override.unless_exact)


def _outputs(component: Component, layout: Layout, steps: Mapping[str, Step]) -> tuple[list[Output], list[Finding]]:
    """Returns the tensors that `layout` stores for a component, in the order of its table, and what has no home in it.

    Raises Refused for tensors that it needs and the source lacks, or that it fuses and the recipe tells apart.
    """
    made: list[Output] = []
    housed: set[str] = set()
    missing: list[str] = []
    mixed: list[str] = []
    for target in targets(component.architecture, layout.scheme, component.dims):
        names = [f"{component.name}/{source}" for source in target.sources]
        absent = [name for name in names if name not in component.tensors]
        if target.optional and (absent or component.scheme != layout.scheme):  # the client reads files without it
            continue
        housed.update(names)
        missing += absent
        parts = [steps[name] for name in names if name in steps]
        if len({part.dtype for part in parts}) > 1:
            mixed.append(", ".join(f"{part.tensor.name} as {part.format}" for part in parts))
        elif len(parts) == len(names):
            slot = Slot(f"{component.name}/{target.name}", target.name, parts[0].dtype, target.shape)
            made.append(Output(slot, tuple(parts), target.transposed))
    if missing:
        raise Refused(
            f"{component.name}: the {layout.name} layout needs {len(missing)} tensors that the source does not hold",
            f"leave it out, and take the {layout.name} file of it as it is published: {_excluding(component)}",
            [f"not in the source: {name}" for name in missing],
        )
    if mixed:
        raise Refused(
            f"{component.name}: the {layout.name} layout stores as one tensor what the recipe gives several formats",
            "give them one format",
            mixed,
        )
    homeless = [name for name in component.tensors if name not in housed]
    return made, [_homeless(component, layout, homeless)] if homeless else []


def _homeless(component: Component, layout: Layout, names: Sequence[str]) -> Finding:
    some = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    message = f"{len(names)} tensors have no home in the {layout.name} layout and are left out: {some}"
    return Finding("note", component.name, message)


def _findings(model: Model, recipe: Recipe, layout: Layout, steps: Sequence[Step]) -> list[Finding]:
    """Returns what a user should know before: overrides, fallbacks, what is absent, what brings a client nothing."""
    findings = [
        Finding("note", component, f"not in the source, so not in the output ({model.family.name} has one)")
        for component in model.absent
        if any(name in DENOISERS for name in model.components)  # else the family is a guess
    ]
    findings += [Finding("note", component, f"its role comes from {why}") for component, why in model.evidence.items()]
    if any("expert" in recipe.rules[step.rule].match for step in steps if matches("dit/**", step.tensor.name)):
        sentence = f"{model.family.name} has one denoiser: what the recipe says of the experts is done to it"
        findings.append(Finding("note", "dit", sentence))
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
