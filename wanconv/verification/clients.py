"""Whether a client can read a folder: its headers are compared with those that a conversion for it would write.

A plan of `keep` in the layout gives every name, dtype and shape, and refuses tensors that the client does not read.
So the rules are the layout's own, in one place; tests with the client's loader show that they are the client's.
"""

from collections.abc import Iterator, Mapping

from wanconv.errors import CheckFailed, Refused
from wanconv.layouts import Layout
from wanconv.models import DENOISERS, read_since
from wanconv.planning import Contents, Slot, contents, some, unread_mark, unreadable_config
from wanconv.provenance.manifest import says_entry
from wanconv.quantization.packings import is_input_scale, same_meaning, stated, tokenizer_of
from wanconv.recipe import load
from wanconv.report import Finding
from wanconv.storage.reading import parsed_json
from wanconv.types.documents import JsonMapping
from wanconv.types.figures import count
from wanconv.types.model import Component, Model
from wanconv.types.tensors import TensorRef


def check_client(model: Model, layout: Layout) -> list[Finding]:
    """Returns a failure for each part of the folder that the client of `layout` expects to be different, and a warning
    for parts that it loads but cannot use."""
    try:
        held = contents(model, load("keep"), layout)
    except Refused as refusal:
        reason = refusal.message.removeprefix(f"the {layout.name} layout does not take this recipe: ")
        return [_failure(layout.name, reason)]
    return [
        finding for component in model.components.values() for finding in _component(model, component, layout, held)
    ]


def why_not(model: Model, layout: Layout) -> str:
    """Returns the first reason why the client of `layout` does not read a model; empty if it does.

    Checks without a plan come first: a plan of two experts takes as long as reading their headers.
    """
    if reason := (layout.refused or {}).get(model.family.name):
        return reason
    if reason := unread_mark(model, layout):
        return reason
    packings = {tensor.packing for tensor in model.tensors.values() if tensor.packing}
    if foreign := sorted({packing.client for packing in packings.difference(layout.packings)} - {layout.name}):
        readable = all(layout.packing(packing.format, packing.scale) for packing in packings)
        return f"its scales are stored for {', '.join(foreign)}" + ("" if readable else f": {layout.unscaled}")
    for component in model.components.values():
        for misplaced in _misplaced(model, component, layout):
            return f"{component.name}: {misplaced.message}"
    failures = [finding for finding in check_client(model, layout) if finding.severity == "failure"]
    if not failures:
        return ""
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    where = "" if failures[0].where == layout.name else f"{failures[0].where}: "
    return f"{where}{failures[0].message}{more}"


def bare_weights(model: Model) -> list[Finding]:
    """Returns a warning for each component in which some linear weights of a dtype have scales, and others do not: that
    may be intended, or scales were lost; if their names are those of plain weights, only the source can show it."""
    findings = []
    for component in model.components.values():
        linear = [tensor for tensor in component.tensors.values() if tensor.role.kind == "linear"]
        for dtype in sorted({tensor.dtype for tensor in linear if tensor.packing}):
            of_it = [tensor for tensor in linear if tensor.dtype == dtype]
            bare = [tensor.name for tensor in of_it if not tensor.packing]
            if bare:
                weights, have = count(len(of_it), "weight"), "has" if len(bare) == 1 else "have"
                message = f"{len(bare)} of {weights} in {dtype} {have} no scales: plain casts, or theirs were lost"
                findings.append(Finding("warning", some(bare), message, "prove them: verify `against` the source"))
    return findings


def since(model: Model, layout: Layout) -> str:
    """Returns the first versions of a client that are known to read this model; empty if none is known."""
    packings = {tensor.packing for tensor in model.tensors.values() if tensor.packing}
    marked = read_since(model.mark) if model.mark is not None else ""
    versions = sorted({packing.since for packing in packings & set(layout.packings)} - {""}) + [marked] * bool(marked)
    return ", ".join(versions) or layout.since


def changed_marks(model: Model, theirs: Mapping[str, JsonMapping], whose: str) -> list[Finding]:
    """Returns a failure for each denoiser that `whose` record calls another network than its own files do: without its
    name, a client builds another network."""
    ours = says_entry(model)
    findings = []
    for name in (name for name in DENOISERS if name in model.components):
        here, there = ours.get(name, {}), theirs.get(name, {})
        if (here.get("by"), here.get("said")) != (there.get("by"), there.get("said")):
            message = f"says of itself that it is {_title(here)}, and by {whose} it is {_title(there)}"
            findings.append(Finding("failure", name, message, "convert it again", CheckFailed.code))
    return findings


def _title(entry: JsonMapping) -> str:
    return f"{entry['name']} ({entry['by']})" if entry else "what its tensors show"


def _misplaced(model: Model, component: Component, layout: Layout) -> Iterator[Finding]:
    """Yields a failure for weights that are not where the client looks for them."""
    part = component.part
    place = layout.place(component.name, component.architecture.name)
    if place is None:
        yield _failure(part.path, f"{layout.name} has no place for {component.name}")
        return
    alone = len(model.checkpoint.parts) == 1 and not part.folder
    is_other = "gguf" in (part.container, place.container) and part.container != place.container
    if is_other or (not alone and (part.folder, part.container) != (place.folder, place.container)):
        yield _failure(part.path, f"{layout.name} looks for {place.container} in {place.folder or 'the folder itself'}")
    if layout.shard_nbytes is None and len(part.files) > 1:
        yield _failure(part.path, f"{layout.name} reads one file, and these are {len(part.files)}")
    if place.container == part.container == "pth" and not alone and part.path != f"{place.prefix}{place.stem}.pth":
        yield _failure(part.path, f"{layout.name} looks for {place.prefix}{place.stem}.pth")


def _component(model: Model, component: Component, layout: Layout, held: Contents) -> Iterator[Finding]:
    part = component.part
    yield from _misplaced(model, component, layout)
    attached = layout.attached_to(component.name, component.architecture.name)
    if attached is not None and tokenizer_of(part) is None:
        message = f"{layout.name} takes its tokenizer from a tensor, {attached[0]}, and without it encodes no prompt"
        yield Finding("warning", part.path, message, f"convert a folder with the model's {attached[1]} in it")
    if "header" in layout.marks and (fault := unreadable_config(component)):
        yield _failure(part.path, fault)
    ignored = {name for name, _ in layout.attached.values()} | {ref.name for ref, _ in component.dead}
    said = stated(part).keys() - part.tensors.keys()
    expected = {slot.name: slot for slot in held.slots[component.name] if slot.name not in ignored | said}
    found = {
        name: ref
        for name, ref in part.tensors.items()
        if name not in ignored and not (ref.numel == 1 and any(is_input_scale(each, ref) for each in layout.packings))
    }
    yield from _differences(found, expected, layout)
    stored = held.stored[component.name]
    for key, value in layout.metadata(component.name, stored).items():
        if key == "format" or (key in layout.restated and key not in part.metadata):
            continue
        if not same_meaning(_parsed(part.metadata.get(key)), _parsed(value)):
            yield _failure(part.path, f"its header does not say what {layout.name} reads as {key}")
    config = component.config or {}
    for key, wanted in layout.config(stored).items():
        if not isinstance(config.get(key), dict) or config[key] != wanted:
            place = layout.place(component.name, component.architecture.name)
            path = f"{place.prefix}config.json" if place else "config.json"
            yield _failure(path, f"does not say what {layout.name} reads as {key}")


def _differences(found: Mapping[str, TensorRef], expected: Mapping[str, Slot], layout: Layout) -> Iterator[Finding]:
    """Constants only have to exist: identify() has checked their meaning."""
    for name in sorted(expected.keys() - found.keys()):
        yield _failure(name, f"{layout.name} needs it, and it is not there")
    for name in sorted(found.keys() - expected.keys()):
        yield _failure(name, f"{layout.name} does not know it")
    for name in sorted(found.keys() & expected.keys()):
        ref, slot = found[name], expected[name]
        if slot.constant is None and (ref.dtype, ref.shape) != (slot.dtype, slot.shape):
            reads = f"{layout.name} reads {slot.dtype} {list(slot.shape)}"
            yield _failure(name, f"is {ref.dtype} {list(ref.shape)}, and {reads}")


def _parsed(text: str | None) -> object:
    try:
        return parsed_json((text or "null").encode())
    except ValueError:
        return text


def _failure(where: str, message: str) -> Finding:
    return Finding("failure", where, message, "convert it for that client: `layout`", CheckFailed.code)
