"""The files of a repository that are wanted: by globs, names of components, and use to wanconv.

The places of the layouts say how a component is stored; the suffixes of other frameworks are listed below.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from wanconv.containers.open import INDEX, WEIGHTS
from wanconv.errors import UsageError
from wanconv.layouts import LAYOUTS
from wanconv.models import DENOISERS, FAMILIES
from wanconv.storage.hubs import RemoteFile
from wanconv.types.exclusion import excluded_by
from wanconv.types.names import suggestion

# fmt: off
_OTHERS = {  # suffix → the framework whose copy of the weights it is
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
_SAFE = {pickled: re.compile(rf"{same}{_SHARD}\.safetensors") for pickled, same in _TWICE.items()}
_PICKLED = {pickled: re.compile(rf"{pickled}{_SHARD}\.bin(\.index\.json)?") for pickled in _TWICE}
_WEIGHTS = (*WEIGHTS, f".safetensors{INDEX}")
_GROUPS = {"experts": DENOISERS, "denoiser": DENOISERS}


def components() -> tuple[str, ...]:
    """Return the names of all families' components."""
    return tuple(dict.fromkeys(name for family in FAMILIES for name in family.components))


@dataclass(frozen=True, slots=True)
class Wish:
    """`only` are components (or `experts`); with `include`, its globs decide, not the use to wanconv."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


def select(files: Sequence[RemoteFile], wish: Wish) -> tuple[list[RemoteFile], Mapping[str, str]]:
    """Returns the wanted files, and why each other one is not wanted; raises UsageError for an empty wish."""
    only = _components(wish.only)
    twice = _held_twice(file.path for file in files)
    skipped = {file.path: why for file in files if (why := _why_not(file.path, twice, wish, only))}
    wanted = [file for file in files if file.path not in skipped]
    owned = {name for file in wanted for name in owners(file.path)}
    if absent := [word for word in wish.only if not owned & _components((word,))]:
        known = sorted({name for file in files for name in owners(file.path)})
        hint = f"choose among {', '.join(known)}" if known else "leave `only` out"
        globs = wish.include or wish.exclude
        left = " that `include` and `exclude` leave" if globs else ""
        hint = "check `include` and `exclude`" if globs else hint
        raise UsageError(f"the repository has no file of {', '.join(absent)}{left}", hint)
    if not wanted:
        raise UsageError("no file of the repository is wanted", "check `include` and `exclude`")
    return wanted, skipped


def owners(path: str) -> set[str]:
    """Returns the components that a file may belong to, in any layout; none for a file shared by all."""
    folder, name = os.path.split(path)
    places = _places()
    found = set(places.folders.get(folder, ()))
    if not folder:
        found |= {component for weights, component in places.at_root if weights.fullmatch(name)}
    for end in (*(match.start() for match in re.finditer("/", folder)), len(folder)):
        found |= places.sidecars.get(folder[:end], set())
    return found


@dataclass(frozen=True, slots=True)
class _Places:
    """Who owns the files of a folder, those below it, or, by name, those outside all folders."""

    folders: Mapping[str, set[str]]
    sidecars: Mapping[str, set[str]]
    at_root: tuple[tuple[re.Pattern[str], str], ...]


@cache
def _places() -> _Places:
    """Returns the places of every layout: thousands of listed files are compared with them, so they are made once."""
    folders, sidecars, at_root = dict[str, set[str]](), dict[str, set[str]](), dict[tuple[str, str], re.Pattern[str]]()
    for layout in LAYOUTS.values():
        for slot, place in layout.places.items():
            component = slot.partition(":")[0]
            if place.folder:
                folders.setdefault(place.folder, set()).add(component)
            else:
                at_root[place.stem, component] = re.compile(rf"{re.escape(place.stem)}{_SHARD}\.[a-z.]+")
        for group, home in layout.folders.items():
            sidecars.setdefault(home, set()).add(_SIDECARS[group])
    return _Places(folders, sidecars, tuple((weights, component) for (_, component), weights in at_root.items()))


def _components(words: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for word in words:
        if word not in components() and word not in _GROUPS:
            raise UsageError(f"there is no component {word!r}", suggestion(word, (*components(), *_GROUPS)))
        found |= set(_GROUPS.get(word, (word,)))
    return found


def _why_not(path: str, twice: Set[tuple[str, str]], wish: Wish, only: set[str]) -> str:
    """Returns why a file is not wanted; empty if it is."""
    if excluded_by(path, wish.exclude) is not None:
        return "`exclude`"
    if wish.include and not any(fnmatchcase(path, glob) for glob in wish.include):
        return "not in `include`"
    if not wish.include and (why := _of_no_use(path, twice)):
        return why
    mine = owners(path)
    if only and not mine & only and (mine or path.endswith(_WEIGHTS)):
        return f"belongs to {', '.join(sorted(mine))}" if mine else "weights of no known component"
    return ""


def _held_twice(paths: Iterable[str]) -> set[tuple[str, str]]:
    """Returns each folder with the beginnings of the pickled weights that it holds as safetensors, too."""
    found = set()
    for path in paths:
        folder, name = os.path.split(path)
        found |= {(folder, pickled) for pickled, same in _SAFE.items() if same.fullmatch(name)}
    return found


def _of_no_use(path: str, twice: Set[tuple[str, str]]) -> str:
    folder, name = os.path.split(path)
    for suffix, whose in _OTHERS.items():
        if name.endswith(suffix):
            return whose
    if any(weights.fullmatch(name) and (folder, pickled) in twice for pickled, weights in _PICKLED.items()):
        return "the same weights are in the safetensors file next to it"
    if name.endswith(_EXAMPLES) or folder.split("/")[0] in _EXAMPLE_FOLDERS:
        return "an example"
    return ""
