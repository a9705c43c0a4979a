"""What a model says about itself: which clients read it, which parts of its headers are carried, and what is reported.

Texts of a header that name its network or describe it (titles, licences, training notes) are carried. Texts about how
its tensors are stored are written again by the layout, or no longer apply.
"""

import os
from collections.abc import Mapping

from wanconv.errors import Refused, argument
from wanconv.layouts import LAYOUTS, Layout
from wanconv.models import CONFIG, DENOISERS, FIELDS, Expert, expert_named, header_config, quoted, read_since
from wanconv.report import Cell, Finding
from wanconv.types.figures import exact_size
from wanconv.types.model import Component, Mark, Model
from wanconv.types.tensors import Container

NOTES_NBYTES = 1 << 20  # most bytes of a header's texts that are carried
_KEY_SHOWN, _TEXT_SHOWN = 60, 200  # most characters of a header's own text in a message
# Keys about a file's bytes: of safetensors and torchao, ComfyUI, GGUF, and the hashes that trainers leave
_STORAGE = frozenset(
    (
        *("format", "tensor_names", "_quantization_metadata", "total_size"),
        *("general.architecture", "general.alignment", "general.file_type", "general.quantization_version"),
        *("general.parameter_count", "general.size_label", "general.quantized_by"),
        *("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"),
    )
)
_CAME_FROM = "_name_or_path"  # key of config.json: a path, whose last part counts
_AGAINST = "against the role that it was given, and is left out"
_STORAGE_GROUPS = frozenset(("GGUF", "comfy", "split", "tokenizer"))  # the part of a key before its first dot


def family_in_words(model: Model) -> str:
    """Returns a model's family, or its own name and the family of its tensors."""
    return model.title if model.mark is None else f"{model.title}, built on the tensors of {model.mark.base}"


def release_of(model: Model) -> Cell:
    """Returns the release whose sizes a model's denoiser has; None, with the reason, if there is none."""
    if model.mark is not None:
        return Cell(None, f"none: it says of itself that it is {model.title}")
    return Cell(model.release.name, model.release.name) if model.release else Cell(None, "none: not a released size")


def marks_of(model: Model) -> list[Finding]:
    """Returns what a model's headers say of its network, and which part of it no client can read."""
    findings = []
    for component in model.components.values():
        if component.mark is not None:
            findings.append(Finding("note", component.name, says(component.mark)))
        if (fault := unreadable_config(component)) != "":
            findings.append(Finding("warning", component.part.path, fault, "get the file again from who made it"))
    return findings


def older_clients(model: Model, layout: Layout) -> list[Finding]:
    """Returns how other versions of a client read a model that names its network in its header."""
    mark = model.mark
    if mark is None or mark.by != "header" or mark.by not in layout.marks:
        return []
    since = read_since(mark)
    known = f"{since} reads that it is {mark.name}" if since else f"no ComfyUI is known that builds {mark.name}"
    return [Finding("note", layout.name, f"{known}; one that does not know it computes {mark.base}, or stops")]


def says(mark: Mark) -> str:
    """Returns a sentence about a mark, with what the file says."""
    return (
        f"says of itself that it is {mark.name}, by {quoted(mark)} in {mark.where}; "
        f"its tensors are those of {mark.base} as well"
    )


def unreadable_config(component: Component) -> str:
    """Returns why no client can read the network in a denoiser's header; empty if one can."""
    if component.name not in DENOISERS:
        return ""
    _, fault = header_config(component.part)
    return f"the {CONFIG} of its header {fault}: ComfyUI stops at it, and it is left out" if fault else ""


def unread_mark(model: Model, layout: Layout) -> str:
    """Returns why a layout's client would build another network than a model says it is; empty if it would not."""
    mark = model.mark
    if mark is None or mark.by in layout.marks:
        return ""
    return f"its client would compute {mark.base}: it does not read that the model is {mark.name}"


def refused_mark(model: Model, layout: Layout) -> Refused | None:
    """Returns the refusal of a layout whose client would build another network than a model says it is."""
    mark = model.mark
    if mark is None or not unread_mark(model, layout):
        return None
    homes = ", ".join(name for name, one in LAYOUTS.items() if mark.by in one.marks)
    hint = f"choose another `layout`: {homes}"
    if mark.by != "header":
        hint += f"; or {argument('exclude', [mark.path])}, which makes it {mark.base}"
    said = f"it says of itself that it is {mark.name}, by {quoted(mark)} in {mark.where}"
    return Refused(
        f"{model.title} has no {layout.name} layout: {said}, which the client of {layout.name} does not read: "
        f"it would compute {mark.base}",
        hint,
    )


def carried(component: Component, container: Container) -> tuple[dict[str, str], list[Finding]]:
    """Returns the texts of a component's header that go into its output, and what is left out.

    Raises Refused for a text that names the network and is too long to be carried.
    """
    texts = _texts(component)
    where = component.part.path
    if not texts:
        return {}, []
    if container == "pth":
        message = f"{_some(texts)} of its header has no place in a .pth file and is left out"
        return {}, [Finding("note", where, message)]
    findings = []
    for key, named in contrary(component, texts).items():
        del texts[key]
        findings.append(Finding("note", where, f"{key} of its header says {named}, {_AGAINST}"))
    if container == "gguf" and texts.pop("", None) is not None:
        message = "what its header says under no name has no place in GGUF and is left out"
        findings.append(Finding("note", where, message))
    kept: dict[str, str] = {}
    room = NOTES_NBYTES
    for key in sorted(texts, key=lambda key: (key != CONFIG, key)):
        if (nbytes := len(key.encode()) + len(texts[key].encode())) <= room:
            kept[key] = texts[key]
            room -= nbytes
    if CONFIG in texts.keys() - kept.keys() and component.mark is not None and component.mark.by == "header":
        raise Refused(
            f"{where}: the {CONFIG} of its header names its network and has {len(texts[CONFIG])} characters; "
            f"at most {exact_size(NOTES_NBYTES)} are carried",
            "get the file again from who made it",
        )
    if kept:
        findings.append(Finding("note", where, f"{_some(kept)} of its header goes along"))
    if left := {key: texts[key] for key in texts if key not in kept}:
        message = f"{_some(left)} of its header is left out: at most {exact_size(NOTES_NBYTES)} are carried"
        findings.append(Finding("note", where, message))
    return kept, findings


def contrary(component: Component, fields: Mapping[str, object]) -> dict[str, Expert]:
    """Returns the fields of an expert's header or config that name the other expert, against the caller's choice."""
    names = {key: text for key in FIELDS if isinstance(text := fields.get(key), str)}
    found = {key: named for key, text in names.items() if (named := expert_named(text)) is not None}
    return {key: named for key, named in found.items() if _is_other(component, named)}


def without_contrary(component: Component, path: str) -> tuple[Mapping[str, object], list[Finding]]:
    """Returns a component's config without the fields contrary to its role, and these fields."""
    config = component.config or {}
    left = contrary(component, config)
    came_from = config.get(_CAME_FROM)
    if isinstance(came_from, str):
        named = expert_named(os.path.basename(came_from.rstrip("/")))
        left |= {_CAME_FROM: named} if named and _is_other(component, named) else {}
    findings = [Finding("note", path, f"its {key} says {other}, {_AGAINST}") for key, other in left.items()]
    return {key: value for key, value in config.items() if key not in left}, findings


def _is_other(component: Component, named: Expert) -> bool:
    return component.name.startswith("expert.") and component.name != f"expert.{named}"


def _texts(component: Component) -> dict[str, str]:
    """Returns a header's texts that are not about how the file stores tensors."""
    part = component.part
    stored = part.tensors.keys() | {piece.ref.name for one in component.tensors.values() for piece in one.pieces}
    groups = _STORAGE_GROUPS | {part.metadata.get("general.architecture", "")}
    texts = {
        key: text
        for key, text in part.metadata.items()
        if key not in _STORAGE and key not in stored and (key.partition(".")[0] not in groups or "." not in key)
    }
    if unreadable_config(component):
        del texts[CONFIG]
    return texts


def notes_of(component: Component) -> list[tuple[str, str]]:
    """Returns the texts of a component's header other than about storage, of bounded length."""
    return [
        (shortened(key, _KEY_SHOWN), shortened(text, _TEXT_SHOWN)) for key, text in sorted(_texts(component).items())
    ]


def shortened(text: str, length: int) -> str:
    """Returns the beginning of an untrusted text, control characters escaped."""
    start = text[:length] + (" …" if len(text) > length else "")
    return start if start.isprintable() else ascii(start)


def _some(texts: Mapping[str, str]) -> str:
    shown = ", ".join(shortened(key, _KEY_SHOWN) for key in sorted(texts)[:3])
    return shown if len(texts) <= 3 else f"{shown} and {len(texts) - 3} more"
