"""The role of each denoiser: dense, or the expert that folder, file name, header, config or the caller says.

Two Wan 2.2 experts have the same names and shapes, so their tensors do not show which is which. Those of T2V and VACE
have the names and shapes of a dense denoiser, too. All witnesses are heard and weighed by roles.py. A contradiction is
refused; if the role stays open, the user is asked.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wanconv.errors import InputError, UsageError, argument
from wanconv.models.configs import read_json
from wanconv.models.match import Claim, Match
from wanconv.models.releases import FAMILIES
from wanconv.models.roles import FIELDS, Expert, Said, Weight, said, shown, twin_of
from wanconv.types.architecture import Architecture
from wanconv.types.model import Model
from wanconv.types.tensors import Checkpoint, Part

# diffusers: `transformer` is the high-noise expert of two, or a dense denoiser
_FOLDERS: Mapping[str, Expert] = {"transformer_2": "low"}
_ASK = 'say `expert="high"` or `expert="low"`'


@dataclass(frozen=True, slots=True)
class Witness:
    """What one source of evidence says; `what` names it: `file name x_HIGH_fp16.safetensors`."""

    what: str
    said: Said


@dataclass(frozen=True, slots=True)
class Heard:
    """The result of all witnesses: the expert and its evidence, or None with what is open or contradictory."""

    expert: Expert | None = None
    evidence: str = ""
    contradiction: tuple[str, ...] = ()
    open: str = ""


def name_denoisers(checkpoint: Checkpoint, matched: Sequence[tuple[Part, Match]], expert: Expert | None) -> list[Claim]:
    """Returns each denoiser with its component: `dit`, or the expert that the evidence shows."""
    witnesses = {part.path: _witnesses(checkpoint, part, fit, matched) for part, fit in matched}
    if expert is not None:
        return [_role_given(checkpoint, matched, witnesses, expert)]
    claims = []
    for part, fit in matched:
        heard = _role(witnesses[part.path], fit) if _has_experts(fit.architecture) else Heard()
        if heard.contradiction:
            raise InputError(
                f"{part.path}: the evidence for its expert contradicts itself",
                "rename the file or its folder" + (f", or {_ASK}" if len(matched) == 1 else ""),
                heard.contradiction,
            )
        if heard.expert is not None:
            claims.append(Claim(f"expert.{heard.expert}", part, fit, heard.evidence))
        elif _is_dense(fit.architecture) and not heard.open:
            claims.append(Claim("dit", part, fit))
        else:
            raise _asked(part, fit, matched, heard)
    return claims


def _asked(part: Part, fit: Match, matched: Sequence[tuple[Part, Match]], heard: Heard) -> InputError | UsageError:
    why = heard.open or "neither folder nor file name says which"
    kind = "may be one of two experts" if _is_dense(fit.architecture) else "is one of two experts"
    if len(matched) == 1:
        dense = "; a dense denoiser needs another name" if _is_dense(fit.architecture) else ""
        return UsageError(f"{part.path} {kind}, and {why}", _ASK + dense)
    return InputError(
        f"{part.path} {kind}, and {why}",
        "put the experts into high_noise_model and low_noise_model",
        [other.path for other, _ in matched],
    )


def _role_given(
    checkpoint: Checkpoint,
    matched: Sequence[tuple[Part, Match]],
    witnesses: Mapping[str, Sequence[Witness]],
    expert: Expert,
) -> Claim:
    """Returns the only denoiser in the role that the caller gives it."""
    if len(matched) != 1 or not _has_experts(matched[0][1].architecture):
        found = ", ".join(f"{part.path} ({fit.architecture.name})" for part, fit in matched) or "no denoiser"
        raise UsageError(
            f"{argument('expert', expert)} names the role of a lone Wan 2.2 expert, "
            f"but {checkpoint.root} holds {found}",
            "leave `expert` out",
        )
    part, fit = matched[0]
    heard = hear(witnesses[part.path])
    if heard.contradiction:
        against = [witness.what for witness in witnesses[part.path] if witness.said.clear not in (None, expert)]
        return Claim(f"expert.{expert}", part, fit, f"{argument('expert', expert)}, against the {against[0]}")
    if heard.expert not in (None, expert):
        raise UsageError(
            f"{argument('expert', expert)} contradicts the {heard.evidence}, which says {heard.expert}",
            f"say {argument('expert', heard.expert)}, or rename the file",
        )
    return Claim(f"expert.{expert}", part, fit, argument("expert", expert))


def _role(witnesses: Sequence[Witness], fit: Match) -> Heard:
    """Returns what a denoiser's witnesses say, with the doubts that a network of the same shapes causes."""
    heard = hear(witnesses)
    if heard.contradiction or not _is_dense(fit.architecture):
        return heard
    everything = [witness.said for witness in witnesses]
    of_a_dense_size = _is_of_a_dense_size(fit)
    of_a_pair = any(each.of_a_pair for each in everything) and not of_a_dense_size
    of_no_pair = not of_a_pair and (of_a_dense_size or any(each.of_no_pair for each in everything))
    if heard.expert is not None:
        weight = max(each.weights.get(heard.expert, 0) for each in everything)
        return Heard() if of_no_pair and weight < Weight.NOISE else heard
    a14b = next((witness.what for witness in witnesses if witness.said.a14b), "")
    if of_a_pair and a14b and not heard.open:
        return Heard(open=f"the {a14b} says A14B, and not which of the two")
    both = any(len(each.weights) > 1 for each in everything)
    return heard if of_a_pair or (both and not of_no_pair) else Heard()


def hear(witnesses: Sequence[Witness]) -> Heard:
    """Returns the expert that witnesses name together; an open word outweighs a lone high or low elsewhere."""
    clear = [(witness, expert) for witness in witnesses if (expert := witness.said.clear) is not None]
    if len({expert for _, expert in clear}) > 1:
        return Heard(contradiction=tuple(f"{witness.what} says {expert}" for witness, expert in clear))
    doubts = [doubt for witness in witnesses if (doubt := _doubt(witness))]
    if clear:
        best, expert = max(clear, key=lambda one: one[0].said.weights[one[1]])
        if not doubts or best.said.weights[expert] == Weight.NOISE:
            return Heard(expert, best.what)
    return Heard(open=doubts[0] if doubts else "")


def _doubt(witness: Witness) -> str:
    """Returns why a witness that speaks of experts names none; empty if it names one or does not speak of them."""
    words = list(witness.said.words.values())
    if not words or witness.said.clear is not None:
        return ""
    if len(words) > 1:
        return f"the {witness.what} speaks of both"
    return f"'{words[0]}' in the {witness.what} need not mean an expert"


def witnesses_of(file_names: Sequence[str], folder: str, fields: Mapping[str, object], where: str) -> list[Witness]:
    """Returns what file names, the folder around them and the fields of a header or config (`where`) say.

    A folder's name may describe all of its files: it counts only if it names one expert.
    """
    found = []
    about = said(folder)
    if about.clear is not None or not about.weights:
        found.append(Witness(f"folder name {folder}", about))
    found += [Witness(f"file name {name}", said(name)) for name in dict.fromkeys(file_names)]
    for key in FIELDS:
        if isinstance(value := fields.get(key), str):
            found.append(Witness(f"{where}'s {key} {shown(value)}", _certain(said(value))))
    return found


def _certain(stated: Said) -> Said:
    """Returns the role that a field naming the file's own kind says; single words count in it."""
    heavier = {expert: Weight.NOISE if weight > Weight.OPEN else weight for expert, weight in stated.weights.items()}
    return replace(stated, weights=heavier)


def _witnesses(checkpoint: Checkpoint, part: Part, fit: Match, matched: Sequence[tuple[Part, Match]]) -> list[Witness]:
    around = Counter(other.folder for other, _ in matched)
    folder = (checkpoint.root.absolute() / part.folder).name
    files = [os.path.basename(name) for name in (part.path, *part.files)]
    found = list(_by_diffusers(checkpoint, part, fit, set(around)))
    shared = around[part.folder] > 1  # the name of a folder with both experts names neither
    found += witnesses_of(files, "" if shared else folder, part.metadata, "header")
    config = read_json(checkpoint, os.path.join(part.folder, "config.json")) or {}
    found += witnesses_of((), "", config, "config")
    came_from = config.get("_name_or_path")
    if isinstance(came_from, str):
        name = os.path.basename(came_from.rstrip("/"))
        found.append(Witness(f"config's _name_or_path {shown(name)}", said(name)))
    return found + [pair for other, _ in matched if (pair := twin(files[0], os.path.basename(other.path))) is not None]


def _by_diffusers(checkpoint: Checkpoint, part: Part, fit: Match, folders: set[str]) -> Iterator[Witness]:
    folder = (checkpoint.root.absolute() / part.folder).name
    if folder in _FOLDERS:
        yield Witness(f"folder name {folder}", _names(_FOLDERS[folder], folder))
    if folder == "transformer" and fit.scheme == "hub":
        if os.path.join(os.path.dirname(part.folder), "transformer_2") in folders:
            yield Witness("folder name transformer, next to transformer_2", _names("high", folder))
        elif (ratio := _boundary_ratio(checkpoint, part)) is not None:
            what = f"folder name transformer, boundary_ratio {shown(str(ratio))} in model_index.json"
            yield Witness(what, _names("high", folder))


def twin(name: str, other: str) -> Witness | None:
    """Returns the role that another denoiser's name makes certain: two names that differ only there are a pair."""
    ours, theirs = said(name), said(other)
    if twin_of(name) != twin_of(other) or len(ours.weights) != 1 or len(theirs.weights) != 1:
        return None
    (expert,), (opposite,) = ours.weights, theirs.weights
    return None if expert == opposite else Witness(f"file name {name}, next to {other}", _names(expert, name))


def _names(expert: Expert, words: str) -> Said:
    return Said({expert: Weight.NOISE}, {expert: words}, of_a_pair=True)


def expert_unless_dense(model: Model) -> str | None:
    """Returns the family of which a lone denoiser, taken as dense, may also be an expert; None if its size,
    its company or model_index.json shows that it is not one."""
    if list(model.components) != ["dit"]:
        return None
    (dit,) = model.components.values()
    index = os.path.join(os.path.dirname(dit.part.folder), "model_index.json")
    if index in model.checkpoint.sidecars:
        return None
    for family in FAMILIES:
        sizes = [release.dims for release in family.releases]
        if family.components.get("expert.high") == dit.architecture and (
            model.release is None or model.release.dims in sizes
        ):
            return family.name
    return None


def expert_named(name: str) -> Expert | None:
    """Returns the expert that a name speaks of; None if it speaks of none, of both, or may mean something else."""
    return said(name).clear


def _boundary_ratio(checkpoint: Checkpoint, part: Part) -> object:
    index = read_json(checkpoint, os.path.join(os.path.dirname(part.folder), "model_index.json"))
    return None if index is None else index.get("boundary_ratio")


def _has_experts(architecture: Architecture) -> bool:
    return any(family.components.get("expert.high") == architecture for family in FAMILIES)


def _is_dense(architecture: Architecture) -> bool:
    return any(family.components.get("dit") == architecture for family in FAMILIES)


def _is_of_a_dense_size(fit: Match) -> bool:
    """True for the size of a release without experts, such as 1.3B."""
    of_its_size = {
        name
        for family in FAMILIES
        for name in ("dit", "expert.high")
        for release in family.releases
        if family.components.get(name) == fit.architecture
        and all(release.dims[key] == size for key, size in fit.dims.items())
    }
    return of_its_size == {"dit"}
