"""Which denoiser is which: a dense one, or the expert that a folder, a file name, model_index.json or the caller says.

Two Wan 2.2 experts have the same names and shapes, so nothing in their tensors tells them apart.
"""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from wanconv.errors import InputError, UsageError
from wanconv.families.configs import read_json
from wanconv.families.match import Claim, Fit
from wanconv.families.releases import FAMILIES
from wanconv.tensors import Architecture, Checkpoint, Model, Part

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


def name_denoisers(checkpoint: Checkpoint, matched: Sequence[tuple[Part, Fit]], expert: Expert | None) -> list[Claim]:
    """Returns each denoiser with its component: `dit`, or the expert that the evidence says."""
    if expert is not None:
        return [_told(checkpoint, matched, expert)]
    folders = {part.folder for part, _ in matched}
    claims = []
    for part, fit in matched:
        seen = _evidence(checkpoint, part, fit, folders) if _has_experts(fit.architecture) else None
        if seen is not None:
            claims.append(Claim(f"expert.{seen[0]}", part, fit, seen[1]))
        elif _is_dense(fit.architecture):
            claims.append(Claim("dit", part, fit))
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


def _told(checkpoint: Checkpoint, matched: Sequence[tuple[Part, Fit]], expert: Expert) -> Claim:
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
    return Claim(f"expert.{expert}", part, fit, f"--expert {expert}")


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


def expert_unless_dense(model: Model) -> str | None:
    """Returns the family that a lone denoiser, taken for a dense one, may as well be an expert of; None where its size,
    its company or model_index.json tells that it is none."""
    if list(model.components) != ["dit"]:
        return None
    (dit,) = model.components.values()
    index = os.path.join(os.path.dirname(dit.part.folder), "model_index.json")
    if index in model.checkpoint.sidecars:
        return None
    for family in FAMILIES:
        sizes = [release.dims for release in family.releases]
        if family.components.get("expert.high") is dit.architecture and (
            model.release is None or model.release.dims in sizes
        ):
            return family.name
    return None


def experts_named(file_name: str) -> list[Expert]:
    """Returns the experts that a file's name speaks of: one, none, or both."""
    return sorted({expert for pattern, expert in _EXPERT_FILES if fnmatchcase(file_name.lower(), pattern)})


def _boundary_ratio(checkpoint: Checkpoint, part: Part) -> object:
    index = read_json(checkpoint, os.path.join(os.path.dirname(part.folder), "model_index.json"))
    return None if index is None else index.get("boundary_ratio")


def _has_experts(architecture: Architecture) -> bool:
    return any(family.components.get("expert.high") is architecture for family in FAMILIES)


def _is_dense(architecture: Architecture) -> bool:
    return any(family.components.get("dit") is architecture for family in FAMILIES)
