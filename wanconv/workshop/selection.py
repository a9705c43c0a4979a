"""Which files of a repository are wanted: globs, names of components, and what nobody here can use.

What a component is stored as comes from the places of the layouts; the suffixes of other frameworks stand below.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from wanconv.checkpoint.open import INDEX, WEIGHTS
from wanconv.errors import UsageError
from wanconv.exclusion import excluded_by
from wanconv.families import DENOISERS, FAMILIES
from wanconv.hubs import RemoteFile
from wanconv.layouts import LAYOUTS
from wanconv.naming import suggestion

# fmt: off
_OTHERS = {  # suffix → whose copy of the weights it is
    ".msgpack":   "Flax's copy",
    ".h5":        "TensorFlow's copy",
    ".ot":        "Rust's copy",
    ".onnx":      "ONNX's copy",
    ".onnx_data": "ONNX's copy",
    ".gguf":      "llama.cpp's copy",
    ".mlmodel":   "Core ML's copy",
    ".tflite":    "TensorFlow Lite's copy",
}
_EXAMPLES = (".mp4", ".webm", ".mov", ".gif", ".jpg", ".jpeg", ".png", ".webp", ".wav", ".mp3", ".pdf")
_EXAMPLE_FOLDERS = ("assets", "examples", "example", "images", "videos")
_TWICE = {  # pickled weights, by the beginning of their names → the safetensors that hold the same
    "pytorch_model":           "model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
}
_SIDECARS = {
    "tokenizer":       "text_encoder",
    "t5_tokenizer":    "text_encoder",
    "clip_tokenizer":  "image_encoder",
    "audio_processor": "audio_encoder",
}
# fmt: on
_SHARD = r"(-\d{5}-of-\d{5})?"
_WEIGHTS = (*WEIGHTS, f".safetensors{INDEX}")
_GROUPS = {"experts": DENOISERS, "denoiser": DENOISERS}
COMPONENTS = tuple(dict.fromkeys(name for family in FAMILIES for name in family.components))


@dataclass(frozen=True, slots=True)
class Wish:
    """`only` are components (or `experts`); with `include`, its globs decide, and not what is of use to wanconv."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


def select(files: Sequence[RemoteFile], wish: Wish) -> tuple[list[RemoteFile], Mapping[str, str]]:
    """Returns the files that are wanted, and why each of the others is not; raises UsageError for an empty wish."""
    only = _components(wish.only)
    paths = {file.path for file in files}
    skipped = {file.path: why for file in files if (why := _why_not(file.path, paths, wish, only))}
    wanted = [file for file in files if file.path not in skipped]
    owned = {name for file in wanted for name in owners(file.path)}
    if absent := [word for word in wish.only if not owned & _components((word,))]:
        known = sorted({name for path in paths for name in owners(path)})
        hint = f"choose among {', '.join(known)}" if known else "leave --only out"
        globs = wish.include or wish.exclude
        left = " that --include and --exclude leave" if globs else ""
        hint = "check --include and --exclude" if globs else hint
        raise UsageError(f"the repository has no file of {', '.join(absent)}{left}", hint)
    if not wanted:
        raise UsageError("no file of the repository is wanted", "check --include and --exclude")
    return wanted, skipped


def owners(path: str) -> set[str]:
    """Returns the components that a file may belong to, by every layout; none for what all share."""
    folder, name = os.path.split(path)
    found = set()
    for layout in LAYOUTS.values():
        for slot, place in layout.places.items():
            weights = re.fullmatch(rf"{re.escape(place.stem)}{_SHARD}\.[a-z.]+", name)
            if folder == place.folder and (folder or weights):
                found.add(slot.partition(":")[0])
        for group, home in layout.folders.items():
            if folder == home or folder.startswith(f"{home}/"):
                found.add(_SIDECARS[group])
    return found


def _components(words: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for word in words:
        if word not in COMPONENTS and word not in _GROUPS:
            raise UsageError(f"there is no component {word!r}", suggestion(word, (*COMPONENTS, *_GROUPS)))
        found |= set(_GROUPS.get(word, (word,)))
    return found


def _why_not(path: str, paths: set[str], wish: Wish, only: set[str]) -> str:
    """Returns why a file is not wanted; empty where it is."""
    if excluded_by(path, wish.exclude) is not None:
        return "--exclude"
    if wish.include and not any(fnmatchcase(path, glob) for glob in wish.include):
        return "not in --include"
    if not wish.include and (why := _of_no_use(path, paths)):
        return why
    mine = owners(path)
    if only and not mine & only and (mine or path.endswith(_WEIGHTS)):
        return f"belongs to {', '.join(sorted(mine))}" if mine else "weights of no known component"
    return ""


def _of_no_use(path: str, paths: set[str]) -> str:
    folder, name = os.path.split(path)
    for suffix, whose in _OTHERS.items():
        if name.endswith(suffix):
            return whose
    beside = [os.path.basename(other) for other in paths if os.path.dirname(other) == folder]
    for pickled, better in _TWICE.items():
        is_same = re.compile(rf"{better}{_SHARD}\.safetensors").fullmatch
        if re.fullmatch(rf"{pickled}{_SHARD}\.bin(\.index\.json)?", name) and any(map(is_same, beside)):
            return "the same stands beside it as safetensors"
    if name.endswith(_EXAMPLES) or folder.split("/")[0] in _EXAMPLE_FOLDERS:
        return "an example"
    return ""
