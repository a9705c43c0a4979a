"""Recipe × Model × Layout → Plan: every output byte's place and format, decided from headers alone."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from wanconv import recipe as recipes
from wanconv.checkpoint.writer import Image
from wanconv.errors import Refused
from wanconv.families import DENOISERS, Target, leaf_of, targets, vocabulary
from wanconv.families import beside as beside_name
from wanconv.formats import FORMATS
from wanconv.layouts import LAYOUTS, Layout, Override, Place, Stored, Together, source_layout
from wanconv.naming import matches
from wanconv.plan.files import Slot, lay_out, not_held
from wanconv.plan.sidecars import beside
from wanconv.recipe import Recipe, Rule
from wanconv.report import Finding
from wanconv.tensors import DTYPES, Component, Container, Model, ModelTensor, Packing, Scheme, Shape


@dataclass(frozen=True, slots=True)
class Step:
    """One canonical tensor on its way: `format` is what it is stored in, `dtype` the dtype on disk, `rule` who says so.

    `fallback` is the format that an overflow leads to; `reason` is set where the format is not the rule's own;
    `packing` is how the client stores the scales, where the format has some, and `rounding` how they are found.
    """

    tensor: ModelTensor
    format: str
    dtype: str
    rule: int
    fallback: str | None = None
    reason: str = ""
    packing: Packing | None = None
    rounding: str = "nearest"

    @property
    def nbytes(self) -> int:
        """Bytes on disk: the payload and what stands beside it."""
        payload = DTYPES[self.dtype].nbytes(self.tensor.numel)
        if self.packing is None:
            return payload
        scales = prod(self.packing.scale_shape(self.tensor.shape)) * DTYPES["fp32"].itemsize
        return payload + scales + sum(len(content) for _, content in self.packing.constants)

    @property
    def carried(self) -> bool:
        """True where the source's payload and scales are written as they are: the formats agree, and where the source
        has one scale for all rows, the target may have it in each."""
        if self.tensor.patches:
            return False
        if DTYPES[self.dtype].block > 1:
            return self.dtype == self.tensor.dtype
        ours, theirs = self.packing, self.tensor.packing
        if ours is None or theirs is None or ours.format != theirs.format:
            return False
        return ours.scale == theirs.scale or theirs.scale == "tensor"

    @property
    def label(self) -> str:
        """The format, what its scales cover, and how they are found where that is a search: `int8 row mse`."""
        if self.packing is None:
            return self.format
        searched = self.rounding != "nearest" and not self.carried
        return f"{self.format} {self.packing.scale}" + (f" {self.rounding}" if searched else "")


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an output file: filled by its steps one after the other, or the scales of another one's step."""

    slot: Slot
    steps: tuple[Step, ...]
    transposed: bool = False
    scales_of: Step | None = None

    @property
    def step(self) -> Step:
        """The first that the bytes come from."""
        return self.scales_of or self.steps[0]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will do: `documents` are derived files (path -> bytes), `copies` sidecars (path -> source).

    By component, `stored` are its tensors as they would be called without scales, `slots` all that its files hold.
    """

    model: Model
    recipe: Recipe
    layout: Layout
    images: tuple[Image, ...]
    outputs: Mapping[str, Output]
    documents: Mapping[str, bytes]
    copies: Mapping[str, Path]
    findings: tuple[Finding, ...]
    stored: Mapping[str, Sequence[Stored]]
    slots: Mapping[str, Sequence[Slot]]

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
                    step.packing and step.packing.scale,
                    step.rounding,
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
    stored: dict[str, list[Stored]] = {}
    slots_by_component: dict[str, list[Slot]] = {}
    for component in model.components.values():
        with _collected(refusals):
            made, tensors, left_out = _outputs(component, layout, steps)
            stored[component.name] = tensors
            slots = slots_by_component[component.name] = [
                *(output.slot for output in made),
                *_attached(model, component, layout),
                *_marker(component, layout, tensors),
            ]
            limit = layout.shard_nbytes and (shard_nbytes or layout.shard_nbytes)
            metadata = layout.metadata(component.name, tensors)
            files, index = lay_out(_place(model, component, layout), slots, limit, metadata)
            outputs |= {output.slot.key: output for output in made if output.slot.constant is None}
            images += files
            documents |= index
            findings += left_out
    with _collected(refusals):
        derived, copies, left_out = beside(model, layout, {name: stored.get(name, []) for name in model.components})
        findings = _findings(model, recipe, layout, list(steps.values())) + findings + left_out
    if shard_nbytes and layout.shard_nbytes is None:
        sentence = f"the {layout.name} layout has one file per component: --shard-size changes nothing"
        findings.append(Finding("warning", layout.name, sentence))
    if refusals:
        raise _all_of(refusals)
    documents |= derived
    return Plan(
        model, recipe, layout, tuple(images), outputs, documents, copies, tuple(findings), stored, slots_by_component
    )


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
    own = source_layout(model)
    homes = [name for name, one in LAYOUTS.items() if model.family.name not in (one.refused or {})]
    advice = f"; the source's own is {own.name}" if own.name in homes else f": {', '.join(homes)}"
    return Refused(f"{model.family.name} has no {layout.name} layout: {reason}", f"choose another --layout{advice}")


def _place(model: Model, component: Component, layout: Layout) -> Place:
    place = layout.place(component.name, component.architecture.name)
    if place is None:
        raise Refused(
            f"the {layout.name} layout has no place for {component.name}, {component.architecture.name}",
            f"leave it out: {_excluding(component)}",
        )
    return replace(place, stem=place.stem.format(family=model.family.name))


def _attached(model: Model, component: Component, layout: Layout) -> list[Slot]:
    """Returns the sidecars that become tensors of a component."""
    name, wanted = layout.attached.get(component.name, ("", ""))
    for sidecar in model.checkpoint.sidecars:
        if name and os.path.basename(sidecar) == wanted:
            content = (model.checkpoint.root / sidecar).read_bytes()
            return [Slot(f"{component.name}/{name}", name, "uint8", (len(content),), beside=True, constant=content)]
    return []


def _marker(component: Component, layout: Layout, tensors: Sequence[Stored]) -> list[Slot]:
    """Returns the tensor that marks a component's file, where it has scales."""
    marker = layout.marker
    if marker is None or not any(tensor.packing for tensor in tensors):
        return []
    shape = marker.shapes[component.name]
    content = bytes(prod(shape) * DTYPES[marker.dtype].itemsize)
    return [Slot(f"{component.name}/{marker.name}", marker.name, marker.dtype, shape, beside=True, constant=content)]


def _excluding(component: Component) -> str:
    """Returns the option that leaves a component out."""
    folder = component.part.folder
    return f"--exclude '{folder}/*'" if folder else " ".join(f"--exclude '{file}'" for file in component.part.files)


def _steps(model: Model, recipe: Recipe, layout: Layout, overflowing: frozenset[str]) -> dict[str, Step]:
    """Returns canonical name -> step for every tensor of the model; raises Refused for those that no format takes."""
    unread: dict[str, list[str]] = {}  # reason -> tensors
    containers = {name: _container(component, layout) for name, component in model.components.items()}
    dims = {name: component.dims for name, component in model.components.items()}
    decided = recipes.assign(recipe, model.family.name, vocabulary(model.family, dims))
    overflowing = _with_companions(model, layout, overflowing)
    steps: dict[str, Step] = {}
    problems: list[str] = []
    overrides = _overrides(model, layout)
    for name, tensor in model.tensors.items():
        index = decided[name]
        rule = recipe.rules[index]
        chosen, scale, fallback, reason = rule.format, _scale(rule, layout), rule.fallback, ""
        if chosen == "keep" and tensor.quantized:
            chosen, scale = tensor.dtype, _kept_scale(tensor.packing, layout)
        refusal = FORMATS[chosen].refuses(tensor.numbers, tensor.role.kind, tensor.shape, scale)
        if name in overflowing:
            refusal = f"a value exceeds {DTYPES[FORMATS[chosen].stored(tensor.dtype)].largest:g}"
        if refusal and fallback:
            chosen, scale, fallback, reason = fallback, "none", None, f"fallback from {chosen}: {refusal}"
            refusal = FORMATS[chosen].refuses(tensor.numbers, tensor.role.kind, tensor.shape)
        if refusal:
            problems.append(f"{name} as {chosen}: {refusal}")
            continue
        for override in overrides:
            if _demands(override, tensor, chosen):
                chosen, scale, fallback, reason = override.instead, "none", None, override.reason
        dtype = FORMATS[chosen].stored(tensor.dtype)
        if scale != "none" or DTYPES[dtype].holds(DTYPES[tensor.numbers]):
            fallback = None
        made = Step(tensor, chosen, dtype, index, fallback, reason)
        steps[name] = made if scale == "none" else _packed(made, rule, scale, layout, unread)
        if scale == "none" and (why := layout.unread.get(dtype) or not_held(containers[name.partition("/")[0]], dtype)):
            unread.setdefault(why, []).append(name)
    if problems:
        raise Refused(
            f"recipe {recipe.name} does not fit the numbers of {model.checkpoint.root}",
            "give the rule that takes them another format or a fallback",
            problems,
        )
    if layout.together:
        steps = _together(steps, layout.together, unread)
    if unread:
        raise Refused(
            f"the {layout.name} layout does not take this recipe: {'; '.join(unread)}",
            "choose another --recipe, or the --layout of a client that reads it",
            [_some(names) for names in unread.values()],
        )
    return steps


def _scale(rule: Rule, layout: Layout) -> str:
    """Returns what a rule's scales cover in a layout: `auto` is the finest that the client reads of the format."""
    packing = layout.packing(rule.format, rule.scale)
    return packing.scale if packing and rule.scale == "auto" else rule.scale


def _container(component: Component, layout: Layout) -> Container:
    place = layout.place(component.name, component.architecture.name)
    return "safetensors" if place is None else place.container  # without a place, it is refused for that


def _kept_scale(packing: Packing | None, layout: Layout) -> str:
    """Returns what the scales of a kept tensor cover in a layout: the same, or each row where one was for all."""
    if packing is None:
        return "none"
    if packing.scale == "tensor" and layout.packing(packing.format, "tensor") is None:
        return "row"
    return packing.scale


def _packed(step: Step, rule: Rule, scale: str, layout: Layout, unread: dict[str, list[str]]) -> Step:
    """Returns the step with the layout's packing; where it has none, or none for this component, notes why."""
    packing = layout.packing(step.format, scale)
    if packing is None:
        what = "scales" if scale == "auto" else f"a scale of each {scale}"
        why = f"{layout.name} does not read {step.format} with {what}: {layout.unscaled}"
        unread.setdefault(why, []).append(step.tensor.name)
    elif step.tensor.name.partition("/")[0] not in layout.scaled:
        why = f"{layout.name} reads scales in the weights of {', '.join(layout.scaled)} alone"
        unread.setdefault(why, []).append(step.tensor.name)
    return replace(step, packing=packing, rounding=rule.rounding)


def _together(steps: Mapping[str, Step], rule: Together, unread: dict[str, list[str]]) -> dict[str, Step]:
    """Returns the steps with those that follow stored as those that lead; notes what the rule forbids."""
    linear = [step for step in steps.values() if step.tensor.role.kind == "linear"]
    leading = [step for step in linear if matches(rule.lead, step.tensor.name)]
    packings = {step.packing for step in leading}
    (packing,) = packings if len(packings) == 1 else (None,)
    if len(packings) > 1:
        unread.setdefault(rule.reason, []).extend(step.tensor.name for step in leading)
    made = dict(steps)
    for step in linear:
        name = step.tensor.name
        if packing and matches(rule.follow, name) and step.packing != packing:
            made[name] = replace(step, format=packing.format, dtype=packing.format, fallback=None, reason=rule.reason)
            made[name] = replace(made[name], packing=packing, rounding=leading[0].rounding)
        elif (step.packing and len(packings) == 1 and step.packing != packing) or (
            step.packing and not (matches(rule.lead, name) or matches(rule.follow, name))
        ):
            unread.setdefault(rule.reason, []).append(name)
    return made


def _with_companions(model: Model, layout: Layout, overflowing: frozenset[str]) -> frozenset[str]:
    """Returns the tensors and those that share a tensor on disk with one: fused q, k and v have one format."""
    if not overflowing:
        return overflowing
    together = (
        {f"{component.name}/{source}" for source in target.sources}
        for component in model.components.values()
        for target in targets(component.architecture, _scheme(component, layout), component.dims)
    )
    return overflowing.union(*(names for names in together if names & overflowing))


def _scheme(component: Component, layout: Layout) -> Scheme:
    return layout.scheme_of(component.name, component.architecture.name)


def _overrides(model: Model, layout: Layout) -> list[Override]:
    return [override for override in layout.overrides if matches(override.families, model.family.name)]


def _demands(override: Override, tensor: ModelTensor, chosen: str) -> bool:
    dtype = FORMATS[chosen].stored(tensor.dtype)
    if dtype in override.allowed or not _is_about(override, tensor):
        return False
    instead = FORMATS[override.instead]
    if chosen == "keep" and (not override.kept or instead.refuses(tensor.numbers, tensor.role.kind, tensor.shape)):
        return False
    exact = DTYPES[dtype].holds(DTYPES[tensor.numbers])
    return not (exact and override.unless_exact)


def _is_about(override: Override, tensor: ModelTensor) -> bool:
    return (not override.kinds or tensor.role.kind in override.kinds) and matches(override.match, tensor.name)


def _outputs(
    component: Component, layout: Layout, steps: Mapping[str, Step]
) -> tuple[list[Output], list[Stored], list[Finding]]:
    """Returns the tensors that `layout` stores for a component: with those beside them, and without; and what has no
    home in it. They are in the order of its table, those of the source's first file before those of its second.

    Raises Refused for tensors that it needs and the source lacks, or that it fuses and the recipe tells apart.
    """
    made: list[list[Output]] = []
    tensors: list[Stored] = []
    housed: set[str] = set()
    missing: list[str] = []
    mixed: list[str] = []
    fused: list[str] = []
    scheme = _scheme(component, layout)
    for target in targets(component.architecture, scheme, component.dims):
        names = [f"{component.name}/{source}" for source in target.sources]
        absent = [name for name in names if name not in component.tensors]
        if target.optional and (absent or component.scheme != scheme):  # the client reads files without it
            continue
        housed.update(names)
        missing += absent
        parts = [steps[name] for name in names if name in steps]
        if len({part.dtype for part in parts}) > 1:
            mixed.append(", ".join(f"{part.tensor.name} as {part.label}" for part in parts))
        elif (len(parts) > 1 or target.transposed) and any(part.packing for part in parts):
            fused.append(target.name)
        elif len(parts) == len(names):
            made.append(_tensors(component.name, target, parts))
            tensors.append(Stored(target.name, parts[0].dtype, target.shape, parts[0].packing))
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
    if fused:
        raise Refused(
            f"the {layout.name} layout does not take this recipe: it stores weights of {component.architecture.name} "
            "as one tensor, and wanconv writes no scales for such",
            "choose a recipe without scales, or another --layout",
            fused,
        )
    homeless = [name for name in component.tensors if name not in housed]
    made.sort(key=lambda outputs: _last_file(outputs[0]))
    in_turn = [output for outputs in made for output in outputs]
    return in_turn, tensors, [_homeless(component, layout, homeless)] if homeless else []


def _last_file(output: Output) -> Path:
    """Returns the last of the source's files that a tensor is made from; shards are numbered in their names."""
    return max(piece.ref.file for step in output.steps for piece in step.tensor.pieces)


def _tensors(component: str, target: Target, parts: Sequence[Step]) -> list[Output]:
    """Returns the tensors of a file that hold one of the table: itself, or its payload, scales and constants."""
    step, packing = parts[0], parts[0].packing
    if packing is None:
        slot = Slot(f"{component}/{target.name}", target.name, step.dtype, target.shape)
        return [Output(slot, tuple(parts), target.transposed)]
    module, leaf = leaf_of(target.name)
    assert leaf == "weight", f"{target.name} is no weight of a linear layer"

    def slot_of(leaf: str, dtype: str, shape: Shape, constant: bytes | None = None) -> Slot:
        name = beside_name(module, leaf)
        return Slot(f"{component}/{name}", name, dtype, shape, leaf != packing.payload, constant)

    scales = slot_of(packing.scales, "fp32", packing.scale_shape(target.shape))
    return [
        Output(slot_of(packing.payload, step.dtype, target.shape), (step,)),
        Output(scales, (), scales_of=step),
        *(Output(slot_of(name, "uint8", (len(text),), text), ()) for name, text in packing.constants),
    ]


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
    for lora in model.loras:
        if lora.evidence:
            findings.append(Finding("note", lora.file.name, f"goes to {lora.component} by its {lora.evidence}"))
        if lora.unmatched:
            message = f"{len(lora.unmatched)} of its keys name nothing in {lora.component}: {_some(lora.unmatched)}"
            findings.append(Finding("warning", lora.file.name, message))
    if any("expert" in recipe.rules[step.rule].match for step in steps if matches("dit/**", step.tensor.name)):
        sentence = f"{model.family.name} has one denoiser: what the recipe says of the experts is done to it"
        findings.append(Finding("note", "dit", sentence))
    for reason, names in _grouped((step.reason, step.tensor.name) for step in steps if step.reason):
        findings.append(Finding("note", _some(names), f"stored as {_formats(steps, names)}: {reason}"))
    findings += _second_steps(steps)
    undecided = [step.tensor.name for step in steps if step.fallback]
    if undecided:
        findings.append(
            Finding(
                "note", _some(undecided), "may take the rule's fallback: only the values can tell, as they are read"
            )
        )
    for name, sentence in (layout.coarse or {}).items():
        if any(step.format == name and step.packing is None for step in steps):
            findings.append(Finding("warning", name, sentence))
    if calibrated := [tensor.name for tensor in model.tensors.values() if _has_input_scale(model, tensor)]:
        message = "its calibrated input scale is left out: its client multiplies in full precision without"
        findings.append(Finding("note", _some(calibrated), message))
    if layout.caution and any(step.packing for step in steps):
        findings.append(Finding("warning", layout.name, layout.caution))
    for override in _overrides(model, layout):
        kept = [
            step.tensor.name
            for step in steps
            if step.format == "keep"
            and step.dtype not in override.allowed
            and not override.unless_exact
            and _is_about(override, step.tensor)
        ]
        if kept:
            findings.append(Finding("warning", _some(kept), f"kept as it is, although {override.reason}"))
    for component in model.components.values():
        findings += [
            Finding("note", canonical, f"stands in {component.part.path} a second time as {ref.name}; written once")
            for ref, canonical in component.tied
        ]
    return findings


def _has_input_scale(model: Model, tensor: ModelTensor) -> bool:
    if tensor.packing is None or tensor.packing.inputs is None:
        return False
    part = model.components[tensor.name.partition("/")[0]].part
    return beside_name(leaf_of(tensor.pieces[0].ref.name)[0], tensor.packing.inputs) in part.tensors


def _second_steps(steps: Sequence[Step]) -> list[Finding]:
    """Returns what becomes of tensors that were quantized before: carried over, or rounded a second time."""
    before = [step for step in steps if step.tensor.quantized]
    findings = []
    for label, names in _grouped(("" if step.carried else step.label, step.tensor.name) for step in before):
        was = next(step.tensor.stored_as for step in before if step.tensor.name == names[0])
        if not label:
            findings.append(
                Finding("note", _some(names), f"was {was} and stays so: payload and scales are carried over")
            )
            continue
        message = f"was {was}: that precision is lost already, and {label} adds its own error, up to half a step"
        message += " where it does not clip" if label.startswith("int8") and label.endswith("mse") else ""
        findings.append(Finding("warning", _some(names), message, "convert the checkpoint that it was made from"))
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
