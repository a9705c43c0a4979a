"""From a checkpoint to a model: what each part is, which family they make, and which expert is which.

Two Wan 2.2 experts have the same names and shapes, so only a folder, a file name, model_index.json or the caller tells
them apart; what told is kept as evidence.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from wanconv.errors import InputError, Unrecognised, UsageError
from wanconv.families.match import Fit, fits, model_tensors
from wanconv.families.names import fingerprint, size_of
from wanconv.families.packings import Packed, unpack
from wanconv.families.releases import ARCHITECTURES, DENOISERS, FAMILIES
from wanconv.tensors import DTYPES, Architecture, Checkpoint, Component, Family, Model, Part, Release

Expert = Literal["high", "low"]

# fmt: off
_EXPERT_FOLDERS: Mapping[str, Expert] = {
    "high_noise_model": "high",  # official
    "low_noise_model":  "low",
    "transformer_2":    "low",   # diffusers; its `transformer` is the high-noise expert of two, or a dense denoiser
}

# file names in lower case, as Comfy-Org, Kijai and LightX2V publish lone experts
_EXPERT_FILES: tuple[tuple[str, Expert], ...] = (
    ("*high_noise*", "high"),  ("*low_noise*", "low"),
    ("*high-noise*", "high"),  ("*low-noise*", "low"),
    ("*highnoise*",  "high"),  ("*lownoise*",  "low"),
    ("*a14b?high*",  "high"),  ("*a14b?low*",  "low"),
)
# fmt: on

_SHOWN = 10
_CONFIG_HINT = "download it again; without a config.json, sizes come from the weights"


@dataclass(frozen=True, slots=True)
class _Claim:
    """A part, what it fits, and the component it claims to be."""

    component: str
    part: Part
    fit: Fit
    evidence: str = ""

    @property
    def packed(self) -> Mapping[str, Packed]:
        return unpack(self.part.tensors)[1]


def identify(checkpoint: Checkpoint, expert: Expert | None = None) -> Model:
    """Returns the model that a checkpoint holds; `expert` names the role of its only denoiser.

    Raises Unrecognised where a part fits no architecture, InputError where parts or their configs contradict each
    other, UsageError where the expert's role is missing or cannot be given.
    """
    if not checkpoint.parts:
        raise InputError(f"{checkpoint.root} holds no weights", "give a folder with .safetensors, .pth or .gguf files")
    matched = _match(checkpoint.parts)
    denoisers = _name_denoisers(checkpoint, [pair for pair in matched if _is_denoiser(pair[1])], expert)
    family = _family(checkpoint, denoisers, [fit.architecture for _, fit in matched])
    claims = denoisers + [
        _Claim(_component_of(family, part, fit), part, fit) for part, fit in matched if not _is_denoiser(fit)
    ]
    _refuse_doubles(claims)
    components = {claim.component: _component(checkpoint, family, claim, claims) for claim in claims}
    experts = [components[name] for name in DENOISERS if name in components]
    _compare_experts(experts)
    return Model(
        checkpoint=checkpoint,
        family=family,
        components={name: components[name] for name in family.components if name in components},
        release=_release(family, experts),
        evidence={claim.component: claim.evidence for claim in claims if claim.evidence},
    )


def _match(parts: Sequence[Part]) -> list[tuple[Part, Fit]]:
    """Returns what each part is; raises one Unrecognised for all that are nothing known."""
    matched: list[tuple[Part, Fit]] = []
    unknown: list[Unrecognised] = []
    for part in parts:
        weights, packed = unpack(part.tensors)
        found = fits(weights)
        if found and not found[0].differences:
            _refuse_odd_scales(part, found[0], packed)
        if found and not found[0].differences:
            matched.append((part, found[0]))
        else:
            unknown.append(_unrecognised(part, found))
    if not unknown:
        return matched
    first = unknown[0]
    message = first.message
    if len(unknown) > 1:
        message += f"; {len(unknown)} files fit none"
    others = [line for error in unknown[1:] for line in (error.message, *error.details)]
    raise Unrecognised(message, first.hint, (*first.details, *others))


def _refuse_odd_scales(part: Part, fit: Fit, packed: Mapping[str, Packed]) -> None:
    """Raises Unrecognised for scales of what is no 2-D weight of its own: no client has or could decode them."""
    odd = [
        ref.name
        for (role, _), (ref, spelling) in fit.found.items()
        if (ref.name in packed or DTYPES[ref.dtype].block > 1)
        and (role.kind != "linear" or spelling.of > 1 or spelling.transposed)
    ]
    if odd:
        raise Unrecognised(
            f"{part.path} holds scales for {len(odd)} tensors that are no weights of linear layers",
            "get the file again from who made it",
            _first(odd),
        )


def _unrecognised(part: Part, found: Sequence[Fit]) -> Unrecognised:
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    if not found:
        names = list(part.tensors)
        details = [f"unknown: {name}" for name in names[:_SHOWN]]
        message = f"{part.path}: none of its {len(names)} tensors is in a network that wanconv knows"
        return Unrecognised(message, f"give one of {known}", details)
    fit = found[0]
    message = (
        f"{part.path} fits no known network; the nearest is {fit.architecture.name} ({fit.scheme} names): "
        f"{len(fit.missing)} missing, {len(fit.extra)} unknown, {len(fit.wrong)} wrongly shaped"
    )
    details = [
        *_first(
            [f"shape of {bad.name}: found {_shape(bad.found)}, expected {_shape(bad.expected)}" for bad in fit.wrong]
        ),
        *_first([f"missing: {name}" for name in fit.missing]),
        *_first([f"unknown: {name}" for name in fit.extra]),
    ]
    return Unrecognised(message, f"download it again if it should be one; wanconv knows {known}", details)


def _first(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"… and {more} more"] if more > 0 else list(lines)


def _shape(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _is_denoiser(fit: Fit) -> bool:
    return any(family.components.get(name) is fit.architecture for family in FAMILIES for name in DENOISERS)


def _has_experts(architecture: Architecture) -> bool:
    return any(family.components.get("expert.high") is architecture for family in FAMILIES)


def _is_dense(architecture: Architecture) -> bool:
    return any(family.components.get("dit") is architecture for family in FAMILIES)


def _name_denoisers(checkpoint: Checkpoint, matched: Sequence[tuple[Part, Fit]], expert: Expert | None) -> list[_Claim]:
    """Returns each denoiser with its component: `dit`, or the expert that the evidence says."""
    if expert is not None:
        return [_told(checkpoint, matched, expert)]
    folders = {part.folder for part, _ in matched}
    claims = []
    for part, fit in matched:
        seen = _evidence(checkpoint, part, fit, folders) if _has_experts(fit.architecture) else None
        if seen is not None:
            claims.append(_Claim(f"expert.{seen[0]}", part, fit, seen[1]))
        elif _is_dense(fit.architecture):
            claims.append(_Claim("dit", part, fit))
        elif len(matched) == 1:
            raise UsageError(
                f"{part.path} is one of two experts, and neither folder nor file name says which",
                "say --expert high or --expert low",
            )
        else:
            raise InputError(
                f"{part.path} is one of two experts, and neither folder nor file name says which",
                "put the experts into high_noise_model and low_noise_model",
                [other.path for other, _ in matched],
            )
    return claims


def _told(checkpoint: Checkpoint, matched: Sequence[tuple[Part, Fit]], expert: Expert) -> _Claim:
    """Returns the only denoiser in the role that the caller gives it."""
    if len(matched) != 1 or not _has_experts(matched[0][1].architecture):
        found = ", ".join(f"{part.path} ({fit.architecture.name})" for part, fit in matched) or "no denoiser"
        raise UsageError(
            f"--expert {expert} names the role of a lone Wan 2.2 expert, but {checkpoint.root} holds {found}",
            "leave --expert out",
        )
    part, fit = matched[0]
    seen = _evidence(checkpoint, part, fit, {part.folder})
    if seen is not None and seen[0] != expert:
        raise UsageError(
            f"--expert {expert} contradicts the {seen[1]} of {part.path}, which says {seen[0]}",
            f"say --expert {seen[0]}, or rename the file",
        )
    return _Claim(f"expert.{expert}", part, fit, f"--expert {expert}")


def _evidence(checkpoint: Checkpoint, part: Part, fit: Fit, folders: set[str]) -> tuple[Expert, str] | None:
    """Returns the expert and what told it; None where nothing does."""
    folder = (checkpoint.root.absolute() / part.folder).name
    found: list[tuple[Expert, str]] = []
    if folder in _EXPERT_FOLDERS:
        found.append((_EXPERT_FOLDERS[folder], f"folder name {folder}"))
    if folder == "transformer" and fit.scheme == "hub":
        if os.path.join(os.path.dirname(part.folder), "transformer_2") in folders:
            found.append(("high", "folder name transformer, beside transformer_2"))
        elif (ratio := _boundary_ratio(checkpoint, part)) is not None:
            found.append(("high", f"folder name transformer, boundary_ratio {ratio} in model_index.json"))
    names = (part.path, *part.files)
    for name in dict.fromkeys(os.path.basename(name) for name in names):
        found += [(expert, f"file name {name}") for expert in experts_named(name)]
    if len({expert for expert, _ in found}) > 1:
        raise InputError(
            f"{part.path}: the evidence for its expert contradicts itself",
            "rename the file or its folder",
            [f"{what} says {expert}" for expert, what in found],
        )
    return found[0] if found else None


def experts_named(file_name: str) -> list[Expert]:
    """Returns the experts that a file's name speaks of: one, none, or both."""
    return sorted({expert for pattern, expert in _EXPERT_FILES if fnmatchcase(file_name.lower(), pattern)})


def _boundary_ratio(checkpoint: Checkpoint, part: Part) -> object:
    index = _read_json(checkpoint, os.path.join(os.path.dirname(part.folder), "model_index.json"))
    return None if index is None else index.get("boundary_ratio")


def _family(checkpoint: Checkpoint, denoisers: Sequence[_Claim], architectures: Sequence[Architecture]) -> Family:
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
        if all(family.components.get(claim.component) is claim.fit.architecture for claim in denoisers)
    ]
    if found:
        return found[0] if len(found) == 1 else _told_apart(found, checkpoint, denoisers[0])
    raise InputError(
        "the denoisers belong to no family together",
        "convert them one by one, or put the experts into high_noise_model and low_noise_model",
        [f"{claim.part.path}: {claim.component}, {claim.fit.architecture.name}" for claim in denoisers],
    )


def _told_apart(families: Sequence[Family], checkpoint: Checkpoint, claim: _Claim) -> Family:
    """Returns which of families with the same networks: by the config, else by a released size, else the last."""
    config = _read_json(checkpoint, os.path.join(claim.part.folder, "config.json")) or {}
    for family in families:
        assert family.told_by is not None, f"{family.name} has the networks of another family"
        key, value = family.told_by
        if config.get(key) == value:
            return family
    return next((family for family in families if _released(family, claim.fit.dims)), families[-1])


def _component_of(family: Family, part: Part, fit: Fit) -> str:
    for name, architecture in family.components.items():
        if architecture is fit.architecture:
            return name
    slots = {name for other in FAMILIES for name, network in other.components.items() if network is fit.architecture}
    slot = min(slots)  # a network other than a denoiser has the same place in every family
    used = family.components.get(slot)
    raise InputError(
        f"{part.path} is {fit.architecture.name}, which {family.name} does not use: "
        + (f"its {slot} is {used.name}" if used else f"it has no {slot}"),
        "remove the file, or give the folder it belongs to",
    )


def _refuse_doubles(claims: Sequence[_Claim]) -> None:
    seen: dict[str, _Claim] = {}
    for claim in claims:
        first = seen.setdefault(claim.component, claim)
        if first is not claim:
            raise InputError(
                f"{first.part.path} and {claim.part.path} are both {claim.component}",
                "remove or exclude one of the two; two experts belong in high_noise_model and low_noise_model",
            )


def _component(checkpoint: Checkpoint, family: Family, claim: _Claim, claims: Sequence[_Claim]) -> Component:
    fit, part = claim.fit, claim.part
    config, path = _config(checkpoint, claim, claims)
    sizes = _check_config(config, path, claim, family) if config is not None else {}
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
    )


def _config(checkpoint: Checkpoint, claim: _Claim, claims: Sequence[_Claim]) -> tuple[Mapping[str, object] | None, str]:
    """Returns the part's config.json and its path; a denoiser's folder has the denoiser's, whatever else lies there."""
    path = os.path.join(claim.part.folder, "config.json")
    if claim.fit.scheme not in claim.fit.architecture.config:
        return None, path
    taken = {other.part.folder for other in claims if other.component in DENOISERS}
    if claim.component not in DENOISERS and claim.part.folder in taken:
        return None, path
    return _read_json(checkpoint, path), path


def _read_json(checkpoint: Checkpoint, path: str) -> Mapping[str, object] | None:
    """Returns a sidecar's JSON object; None where there is no such sidecar."""
    if path not in checkpoint.sidecars:
        return None
    file = checkpoint.root / path
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", "check the permissions and the disk") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}", _CONFIG_HINT) from None
    if not isinstance(value, dict):
        raise InputError(f"{file} holds no JSON object", _CONFIG_HINT)
    return value


def _check_config(config: Mapping[str, object], path: str, claim: _Claim, family: Family) -> dict[str, int]:
    """Returns sizes that only the config states (`heads`); raises where it contradicts the tensors' shapes."""
    fit = claim.fit
    stated: dict[str, int] = {}
    wrong: list[str] = []
    for key, size in fit.architecture.config[fit.scheme]:
        value = _value(config, key)
        if value is None:
            continue
        if isinstance(size, str) and size not in fit.dims:
            if isinstance(value, int):
                stated[size] = value
                continue
            wrong.append(f"{key} is {value!r}, not a whole number")
        elif value != size_of(size, fit.dims):
            wrong.append(f"{key} is {value!r}, but {claim.part.path} has {size_of(size, fit.dims)}")
    heads = stated.get("heads")
    if heads is not None and (heads < 1 or fit.dims["d"] % heads):
        wrong.append(f"{fit.dims['d']} does not divide into {heads} heads")
    model_type = config.get("model_type")
    if claim.component in DENOISERS and fit.scheme == "official" and model_type not in (None, family.model_type):
        wrong.append(f"model_type is {model_type!r}, but {claim.part.path} is {family.name}: {family.model_type!r}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(
            f"{path}: {wrong[0]}{more}",
            "download the config or the weights again: they do not belong together",
            wrong if len(wrong) > 1 else (),
        )
    return stated


def _value(config: Mapping[str, object], key: str) -> object:
    """Returns a config value, or the product of several (`a*b`); None where one is absent or null."""
    values = [config.get(name) for name in key.split("*")]
    if None in values:
        return None
    if len(values) == 1:
        return values[0]
    product = 1
    for value in values:
        if not isinstance(value, int):
            return value
        product *= value
    return product


def _compare_experts(experts: Sequence[Component]) -> None:
    if len(experts) < 2:
        return
    high, low = experts
    for size in high.dims.keys() & low.dims.keys():
        if high.dims[size] != low.dims[size]:
            raise InputError(
                f"{high.part.path} and {low.part.path} are no pair of experts: "
                f"{size} is {high.dims[size]} and {low.dims[size]}",
                "take both experts from one release",
            )


def _release(family: Family, denoisers: Sequence[Component]) -> Release | None:
    """Returns the published size that the denoiser has: same table, same sizes, so the same fingerprint."""
    return _released(family, denoisers[0].dims) if denoisers else None


def _released(family: Family, dims: Mapping[str, int]) -> Release | None:
    for release in family.releases:
        if all(dims.get(size, number) == number for size, number in release.dims.items()):
            return release
    return None
