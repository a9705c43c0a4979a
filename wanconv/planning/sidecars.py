"""The files next to the weights: documents that are derived, sidecars that are copied, and where each of them goes."""

import os
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatchcase
from pathlib import Path

from wanconv.layouts import Layout, Stored, loading_dtype, source_layout
from wanconv.planning.files import to_json
from wanconv.planning.marks import without_contrary
from wanconv.report import Finding
from wanconv.types.documents import JsonMapping
from wanconv.types.model import Component, Model

_QUANTIZATION = "quantization_config"  # Hugging Face's key for the source's quantization: a layout adds the output's
_OURS = ("wanconv.json", "README.md")  # written again: the manifest and the model card


def documents_and_copies(
    model: Model, layout: Layout, stored: Mapping[str, Sequence[Stored]]
) -> tuple[dict[str, bytes], dict[str, Path], list[Finding]]:
    """Returns documents (path -> bytes), copies (path -> source), and findings about what is left out.

    Within a layout the source's own files are kept; from another one, the layout's documents replace them. `stored`
    are each component's tensors in the output: a dtype in a config is changed to theirs.
    """
    dtypes = {name: {each.dtype for each in tensors if not each.packing} for name, tensors in stored.items()}
    additions = {name: layout.config(tensors) for name, tensors in stored.items()}
    source = source_layout(model)
    owners = [(name, component.architecture.name) for name, component in model.components.items()]
    attached = {pair[1] for owner in owners if (pair := layout.attached_to(*owner)) is not None}
    documents = _derived(model, layout)
    copies: dict[str, Path] = {}
    findings: list[Finding] = []
    configs = {_config_beside(one): one for one in model.components.values() if one.config is not None}
    unowned = {_config_beside(one) for one in model.components.values()} - configs.keys()
    for sidecar in model.checkpoint.sidecars:
        if sidecar in unowned:
            findings.append(Finding("note", sidecar, "belongs to none of the weights and is left out"))
        elif sidecar in configs:
            owner = configs[sidecar]
            path = _config_path(layout, owner)
            if (source == layout or _keeps(layout, owner)) and path is not None and owner.config is not None:
                config, contrary = without_contrary(owner, sidecar)
                findings += contrary
                documents[path] = {key: value for key, value in config.items() if key != _QUANTIZATION}
                unchanged = {tensor.dtype for tensor in owner.tensors.values()} == dtypes[owner.name]
                same = unchanged or _restated(owner.config, dtypes[owner.name]) == owner.config
                if same and not contrary and not additions[owner.name] and _QUANTIZATION not in owner.config:
                    copies[path] = model.checkpoint.root / sidecar  # byte for byte
        elif source == layout:
            copies[sidecar] = model.checkpoint.root / sidecar
        elif (target := _moved(sidecar, source, layout)) is None:
            if os.path.basename(sidecar) in attached:  # a tensor now
                continue
            findings.append(Finding("note", sidecar, f"has no place in the {layout.name} layout and is left out"))
        elif target not in documents and not any(fnmatchcase(sidecar, glob) for glob in source.derived):
            copies[target] = model.checkpoint.root / sidecar
    if "README.md" in copies:
        copies["README.source.md"] = copies["README.md"]
    copies = {path: file for path, file in copies.items() if path not in _OURS}
    for name, component in model.components.items():
        path = _config_path(layout, component)
        if path in documents:
            documents[path] = {**_restated(documents[path], dtypes[name]), **additions[name]}
    documents |= layout.settings(model, stored)
    return {path: to_json(value) for path, value in documents.items() if path not in copies}, copies, findings


def _derived(model: Model, layout: Layout) -> dict[str, JsonMapping]:
    """Returns the layout's documents; of a model that is another network than its tensors show, only the components'
    configs: its pipeline and its sampling are unknown."""
    documents = dict(layout.documents(model))
    if model.mark is None or model.mark.by == "header":
        return documents
    configs = {_config_path(layout, component) for component in model.components.values()}
    return {path: document for path, document in documents.items() if path in configs}


def _keeps(layout: Layout, component: Component) -> bool:
    """True if a component's own config.json names its network in a way that the layout's client reads."""
    return component.mark is not None and component.mark.by != "header" and component.mark.by in layout.marks


def _config_beside(component: Component) -> str:
    return os.path.join(component.part.folder, "config.json")


def _config_path(layout: Layout, component: Component) -> str | None:
    place = layout.place(component.name, component.architecture.name)
    return None if place is None else place.prefix + "config.json"


def _moved(sidecar: str, source: Layout, layout: Layout) -> str | None:
    """Returns a sidecar's path in another layout: in the client's folder for its group, or where it is."""
    for group, folder in source.folders.items():
        if sidecar.startswith(f"{folder}/"):
            home = layout.folders.get(group)
            return None if home is None else home + sidecar[len(folder) :]
    return sidecar


def _restated(config: JsonMapping, dtypes: Set[str]) -> JsonMapping:
    """Returns a config whose dtype, if any, can hold every tensor of the output."""
    stated = {key: loading_dtype(dtypes) for key in ("dtype", "torch_dtype") if config.get(key) is not None}
    return {**config, **stated}
