"""A checkpoint whose every tensor has a role: canonical tensors, components, models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

from wanconv.types.architecture import Architecture, Family, Release, Role, Scheme
from wanconv.types.dtypes import DTYPES
from wanconv.types.packing import Packing
from wanconv.types.tensors import Checkpoint, Part, Shape, TensorRef

MarkKind = Scheme | Literal["header"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of elements of a tensor on disk."""

    ref: TensorRef
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Patch:
    """A LoRA's change of a weight: `scale` times the product of `up` and `down`, or times `down`, the difference.

    `up` is (rows, rank), `down` (rank, row); further axes, such as a convolution's, are part of the row.
    """

    scale: float
    down: TensorRef
    up: TensorRef | None = None

    @property
    def rank(self) -> int | None:
        return None if self.up is None else self.down.shape[0]


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """One canonical tensor, `<component>/<path>`, as runs of elements on disk (`transposed`: of its transpose).

    If it has scales, `packing` says how they are stored, the pieces are its payload, and `scales` and the `whole` scale
    of scales are tensors of their own. `patches` are added to its numbers when they are read.
    """

    name: str
    role: Role
    block: int | None
    shape: Shape
    pieces: tuple[Piece, ...]
    transposed: bool = False
    packing: Packing | None = None
    scales: TensorRef | None = None
    patches: tuple[Patch, ...] = ()
    whole: TensorRef | None = None

    @property
    def dtype(self) -> str:
        return self.pieces[0].ref.dtype

    @property
    def numbers(self) -> str:
        """The dtype of its numbers, read back."""
        return "fp32" if self.quantized or self.patches else self.dtype

    @property
    def quantized(self) -> bool:
        """True if its numbers are products with scales, stored in tensors of their own or in the blocks."""
        return self.packing is not None or DTYPES[self.dtype].blocked

    @property
    def as_it_lies(self) -> bool:
        """True if its numbers are the bytes on disk, in order."""
        return not (self.quantized or self.patches or self.transposed)

    @property
    def stored_as(self) -> str:
        """The dtype on disk, and what its scales cover, if it has some: `int8 row`."""
        return self.dtype if self.packing is None else f"{self.dtype} {self.packing.scale}"

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        scales = sum(ref.nbytes for ref in (self.scales, self.whole) if ref is not None)
        return DTYPES[self.dtype].nbytes(self.numel) + scales


@dataclass(frozen=True, slots=True)
class Mark:
    """A network that a denoiser's files name, whose tensors are those of another network.

    `name` is its own, in letters of a file name. It is said `by` the header, or by the config.json of a scheme,
    at `path`, as the fields `said`, whose values are JSON. `base` is what the tensors alone would be.
    """

    name: str
    by: MarkKind
    path: str
    said: tuple[tuple[str, str], ...]
    base: str

    @property
    def where(self) -> str:
        return f"the header of {self.path}" if self.by == "header" else self.path


@dataclass(frozen=True, slots=True)
class Component:
    """One identified network of a model.

    `tied` are further copies of a tensor on disk: (copy, canonical name); `dead` are tensors that no client reads:
    (tensor, why).
    """

    name: str
    architecture: Architecture
    scheme: Scheme
    dims: Mapping[str, int]
    part: Part
    tensors: Mapping[str, ModelTensor]
    fingerprint: str
    config: Mapping[str, object] | None = None
    tied: tuple[tuple[TensorRef, str], ...] = ()
    dead: tuple[tuple[TensorRef, str], ...] = ()
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that is merged into one component: the number of its tensors that it changes, and the ranks.

    `unmatched` are the keys that name nothing there; `evidence` says how the component is known, if not by the user.
    """

    file: Path
    sha256: str
    component: str
    strength: float
    changed: int
    ranks: tuple[int, ...]
    unmatched: tuple[str, ...] = ()
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """How a checkpoint was opened: its path, the role of a lone expert, and the globs of excluded files."""

    source: Path
    expert: Literal["high", "low"] | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint whose every tensor has a role. `evidence` says how each expert's role is known.

    Where its denoisers have a mark, the family is that of the tensors alone, and there is no release.

    `loras` are those that its tensors' patches come from. `skipped` are further weight files that are not a network of
    any family, each with what is known of it; they are not part of the checkpoint. `opened` says how it was opened.
    """

    checkpoint: Checkpoint
    family: Family
    components: Mapping[str, Component]
    release: Release | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    opened: Opened | None = None

    @property
    def mark(self) -> Mark | None:
        """The network that its denoisers say they are; None if it is the one that their tensors show."""
        return next((component.mark for component in self.components.values() if component.mark), None)

    @property
    def title(self) -> str:
        """Its own name, or its family's."""
        return self.family.name if self.mark is None else self.mark.name

    @property
    def absent(self) -> tuple[str, ...]:
        """The family's components that it lacks; empty for another network, whose components are unknown."""
        if self.mark is not None:
            return ()
        return tuple(name for name in self.family.components if name not in self.components)

    @property
    def tensors(self) -> Mapping[str, ModelTensor]:
        return {name: tensor for part in self.components.values() for name, tensor in part.tensors.items()}
