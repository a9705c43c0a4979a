"""Layouts: one value per client, with the names and files that it reads."""

from collections.abc import Mapping

from wanconv.layouts.comfyui import COMFYUI, COMFYUI_LEGACY
from wanconv.layouts.diffsynth import DIFFSYNTH
from wanconv.layouts.diffusers import DIFFUSERS, DIFFUSERS_SINGLE
from wanconv.layouts.dtypes import loading_dtype
from wanconv.layouts.gguf import GGUF
from wanconv.layouts.lightx2v import LIGHTX2V
from wanconv.layouts.official import OFFICIAL
from wanconv.layouts.types import Layout, Override, Place, Stored, Together
from wanconv.types.model import Component, Model
from wanconv.types.registry import Registry, of_group, pickle_by_name

GROUP = "wanconv.layouts"  # of entry points: a Layout, or a list of them
_OWN = (OFFICIAL, DIFFUSERS, DIFFUSERS_SINGLE, COMFYUI, COMFYUI_LEGACY, LIGHTX2V, DIFFSYNTH, GGUF)


LAYOUTS = Registry("layout", _OWN, lambda: of_group(GROUP, Layout))


def layout_named(name: str) -> Layout:
    """Return a layout; raises LookupError if there is none of this name."""
    return LAYOUTS.named(name)


pickle_by_name(Layout, layout_named)
COMFYUI_GENERATIONS: Mapping[str, Layout] = {"native": COMFYUI, "legacy": COMFYUI_LEGACY}

__all__ = [
    "COMFYUI",
    "COMFYUI_GENERATIONS",
    "LAYOUTS",
    "Layout",
    "Override",
    "Place",
    "Stored",
    "Together",
    "layout_named",
    "loading_dtype",
    "source_layout",
]


def source_layout(model: Model) -> Layout:
    """Returns the layout whose naming, scales and GGUF files the model's components use: the majority of tensors
    decides, the first of equals.

    LightX2V and DiffSynth read the official files: without scales, they are those. A lone file with a mark that only
    one client uses belongs to that client.
    """
    votes = dict.fromkeys(LAYOUTS, 0)
    lone = len(model.checkpoint.parts) == 1
    for component in model.components.values():
        for layout in LAYOUTS.values():
            votes[layout.name] += len(component.tensors) * _speaks(layout, component)
            place = layout.place(component.name, component.architecture.name)
            is_gguf = component.part.container == "gguf" and place is not None and place.container == "gguf"
            votes[layout.name] += len(component.tensors) * is_gguf
            marked = lone and component.mark is not None and component.mark.by in layout.marks
            votes[layout.name] += len(component.tensors) * marked
            votes[layout.name] += sum(tensor.packing in layout.packings for tensor in component.tensors.values())
    return LAYOUTS[max(votes, key=lambda name: votes[name])]


def _speaks(layout: Layout, component: Component) -> bool:
    return layout.scheme_of(component.name, component.architecture.name) == component.scheme
