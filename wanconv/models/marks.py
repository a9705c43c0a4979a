"""What a denoiser's files say about its network, if another network has the same tensors.

ComfyUI recognises these networks by the header's `config`: JSON whose object `transformer` overrides what it found in
the tensors (comfy/model_detection.py; ComfyUI-GGUF passes GGUF's field of that name, loader.py). diffusers recognises
them by the class in config.json.
"""

import json
import re
from collections.abc import Iterator, Mapping

from wanconv.errors import InputError
from wanconv.models.match import Claim
from wanconv.models.names import size_of
from wanconv.models.releases import FAMILIES
from wanconv.types.architecture import Family
from wanconv.types.model import Mark, MarkKind
from wanconv.types.tensors import Part

CONFIG = "config"  # key of a header's metadata
_TRANSFORMER = "transformer"  # the part of that config that ComfyUI reads
_OUTSIDE = ("model_type", "_class_name", "causal_ar")  # keys of network names outside of it
_NAME_LENGTH = 60
_SHOWN = 200  # most characters of a file's own text in a message
_HEAD_DIM = 128

# What ComfyUI calls the networks of a family, besides the family's own word, and the word for all of them
_ALIKE: Mapping[str, tuple[str, ...]] = {"flf2v": ("i2v",), "ti2v": ("t2v", "i2v")}
_ANY = ("wan", "wan2.1", "wan2.2", "cogvideox")
# Values of every released network: a config that repeats them says nothing.
_CONSTANTS: Mapping[str, tuple[object, ...]] = {
    "image_model": ("wan2.1",),
    "patch_size": ([1, 2, 2], 2),
    "window_size": ([-1, -1],),
    "qk_norm": (True, "rms_norm_across_heads"),
    "cross_attn_norm": (True,),
    "eps": (1e-6,),
    "text_len": (512,),
    "rope_max_seq_len": (1024,),
    "attention_head_dim": (_HEAD_DIM,),
    "vace_in_dim": (96,),
    "vace_in_channels": (96,),
    "flf_pos_embed_token_number": (514,),
    "pos_embed_seq_len": (514,),
}
# The marks that ComfyUI is known to read, and the first version that does.
_SINCE: Mapping[str, str] = {
    "flow_rvs": "ComfyUI with pull request 12637",
    "causal_ar": "ComfyUI with pull request 13082",
    "animate2": "ComfyUI of August 2026",
}


def header_config(part: Part) -> tuple[Mapping[str, object], str]:
    """Returns the header's `config`, and why no client can read it; empty if there is none."""
    text = part.metadata.get(CONFIG)
    if text is None:
        return {}, ""
    try:
        config = json.loads(text)
    except ValueError:
        return {}, "is not valid JSON"
    except RecursionError:
        return {}, "is nested too deeply"
    if not isinstance(config, dict):
        return {}, "is not a JSON object"
    if not isinstance(config.get(_TRANSFORMER, {}), dict):
        return {}, f"has a {_TRANSFORMER} that is not a JSON object"
    return config, ""


def mark_of(
    claim: Claim, family: Family, base: str, config: Mapping[str, object] | None, config_path: str
) -> Mark | None:
    """Returns the network that a denoiser says it is, if its tensors show another one; else None.

    `config` is its config.json. Raises InputError if header and config.json say two different things.
    """
    marks = [
        *_marks(_in_header(claim, family), "header", claim.part.path, base),
        *_marks(_in_config(claim, family, config or {}), claim.fit.scheme, config_path, base),
    ]
    if len(marks) > 1:
        raise InputError(
            f"{claim.part.path}: its header and {config_path} say that it is two different networks",
            "remove the one that is wrong",
            [f"{mark.where}: {quoted(mark)}" for mark in marks],
        )
    return marks[0] if marks else None


def quoted(mark: Mark | None) -> str:
    """Returns a file's own value as JSON of bounded length."""
    if mark is None:
        return "nothing"
    text = ", ".join(f"{json.dumps(key)}: {value}" for key, value in mark.said)
    return "{" + (text if len(text) <= _SHOWN else text[:_SHOWN] + " …") + "}"


def read_since(mark: Mark) -> str:
    """Returns the first client version that is known to read this mark; empty if none is."""
    return _SINCE.get(mark.name, "") if mark.by == "header" else ""


def agree(high: Mark | None, low: Mark | None, paths: tuple[str, str]) -> None:
    """Raises InputError if two experts say that they are different networks."""
    said = [None if mark is None else (mark.by, mark.said) for mark in (high, low)]
    if said[0] != said[1]:
        raise InputError(
            f"{paths[0]} and {paths[1]} say that they are two different networks",
            "take both experts from one release",
            [f"{path}: {quoted(mark)}" for path, mark in zip(paths, (high, low), strict=True)],
        )


def is_other_type(model_type: object, family: Family) -> bool:
    """True if an official config names a network outside all families; one of another family is a contradiction."""
    return isinstance(model_type, str) and model_type not in _known_types() and model_type != family.model_type


def _marks(said: Mapping[str, object], by: MarkKind, path: str, base: str) -> Iterator[Mark]:
    if said:
        try:
            values = tuple((key, json.dumps(value, sort_keys=True)) for key, value in sorted(said.items()))
        except RecursionError:
            message = f"{path}: what it says of its network is nested too deeply"
            raise InputError(message, "get the file again from who made it") from None
        yield Mark(_name(said), by, path, values, base)


def _in_header(claim: Claim, family: Family) -> dict[str, object]:
    """Returns the fields of the header's config that name another network."""
    config, _ = header_config(claim.part)
    inside = config.get(_TRANSFORMER, {})
    assert isinstance(inside, dict)
    outside = {key: config[key] for key in _OUTSIDE if key in config and config[key] not in _ANY}
    return {key: value for key, value in {**outside, **inside}.items() if not _agrees(key, value, claim, family)}


def _in_config(claim: Claim, family: Family, config: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields of config.json that name another network."""
    said: dict[str, object] = {}
    if isinstance(config.get("_class_name"), str) and not _agrees("_class_name", config["_class_name"], claim, family):
        said["_class_name"] = config["_class_name"]
    if claim.fit.scheme == "official" and is_other_type(config.get("model_type"), family):
        said["model_type"] = config["model_type"]
    return said


def _agrees(key: str, value: object, claim: Claim, family: Family) -> bool:
    """True if a field agrees with the tensors, or says nothing."""
    if value is None or value is False or (key.startswith("_") and key != "_class_name"):
        return True
    architecture, dims = claim.fit.architecture, claim.fit.dims
    if key == "_class_name":
        return value in architecture.classes
    if key == "model_type":
        return value in (family.model_type, *_ALIKE.get(family.model_type, ()))
    if key in ("num_heads", "num_attention_heads"):
        return type(value) is int and value == dims.get("heads", dims["d"] // _HEAD_DIM)
    if key in ("added_kv_proj_dim", "image_dim"):
        return "image" in dims and value == dims["d" if key == "added_kv_proj_dim" else "image"]
    if key == "vace_layers":
        return dims.get("m") == (len(value) if isinstance(value, list) else value)
    stated = {name: size for table in architecture.config.values() for name, size in table}
    if key in stated:
        try:
            return type(value) is int and value == size_of(stated[key], dims)
        except KeyError:
            return False
    return value in _CONSTANTS.get(key, ())


def _name(said: Mapping[str, object]) -> str:
    """Returns a network's own name, in letters of a file name: its model type or class, else its header's marks."""
    own = next((said[key] for key in ("model_type", "_class_name") if isinstance(said.get(key), str)), None)
    words = [key if value is True else f"{key}-{value}" for key, value in sorted(said.items())]
    name = re.sub(r"[^A-Za-z0-9._+]+", "-", str(own) if own is not None else "+".join(words))
    return name[:_NAME_LENGTH].strip("-._+") or "unnamed"


def _known_types() -> frozenset[str]:
    return frozenset(family.model_type for family in FAMILIES)
