"""Layouts: one value per client, with the names and files that the client reads."""

from collections.abc import Mapping

from wanconv.layouts.diffusers import DIFFUSERS
from wanconv.layouts.dtypes import loading_dtype
from wanconv.layouts.official import OFFICIAL
from wanconv.layouts.types import Json, Layout, Override, Place
from wanconv.tensors import Model

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (OFFICIAL, DIFFUSERS)}

__all__ = ["LAYOUTS", "Json", "Layout", "Override", "Place", "loading_dtype", "source_layout"]


def source_layout(model: Model) -> Layout:
    """Returns the layout whose naming the model's components use (most tensors decide)."""
    votes = dict.fromkeys(LAYOUTS, 0)
    for component in model.components.values():
        for layout in LAYOUTS.values():
            votes[layout.name] += len(component.tensors) * (layout.scheme == component.scheme)
    return LAYOUTS[max(votes, key=lambda name: votes[name])]
