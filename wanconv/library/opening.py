"""Opens checkpoints: models from headers, and their tensors on demand."""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from wanconv.conversion import options
from wanconv.library.paths import given
from wanconv.types.model import Model

if TYPE_CHECKING:  # imports torch
    from wanconv.weights.lazy import LazyTensor


def open_model(
    source: str | os.PathLike[str], *, expert: Literal["high", "low"] | None = None, exclude: Sequence[str] = ()
) -> Model:
    """Identify a checkpoint from its headers; reads no weights.

    Args:
        source: A model folder, one weight file, or the index of a sharded one.
        expert: The role of a lone Wan 2.2 expert, if neither its folder nor its name says it.
        exclude: Globs on the paths or names of files to leave out.

    Returns:
        The model: its family, its components and each canonical tensor.

    Raises:
        Unrecognised: If tensors fit no known network.
        InputError: If a file cannot be read or trusted.
        UsageError: If the expert's role is open or contradicted, or for a hub's address: download it first.

    Examples:
        >>> import wanconv as wc
        >>> model = wc.open_model(checkpoint)
        >>> model.family.name, sorted(model.components)
        ('wan2.2-t2v-a14b', ['expert.high', 'expert.low', 'text_encoder', 'vae'])
    """
    return options.open_model(given(source, "source"), tuple(exclude), expert)


def tensors(model: Model) -> "Mapping[str, LazyTensor]":
    """Return the tensors of a model by canonical name; none is read yet.

    Args:
        model: What `open_model` returned, or `plan.model`, whose LoRAs are merged as tensors are read.

    Returns:
        Canonical name -> tensor, with `.shape`, `.stored_as`, `.dtype` and `.read(rows=slice(...))`, which returns a
        `torch.Tensor` on the CPU, decoded: float32 for tensors with scales or LoRAs, else the dtype on disk.

    Raises:
        InputError: From `.read`, where a file cannot be read or has changed.

    Examples:
        >>> import wanconv as wc
        >>> weight = wc.tensors(wc.open_model(checkpoint))["expert.high/blocks.0.self_attn.q.weight"]
        >>> weight.stored_as, len(weight.shape)
        ('fp32', 2)
        >>> weight.read(rows=slice(0, 2)).shape[0]
        2
    """
    from wanconv.weights.lazy import LazyTensor

    return MappingProxyType({name: LazyTensor(tensor) for name, tensor in model.tensors.items()})
