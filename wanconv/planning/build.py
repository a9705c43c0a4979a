"""Recipe × Model × Layout → Plan: every output byte's place and format, decided from headers alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path

from wanconv.containers.files import explained
from wanconv.containers.writer import Image
from wanconv.errors import InputError, Refused
from wanconv.layouts import LAYOUTS, Layout, Place, Stored, source_layout
from wanconv.planning.files import Slot, lay_out
from wanconv.planning.findings import findings_of
from wanconv.planning.marks import carried, refused_mark
from wanconv.planning.outputs import outputs_of, without
from wanconv.planning.sidecars import documents_and_copies
from wanconv.planning.steps import steps_of
from wanconv.planning.types import Contents, Plan
from wanconv.quantization.packings import TOKENIZER, TOKENIZER_NBYTES, tokenizer_of
from wanconv.recipe import Recipe
from wanconv.report import Finding
from wanconv.storage.reading import read_small
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import count, exact_size, size
from wanconv.types.model import Component, Model


def plan(
    model: Model,
    recipe: Recipe,
    layout: Layout,
    shard_nbytes: int | None = None,
    overflowing: frozenset[str] = frozenset(),
) -> Plan:
    """Returns the plan, or raises Refused with every reason at once.

    `overflowing` are canonical tensors whose values are known to exceed their rule's format: they get its fallback.
    """
    refusals: list[Refused] = []
    held = _contents(model, recipe, layout, overflowing, refusals)
    images: list[Image] = []
    documents: dict[str, bytes] = {}
    findings: list[Finding] = []
    for name, component in model.components.items():
        if name in held.slots:
            limit = layout.shard_nbytes and (shard_nbytes or layout.shard_nbytes)
            with _collected(refusals):
                place = _place(model, component, layout)
                texts, left = carried(component, place.container)
                metadata = {**texts, **layout.metadata(name, held.stored[name])}
                files, index = lay_out(place, held.slots[name], limit, metadata)
                images += files
                documents |= index
                held.findings.extend(left)
    with _collected(refusals):
        derived, copies, left_out = documents_and_copies(
            model, layout, {name: held.stored.get(name, []) for name in model.components}
        )
        findings = [*findings_of(model, recipe, layout, list(held.steps.values())), *held.findings, *left_out]
    if shard_nbytes and layout.shard_nbytes is None:
        sentence = f"the {layout.name} layout has one file per component: `shard_nbytes` changes nothing"
        findings.append(Finding("warning", layout.name, sentence))
    if refusals:
        raise _all_of(refusals)
    documents |= derived
    return Plan(
        model, recipe, layout, tuple(images), held.outputs, documents, copies, tuple(findings), (), shard_nbytes
    )


def contents(model: Model, recipe: Recipe, layout: Layout) -> Contents:
    """Returns what the files of a plan hold, without the files; or raises Refused with every reason at once."""
    refusals: list[Refused] = []
    held = _contents(model, recipe, layout, frozenset(), refusals)
    if refusals:
        raise _all_of(refusals)
    return held


def _contents(
    model: Model, recipe: Recipe, layout: Layout, overflowing: frozenset[str], refusals: list[Refused]
) -> Contents:
    """Returns the files' contents of all components without a refusal, and adds the refusals to `refusals`."""
    held = Contents({}, {}, {}, {}, [])
    with _collected(refusals):
        held.steps.update(steps_of(model, recipe, layout, overflowing))
    if layout.refused and model.family.name in layout.refused:
        raise _all_of([_no_layout(model, layout, layout.refused[model.family.name]), *refusals])
    if (unread := refused_mark(model, layout)) is not None:
        raise _all_of([unread, *refusals])
    for name, component in model.components.items():
        with _collected(refusals):
            made, tensors, left_out = outputs_of(component, layout, held.steps)
            held.stored[name] = tensors
            held.slots[name] = [
                *(output.slot for output in made),
                *(attached := _attached(model, component, layout)),
                *_marker(component, layout, tensors),
            ]
            held.outputs.update({output.slot.key: output for output in made if output.slot.constant is None})
            held.findings.extend([*left_out, *_without_tokenizer(component, layout, attached)])
    return held


@contextmanager
def _collected(refusals: list[Refused]) -> Iterator[None]:
    """Keeps a refusal for later, so that all of them are reported at once."""
    try:
        yield
    except Refused as refusal:
        refusals.append(refusal)


def _all_of(refusals: Sequence[Refused]) -> Refused:
    """Returns one refusal for all of them: each one's message, then its lines."""
    first, *others = refusals
    if not others:
        return first
    details = [*(other.message for other in others), *(line for refusal in refusals for line in refusal.details)]
    return Refused(f"{first.message}; and {count(len(others), 'more reason')}", first.hint, details)


def _no_layout(model: Model, layout: Layout, reason: str) -> Refused:
    own = source_layout(model)
    homes = [name for name, one in LAYOUTS.items() if model.family.name not in (one.refused or {})]
    advice = f"; the source's own is {own.name}" if own.name in homes else f": {', '.join(homes)}"
    return Refused(f"{model.family.name} has no {layout.name} layout: {reason}", f"choose another `layout`{advice}")


def _place(model: Model, component: Component, layout: Layout) -> Place:
    place = layout.place(component.name, component.architecture.name)
    if place is None:
        raise Refused(
            f"the {layout.name} layout has no place for {component.name}, {component.architecture.name}",
            f"leave it out: {without(component)}",
        )
    return replace(place, stem=place.stem.format(family=model.title))


def _attached(model: Model, component: Component, layout: Layout) -> list[Slot]:
    """Returns what becomes a further tensor of a component: its tokenizer, which is a tensor already or a sidecar."""
    wanted = layout.attached_to(component.name, component.architecture.name)
    if wanted is None:
        return []
    name, file = wanted
    content: bytes | None = None
    if (ref := tokenizer_of(component.part)) is not None:
        with explained(ref.file):
            content = ref.read()
    elif sidecar := next((path for path in model.checkpoint.sidecars if os.path.basename(path) == file), None):
        content = _tokenizer_beside(model.checkpoint.root / sidecar)
    if content is None:
        return []
    return [Slot(f"{component.name}/{name}", name, "uint8", (len(content),), attached=True, constant=content)]


def _tokenizer_beside(path: Path) -> bytes:
    with explained(path):
        if (nbytes := path.stat().st_size) > TOKENIZER_NBYTES:
            most = size(TOKENIZER_NBYTES)
            message = f"{path} has {exact_size(nbytes)}, and a tokenizer that becomes a tensor at most {most}"
            raise InputError(message, "leave it out with `exclude`: it is not this model's tokenizer")
        return read_small(path, TOKENIZER_NBYTES)


def _without_tokenizer(component: Component, layout: Layout, attached: Sequence[Slot]) -> list[Finding]:
    """Returns findings about a tokenizer that the layout does not store, or that is missing."""
    wanted = layout.attached_to(component.name, component.architecture.name)
    if wanted is None and tokenizer_of(component.part) is not None:
        message = f"its tokenizer, the tensor {TOKENIZER}, has no place in the {layout.name} layout and is left out"
        return [Finding("note", component.name, message, "add the tokenizer's folder of the model as it was published")]
    if wanted is not None and not attached:
        message = f"{layout.name} takes its tokenizer from a tensor, {wanted[0]}, and the source has no {wanted[1]}"
        return [Finding("warning", component.name, message, f"convert a folder with the model's {wanted[1]} in it")]
    return []


def _marker(component: Component, layout: Layout, tensors: Sequence[Stored]) -> list[Slot]:
    """Returns the tensor that marks a component's file, if it has scales."""
    marker = layout.marker
    if marker is None or not any(tensor.packing for tensor in tensors):
        return []
    shape = marker.shapes[component.name]
    content = bytes(prod(shape) * DTYPES[marker.dtype].itemsize)
    return [Slot(f"{component.name}/{marker.name}", marker.name, marker.dtype, shape, attached=True, constant=content)]
