"""From a checkpoint to a model: what each part is, and which family they form, with the evidence for experts' roles."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wanconv.errors import InputError, Unrecognised
from wanconv.models.configs import read_json, stated_sizes
from wanconv.models.experts import name_denoisers
from wanconv.models.marks import agree, mark_of
from wanconv.models.match import Claim, Match, fits, model_tensors
from wanconv.models.names import fingerprint
from wanconv.models.releases import DENOISERS, FAMILIES
from wanconv.models.roles import Expert
from wanconv.models.unknown import Unknown, first_of, refusal, unknown
from wanconv.quantization.packings import Packed, unpack
from wanconv.types.architecture import Architecture, Family, Release
from wanconv.types.dtypes import DTYPES
from wanconv.types.exclusion import excluding
from wanconv.types.figures import count
from wanconv.types.model import Component, Model
from wanconv.types.tensors import Checkpoint, Part

_ODD = ("tensor that is not a linear layer's weight", "tensors that are not weights of linear layers")


def identify(checkpoint: Checkpoint, expert: Expert | None = None) -> Model:
    """Returns the model that a checkpoint holds; `expert` names the role of its only denoiser.

    Raises Unrecognised if a part fits no architecture, InputError where parts or their configs contradict each
    other, UsageError where the expert's role is missing or cannot be given.
    """
    if not checkpoint.parts:
        raise InputError(f"{checkpoint.root} holds no weights", "give a folder with .safetensors, .pth or .gguf files")
    matched, others = _match(checkpoint.parts)
    checkpoint = replace(checkpoint, parts=tuple(part for part, _ in matched))
    denoisers = name_denoisers(checkpoint, [pair for pair in matched if _is_denoiser(pair[1])], expert)
    family = _family(checkpoint, denoisers, [fit.architecture for _, fit in matched])
    claims = denoisers + [
        Claim(_component_of(family, part, fit), part, fit) for part, fit in matched if not _is_denoiser(fit)
    ]
    _refuse_doubles(claims)
    components = {claim.component: _component(checkpoint, family, claim, claims) for claim in claims}
    experts = [components[name] for name in DENOISERS if name in components]
    _compare_experts(experts)
    return Model(
        checkpoint=checkpoint,
        family=family,
        components={name: components[name] for name in family.components if name in components},
        release=None if any(expert.mark for expert in experts) else _release(family, experts),
        evidence={claim.component: claim.evidence for claim in claims if claim.evidence},
        skipped=tuple((one.part.path, one.what) for one in others),
    )


def _match(parts: Sequence[Part]) -> tuple[list[tuple[Part, Match]], list[Unknown]]:
    """Returns what each part is, and the unknown parts next to a model; without a model, raises one Unrecognised
    for all of them."""
    matched: list[tuple[Part, Match]] = []
    others: list[Unknown] = []
    for part in parts:
        weights, packed = unpack(part)
        found = fits(weights)
        if found and not found[0].differences:
            _refuse_odd_scales(part, found[0], packed)
            matched.append((part, found[0]))
        else:
            others.append(unknown(part, found))
    beside_a_model = any(_is_denoiser(fit) for _, fit in matched)
    wrong = [one for one in others if not (beside_a_model and one.foreign)]
    if wrong:
        raise refusal(wrong, [part for part, _ in matched])
    return matched, others


def _refuse_odd_scales(part: Part, fit: Match, packed: Mapping[str, Packed]) -> None:
    """Raises Unrecognised for scales of a tensor other than a whole 2-D weight: no client can decode them."""
    odd = [
        ref.name
        for (role, _), (ref, spelling) in fit.found.items()
        if (ref.name in packed or DTYPES[ref.dtype].blocked)
        and (role.kind != "linear" or spelling.of > 1 or spelling.transposed)
    ]
    if odd:
        raise Unrecognised(
            f"{part.path} holds scales for {count(len(odd), *_ODD)}",
            "take the file that it was quantized from",
            first_of(odd),
        )


def _is_denoiser(fit: Match) -> bool:
    return any(family.components.get(name) == fit.architecture for family in FAMILIES for name in DENOISERS)


def _family(checkpoint: Checkpoint, denoisers: Sequence[Claim], architectures: Sequence[Architecture]) -> Family:
    """Returns the family that has these denoisers; without one, the first that has all these networks."""
    if not denoisers:
        for family in FAMILIES:
            if all(architecture in family.components.values() for architecture in architectures):
                return family
        raise InputError(
            "no family has all of " + ", ".join(architecture.name for architecture in architectures),
            "convert them one by one",
        )
    found = [
        family
        for family in FAMILIES
        if all(family.components.get(claim.component) == claim.fit.architecture for claim in denoisers)
    ]
    if found:
        return found[0] if len(found) == 1 else _disambiguated(found, checkpoint, denoisers[0])
    raise InputError(
        "the denoisers belong to no family together",
        "convert them one by one, or put the experts into high_noise_model and low_noise_model",
        [f"{claim.part.path}: {claim.component}, {claim.fit.architecture.name}" for claim in denoisers],
    )


def _disambiguated(families: Sequence[Family], checkpoint: Checkpoint, claim: Claim) -> Family:
    """Returns one of several families with the same networks: by the config, else by a released size, else the last."""
    config = read_json(checkpoint, os.path.join(claim.part.folder, "config.json")) or {}
    for family in families:
        assert family.config_key is not None, f"{family.name} has the networks of another family"
        key, value = family.config_key
        if config.get(key) == value:
            return family
    return next((family for family in families if _released(family, claim.fit.dims)), families[-1])


def _component_of(family: Family, part: Part, fit: Match) -> str:
    for name, architecture in family.components.items():
        if architecture == fit.architecture:
            return name
    slots = {name for other in FAMILIES for name, network in other.components.items() if network == fit.architecture}
    slot = min(slots)  # a network other than a denoiser has the same place in every family
    used = family.components.get(slot)
    raise InputError(
        f"{part.path} is {fit.architecture.name}, which {family.name} does not use: "
        + (f"its {slot} is {used.name}" if used else f"it has no {slot}"),
        f"leave it out: {excluding(part.files)}",
    )


def _refuse_doubles(claims: Sequence[Claim]) -> None:
    seen: dict[str, Claim] = {}
    for claim in claims:
        first = seen.setdefault(claim.component, claim)
        if first is not claim:
            raise InputError(
                f"{first.part.path} and {claim.part.path} are both {claim.component}",
                f"leave one of the two out, {excluding(first.part.files)} or {excluding(claim.part.files)}; "
                "two experts belong in high_noise_model and low_noise_model",
            )


def _component(checkpoint: Checkpoint, family: Family, claim: Claim, claims: Sequence[Claim]) -> Component:
    fit, part = claim.fit, claim.part
    config, path = _config(checkpoint, claim, claims)
    sizes = stated_sizes(config, path, claim, family) if config is not None else {}
    base = _released(family, fit.dims) or family
    is_denoiser = claim.component in DENOISERS
    return Component(
        name=claim.component,
        architecture=fit.architecture,
        scheme=fit.scheme,
        dims={**fit.dims, **sizes},
        part=part,
        tensors=model_tensors(fit, claim.component, claim.packed),
        fingerprint=fingerprint(part.tensors),
        config=config,
        tied=tuple((ref, f"{claim.component}/{name}") for ref, name in fit.tied),
        dead=tuple((ref, dead.why) for ref, dead in fit.dead),
        mark=mark_of(claim, family, base.name, config, path) if is_denoiser else None,
    )


def _config(checkpoint: Checkpoint, claim: Claim, claims: Sequence[Claim]) -> tuple[Mapping[str, object] | None, str]:
    """Returns the part's config.json and its path; in a denoiser's folder it is always the denoiser's."""
    path = os.path.join(claim.part.folder, "config.json")
    if claim.fit.scheme not in claim.fit.architecture.config:
        return None, path
    taken = {other.part.folder for other in claims if other.component in DENOISERS}
    if claim.component not in DENOISERS and claim.part.folder in taken:
        return None, path
    return read_json(checkpoint, path), path


def _compare_experts(experts: Sequence[Component]) -> None:
    if len(experts) < 2:
        return
    high, low = experts
    for size in high.dims.keys() & low.dims.keys():
        if high.dims[size] != low.dims[size]:
            raise InputError(
                f"{high.part.path} and {low.part.path} are not a pair of experts: "
                f"{size} is {high.dims[size]} and {low.dims[size]}",
                "take both experts from one release",
            )
    agree(high.mark, low.mark, (high.part.path, low.part.path))


def _release(family: Family, denoisers: Sequence[Component]) -> Release | None:
    """Returns the published size that the denoiser has: same table, same sizes, so the same fingerprint."""
    return _released(family, denoisers[0].dims) if denoisers else None


def _released(family: Family, dims: Mapping[str, int]) -> Release | None:
    for release in family.releases:
        if all(dims.get(size, number) == number for size, number in release.dims.items()):
            return release
    return None
