"""Findings about a plan for the user, before it is carried out."""

from collections.abc import Iterable, Sequence

from wanconv.layouts import Layout
from wanconv.models import DENOISERS, expert_named, expert_unless_dense
from wanconv.planning.marks import marks_of, older_clients
from wanconv.planning.types import Step
from wanconv.quantization import FORMATS
from wanconv.quantization.packings import in_full_precision, leaf_of, sibling_name
from wanconv.recipe import Recipe
from wanconv.report import Finding
from wanconv.types.figures import count
from wanconv.types.model import Model, ModelTensor
from wanconv.types.names import matches

_NAMES = ("of its keys names", "of its keys name")


def findings_of(model: Model, recipe: Recipe, layout: Layout, steps: Sequence[Step]) -> list[Finding]:
    """Returns the findings: overrides, fallbacks, absent components, formats without use to a client."""
    findings = [
        Finding("note", component, f"not in the source, so not in the output ({model.family.name} has one)")
        for component in model.absent
        if any(name in DENOISERS for name in model.components)  # otherwise the family is a guess
    ]
    findings += [*left_out(model), *marks_of(model), *older_clients(model, layout), *roles_of(model)]
    for lora in model.loras:
        if lora.evidence:
            findings.append(Finding("note", lora.file.name, f"goes to {lora.component} by its {lora.evidence}"))
        named = expert_named(lora.file.name)
        if named is not None and lora.component not in ("dit", f"expert.{named}"):
            message = f"goes to {lora.component}, and its name speaks of expert.{named}"
            findings.append(Finding("warning", lora.file.name, message, "check which expert it was made for"))
        if lora.unmatched:
            message = f"{count(len(lora.unmatched), *_NAMES)} nothing in {lora.component}: {some(lora.unmatched)}"
            findings.append(Finding("warning", lora.file.name, message))
    if any("expert" in recipe.rules[step.rule].match for step in steps if matches("dit/**", step.tensor.name)):
        sentence = f"{model.title} has one denoiser: what the recipe says of the experts is done to it"
        findings.append(Finding("note", "dit", sentence))
    for reason, names in _grouped((step.reason, step.tensor.name) for step in steps if step.reason):
        findings.append(Finding("note", some(names), f"stored as {_formats(steps, names)}: {reason}"))
    findings += _second_steps(steps)
    undecided = [step.tensor.name for step in steps if step.fallback]
    if undecided:
        findings.append(
            Finding("note", some(undecided), "may take the rule's fallback: only the values can tell, as they are read")
        )
    for name, sentence in (layout.coarse or {}).items():
        if any(step.format == name and step.packing is None for step in steps):
            findings.append(Finding("warning", name, sentence))
    calibrated = [step for step in steps if _has_input_scale(model, step.tensor)]
    for without, names in _grouped((_without_input_scale(step, layout), step.tensor.name) for step in calibrated):
        findings.append(Finding("note", some(names), f"its calibrated input scale is left out: {without}"))
    for packing in dict.fromkeys(step.packing for step in steps if step.packing and step.packing.caution):
        findings.append(Finding("note", packing.format, packing.caution))
    if layout.caution and any(step.packing for step in steps):
        findings.append(Finding("warning", layout.name, layout.caution))
    for override in layout.overrides_for(model.family):
        kept = [
            step.tensor.name
            for step in steps
            if step.format == "keep"
            and step.dtype not in override.allowed
            and not override.unless_exact
            and override.is_about(step.tensor)
        ]
        if kept:
            findings.append(Finding("warning", some(kept), f"kept as it is, although {override.reason}"))
    for component in model.components.values():
        findings += [
            Finding("note", canonical, f"stands in {component.part.path} a second time as {ref.name}; written once")
            for ref, canonical in component.tied
        ]
    return findings + dead_of(model)


def dead_of(model: Model) -> list[Finding]:
    """Returns a note about tensors in a file that neither a client nor the output uses."""
    findings = []
    for component in model.components.values():
        for why, names in _grouped((why, ref.name) for ref, why in component.dead):
            them = count(len(names), "tensor is not part", "tensors are not part")
            left = "is left out" if len(names) == 1 else "are left out"
            message = f"{them} of {component.architecture.name} and {left}: {why}"
            findings.append(Finding("note", f"{component.part.path}: {some(names)}", message))
    return findings


def left_out(model: Model) -> list[Finding]:
    """Returns the files of a source that are not read, and the globs of `exclude` that matched none."""
    skipped = [Finding("note", path, f"left out: {what}") for path, what in model.skipped]
    return skipped + without_match(model.checkpoint.unmatched)


def without_match(globs: Iterable[str]) -> list[Finding]:
    return [Finding("warning", glob, "excludes nothing: no path or name matches") for glob in globs]


def roles_of(model: Model) -> list[Finding]:
    """Returns the evidence for each denoiser's role; without any, the role it was given and how to change it."""
    findings = [Finding("note", component, f"its role comes from {why}") for component, why in model.evidence.items()]
    if model.mark is None and (family := expert_unless_dense(model)) is not None:
        message = f"taken for the denoiser of {model.family.name}: nothing here tells it from an expert of {family}, "
        message += "whose names and shapes are the same"
        findings.append(Finding("note", "dit", message, '`expert="high"` or `expert="low"` says that it is one'))
    return findings


def _has_input_scale(model: Model, tensor: ModelTensor) -> bool:
    if tensor.packing is None or tensor.packing.inputs is None:
        return False
    part = model.components[tensor.name.partition("/")[0]].part
    return sibling_name(leaf_of(tensor.pieces[0].ref.name)[0], tensor.packing.inputs) in part.tensors


def _without_input_scale(step: Step, layout: Layout) -> str:
    """Returns how a client works without the source's scale for a layer's inputs."""
    if step.packing is None or step.packing.inputs is None:
        return f"{layout.name} does not read one with {step.label}"
    if in_full_precision(step.packing):
        return "its client multiplies in full precision without"
    return "its client finds the scales of a layer's inputs itself"


def _second_steps(steps: Sequence[Step]) -> list[Finding]:
    """Returns findings about tensors that were quantized before: carried over, or rounded a second time."""
    before = [step for step in steps if step.tensor.quantized]
    findings = []
    for label, names in _grouped(("" if step.carried else step.label, step.tensor.name) for step in before):
        first = next(step for step in before if step.tensor.name == names[0])
        was = first.tensor.stored_as
        if not label:
            findings.append(
                Finding("note", some(names), f"was {was} and stays so: payload and scales are carried over")
            )
            continue
        message = f"was {was}: that precision is lost already, and {label} adds its own error, up to half a step"
        message += " where it does not clip" if FORMATS[first.format].clips and first.rounding != "nearest" else ""
        findings.append(Finding("warning", some(names), message, "convert the checkpoint that it was made from"))
    return findings


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for reason, name in pairs:
        groups.setdefault(reason, []).append(name)
    return list(groups.items())


def _formats(steps: Sequence[Step], names: Sequence[str]) -> str:
    wanted = set(names)
    return ", ".join(sorted({step.format for step in steps if step.tensor.name in wanted}))


def some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
