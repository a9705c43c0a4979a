"""The protocol by which the engine sees weights: it knows canonical names, but neither tables nor files."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from wanconv.types.tensors import Shape

# One component's `tensors`: wan.py takes this instead of a source, so that whoever calls it may hand in anything.
Fetch = Callable[[str], Mapping[str, Tensor]]


class WeightSource(Protocol):
    """A model's weights, read on demand: `fetch = partial(source.tensors, "expert.high")`.

    Names are canonical (wanconv/models) and relative to their component: `blocks.7.ffn.up.weight`. A value has the
    narrowest of fp16, bf16 and fp32 that holds every decoded number exactly: a plain tensor as it is stored, a
    quantized one times its scale in fp32. The engine casts at each use and keeps no reference after the call that
    fetched, so the source alone decides what stays in memory, is read ahead or shared by two models. Tensors
    may be memory-mapped and must not be written to. They lie on the device that computes.
    """

    def tensors(self, component: str, prefix: str) -> Mapping[str, Tensor]:
        """Returns all tensors at and below `prefix`: `blocks.7`, `head`, `patch_embedding`; raises KeyError if there
        are none.

        A prefix ends at a dot: `blocks.1` does not name `blocks.10`.
        """
        ...

    def rows(self, component: str, name: str, indices: Tensor) -> Tensor:
        """Returns rows (indices.shape, columns) of a matrix that is never read whole: UMT5's embedding has 2.1 GB."""
        ...

    def shape(self, component: str, name: str) -> Shape:
        """Returns a tensor's shape, from headers alone."""
        ...
