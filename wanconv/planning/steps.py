"""The format of each tensor: the recipe's choice, the layout's needs, and the reasons for a refusal."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from wanconv import recipe as recipes
from wanconv.errors import Refused
from wanconv.layouts import Layout, Override, Together
from wanconv.models import targets, vocabulary
from wanconv.planning.files import not_held
from wanconv.planning.findings import some
from wanconv.planning.types import Step
from wanconv.quantization import FORMATS
from wanconv.quantization.packings import leaf_of, multiplied_as
from wanconv.recipe import Recipe, Rule
from wanconv.types.architecture import Family
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import Component, Model, ModelTensor
from wanconv.types.names import matches
from wanconv.types.packing import Packing
from wanconv.types.tensors import Container, Part


def steps_of(model: Model, recipe: Recipe, layout: Layout, overflowing: frozenset[str]) -> dict[str, Step]:
    """Returns canonical name -> step for every tensor of the model; raises Refused for those that no format takes."""
    unread: dict[str, list[str]] = {}  # reason -> tensors
    containers = {name: _container(component, layout) for name, component in model.components.items()}
    dims = tuple((name, tuple(component.dims.items())) for name, component in model.components.items())
    decided = _decided(recipe, model.family, dims)
    overflowing = _with_companions(model, layout, overflowing)
    steps: dict[str, Step] = {}
    problems: list[str] = []
    scales = [_scale(rule, layout) for rule in recipe.rules]
    overrides = layout.overrides_for(model.family)
    for name, tensor in model.tensors.items():
        index = decided[name]
        rule = recipe.rules[index]
        chosen, scale, fallback, reason = rule.format, scales[index], rule.fallback, ""
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
            "choose another `recipe`",
            [some(names) for names in unread.values()],
        )
    return {name: _as_before(step, model.components[name.partition("/")[0]].part) for name, step in steps.items()}


@lru_cache(maxsize=1)  # inspect asks for every client
def _decided(
    recipe: Recipe, family: Family, dims: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
) -> Mapping[str, int]:
    """Returns canonical name -> index of the rule that decides it."""
    return recipes.assign(recipe, family.name, vocabulary(family, {name: dict(sizes) for name, sizes in dims}))


def _scale(rule: Rule, layout: Layout) -> str:
    """Returns what a rule's scales cover in a layout: `auto` is the finest that the client reads of the format."""
    packing = layout.packing(rule.format, rule.scale)
    return packing.scale if packing and rule.scale == "auto" else rule.scale


def _container(component: Component, layout: Layout) -> Container:
    place = layout.place(component.name, component.architecture.name)
    return "safetensors" if place is None else place.container  # without a place, it is refused because of that


def _kept_scale(packing: Packing | None, layout: Layout) -> str:
    """Returns what the scales of a kept tensor cover in a layout: the same, or each row instead of all."""
    if packing is None:
        return "none"
    if packing.scale == "tensor" and layout.packing(packing.format, "tensor") is None:
        return "row"
    return packing.scale


def _packed(step: Step, rule: Rule, scale: str, layout: Layout, unread: dict[str, list[str]]) -> Step:
    """Returns the step with the layout's packing; if it has none, or none for this component, notes why."""
    packing = layout.packing(step.format, scale)
    if packing is None:
        what = "scales" if scale == "auto" else f"a scale of each {scale}"
        why = f"{layout.name} does not read {step.format} with {what}: {layout.unscaled}"
        unread.setdefault(why, []).append(step.tensor.name)
    elif step.tensor.name.partition("/")[0] not in layout.scaled:
        why = f"{layout.name} reads scales in the weights of {', '.join(layout.scaled)} alone"
        unread.setdefault(why, []).append(step.tensor.name)
    return replace(step, packing=packing, rounding=rule.rounding)


def _as_before(step: Step, part: Part) -> Step:
    """Returns the step with the source's facts about how to multiply, if payload and scales are the source's."""
    if step.packing is None or not step.carried:
        return step
    module, _ = leaf_of(step.tensor.pieces[0].ref.name)
    return replace(step, packing=multiplied_as(step.packing, module, part))


def _together(steps: Mapping[str, Step], rule: Together, unread: dict[str, list[str]]) -> dict[str, Step]:
    """Returns the steps with those that follow stored as those that lead; notes it if the rule forbids that."""
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
        for target in targets(
            component.architecture, layout.scheme_of(component.name, component.architecture.name), component.dims
        )
    )
    return overflowing.union(*(names for names in together if names & overflowing))


def _demands(override: Override, tensor: ModelTensor, chosen: str) -> bool:
    dtype = FORMATS[chosen].stored(tensor.dtype)
    if dtype in override.allowed or not override.is_about(tensor):
        return False
    instead = FORMATS[override.instead]
    if chosen == "keep" and (not override.kept or instead.refuses(tensor.numbers, tensor.role.kind, tensor.shape)):
        return False
    exact = DTYPES[dtype].holds(DTYPES[tensor.numbers])
    return not (exact and override.unless_exact)
