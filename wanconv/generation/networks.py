"""Facts to build a network from: a component's sizes, its names in the libraries, its configuration there."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from wanconv.engine.libraries import watch
from wanconv.engine.recorder import Recorder
from wanconv.layouts import LAYOUTS
from wanconv.layouts.sizes import heads
from wanconv.models import targets
from wanconv.types.model import Component, Model
from wanconv.types.tensors import Shape


def sizes(model: Model, name: str) -> tuple[Mapping[str, int], Callable[[str], Shape]]:
    """Returns a denoiser's dims with its heads, and its shapes by canonical name."""
    component = model.components[name]
    return {**component.dims, "heads": heads(model, component)}, lambda path: component.tensors[f"{name}/{path}"].shape


def hub_names(component: Component) -> Mapping[str, str]:
    """Returns canonical name (no component) -> the name in diffusers or transformers."""
    wanted = targets(component.architecture, "hub", component.dims)
    return {source: target.name for target in wanted for source in target.sources}


def hub_config(model: Model, name: str) -> Mapping[str, object]:
    """Returns a component's diffusers or transformers config: its own, or the one derived from its shapes."""
    component, layout = model.components[name], LAYOUTS["diffusers"]
    if component.scheme == "hub" and component.config is not None:
        return component.config
    if model.family.name in (layout.refused or {}):  # it does not store some of the others
        model = replace(model, components={name: component})
    return layout.documents(model)[f"{layout.places[name].prefix}config.json"]


def watched(network: nn.Module, component: Component, recorder: Recorder) -> Recorder:
    """Gives a library network's modules their canonical names, and returns the recorder."""
    watch(recorder, network, hub_names(component))
    return recorder
