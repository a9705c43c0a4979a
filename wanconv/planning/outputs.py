"""The tensors that a layout stores for a component, and the steps that fill each of them."""

from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path

from wanconv.errors import Refused, argument
from wanconv.layouts import Layout, Stored
from wanconv.models import Target, targets
from wanconv.planning.files import Slot
from wanconv.planning.types import Output, Step
from wanconv.quantization.packings import leaf_of, sibling_name
from wanconv.report import Finding
from wanconv.types.exclusion import excluding
from wanconv.types.figures import count
from wanconv.types.model import Component
from wanconv.types.tensors import Shape


def outputs_of(
    component: Component, layout: Layout, steps: Mapping[str, Step]
) -> tuple[list[Output], list[Stored], list[Finding]]:
    """Returns the tensors that `layout` stores for a component, with their scales and without, and those that it does
    not store. They are in the table's order, those of the source's first file before those of its second.

    Raises Refused for tensors that it needs and the source lacks, or that it fuses and the recipe keeps apart.
    """
    made: list[list[Output]] = []
    tensors: list[Stored] = []
    housed: set[str] = set()
    missing: list[str] = []
    mixed: list[str] = []
    fused: list[str] = []
    scheme = layout.scheme_of(component.name, component.architecture.name)
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
        lacking = count(len(missing), "tensor")
        raise Refused(
            f"{component.name}: the {layout.name} layout needs {lacking} that the source does not hold",
            f"leave it out, and take the {layout.name} file of it as it is published: {without(component)}",
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
            "as one tensor, for which wanconv writes no scales",
            "choose a recipe without scales",
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
    """Returns the tensors of a file that hold a tensor of the table: itself, or its payload, scales and constants."""
    step, packing = parts[0], parts[0].packing
    if packing is None:
        slot = Slot(f"{component}/{target.name}", target.name, step.dtype, target.shape)
        return [Output(slot, tuple(parts), target.transposed)]
    module, leaf = leaf_of(target.name)
    assert leaf == "weight", f"{target.name} is not a linear layer's weight"

    def slot_of(leaf: str, dtype: str, shape: Shape, constant: bytes | None = None) -> Slot:
        name = sibling_name(module, leaf)
        return Slot(f"{component}/{name}", name, dtype, shape, leaf != packing.payload, constant)

    payload = slot_of(packing.payload, packing.payload_dtype, packing.payload_shape(target.shape))
    scales = slot_of(packing.scales, packing.scale_dtype, packing.scale_shape(target.shape))
    whole = [Output(slot_of(packing.whole, "fp32", ()), (), scales_of=step, whole=True)] if packing.whole else []
    return [
        Output(payload, (step,)),
        Output(scales, (), scales_of=step),
        *whole,
        *(Output(slot_of(name, "uint8", (len(text),), text), ()) for name, text in packing.constants),
    ]


def _homeless(component: Component, layout: Layout, names: Sequence[str]) -> Finding:
    some = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    without = count(len(names), "tensor has no home", "tensors have no home")
    left_out = "is left out" if len(names) == 1 else "are left out"
    message = f"{without} in the {layout.name} layout and {left_out}: {some}"
    return Finding("note", component.name, message)


def without(component: Component) -> str:
    """Returns the arguments that leave a component out."""
    folder = component.part.folder
    return argument("exclude", [f"{escape(folder)}/*"]) if folder else excluding(component.part.files)
