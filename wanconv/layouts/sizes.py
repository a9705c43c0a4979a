"""Sizes that config files state and tensor shapes do not: channel counts, attention heads, VACE's blocks."""

from wanconv.errors import Refused
from wanconv.types.model import Component, Model

_HEAD_DIM = 128  # in every released Wan denoiser: Wan-Video/Wan2.2 wan/configs


def channels(component: Component) -> tuple[int, int]:
    """Returns a denoiser's latent channels in and out (its head writes patches of 1 x 2 x 2)."""
    patches = component.tensors[f"{component.name}/patch_embedding.weight"].shape
    head = component.tensors[f"{component.name}/head.proj.weight"].shape
    return patches[1], head[0] // 4


def heads(model: Model, component: Component) -> int:
    """Returns a denoiser's attention heads, from its config or its released size; head size 128 otherwise."""
    if "heads" in component.dims:
        return component.dims["heads"]
    if model.release is not None:
        return model.release.heads
    width = component.dims["d"]
    if width % _HEAD_DIM:
        raise Refused(
            f"{component.part.path} is {width} wide, and without its config.json nothing says how many heads it has",
            "put the checkpoint's config.json next to it",
        )
    return width // _HEAD_DIM


def vace_layers(component: Component) -> list[int]:
    """Returns the blocks that VACE's own blocks belong to: from the config, or evenly spread, as in the releases."""
    stated = (component.config or {}).get("vace_layers")
    if isinstance(stated, list):
        return stated
    blocks, own = component.dims["n"], component.dims["m"]
    layers = list(range(0, blocks, -(-blocks // own)))
    if len(layers) != own:
        raise Refused(
            f"{component.part.path} has {own} blocks of VACE for {blocks}, and nothing says which they belong to",
            "put the checkpoint's config.json next to it",
        )
    return layers
