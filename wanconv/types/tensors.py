"""Plain data that every room shares: dtypes, tensors on disk, roles, families, models."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

Kind = Literal["linear", "conv", "norm", "embed", "modulation", "bias", "constant"]
Scheme = Literal["official", "hub", "comfyui"]
Container = Literal["safetensors", "pth", "gguf"]
MarkKind = Scheme | Literal["header"]
Shape = tuple[int, ...]

CONTAINERS: Mapping[str, Container] = {  # by the suffix of a weight file
    ".safetensors": "safetensors",
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), "pth"),
    ".gguf": "gguf",
}


@dataclass(frozen=True, slots=True)
class DType:
    """How numbers are stored; `code` is the name in a safetensors header, empty where that has none.

    `itemsize` are the bytes of an element, or of a `block` of so many along a row. Floats carry what a cast needs:
    `mantissa` bits, `min_exponent` of the smallest normal, `largest` finite value.
    """

    name: str
    code: str
    itemsize: int
    mantissa: int | None = None
    min_exponent: int = 0
    largest: float = 0.0
    block: int = 1

    def nbytes(self, numel: int) -> int:
        """Returns the bytes of `numel` elements, whole blocks."""
        return numel // self.block * self.itemsize

    def numel(self, nbytes: int) -> int:
        """Returns the elements that whole blocks of `nbytes` hold."""
        return nbytes // self.itemsize * self.block

    @property
    def is_float(self) -> bool:
        return self.mantissa is not None

    def holds(self, other: "DType") -> bool:
        """True when every value of `other` can be stored in this dtype without a change."""
        if self.name == other.name:
            return True
        if self.mantissa is None or other.mantissa is None:
            return False
        smallest, other_smallest = self.min_exponent - self.mantissa, other.min_exponent - other.mantissa
        return self.mantissa >= other.mantissa and smallest <= other_smallest and self.largest >= other.largest


# fmt: off
_DTYPES = (
    #      name           code       bytes  mantissa  min_exponent  largest
    DType("fp64",        "F64",      8,     52,       -1022,        (2 - 2**-52) * 2.0**1023),
    DType("fp32",        "F32",      4,     23,       -126,         (2 - 2**-23) * 2.0**127),
    DType("bf16",        "BF16",     2,     7,        -126,         (2 - 2**-7) * 2.0**127),
    DType("fp16",        "F16",      2,     10,       -14,          65504.0),
    DType("fp8_e4m3fn",  "F8_E4M3",  1,     3,        -6,           448.0),
    DType("fp8_e5m2",    "F8_E5M2",  1,     2,        -14,          57344.0),
    DType("int64",       "I64",      8),
    DType("int32",       "I32",      4),
    DType("int16",       "I16",      2),
    DType("int8",        "I8",       1),
    DType("uint64",      "U64",      8),
    DType("uint32",      "U32",      4),
    DType("uint16",      "U16",      2),
    DType("uint8",       "U8",       1),
    DType("bool",        "BOOL",     1),
    # GGUF's: 32 numbers in int8 behind their fp16 scale, which bounds them
    DType("q8_0",        "",         34,    largest=127 * 65504.0, block=32),
    # Their scales stand in other tensors: 32 numbers in E4M3, 16 in four bits; float32 must hold what they decode to
    DType("mxfp8",       "",         32,    largest=240 * 2.0**120, block=32),
    DType("nvfp4",       "",         8,     largest=240 * 2.0**120, block=16),
)
# fmt: on
DTYPES: Mapping[str, DType] = {dtype.name: dtype for dtype in _DTYPES}


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor on disk without its bytes: `nbytes` at `offset` in `file`, C order."""

    name: str
    dtype: str
    shape: Shape
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def read(self) -> bytes:
        """Returns the payload; raises OSError where the file ends early."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            payload = stream.read(self.nbytes)  # until nothing comes: a system may hand over less at a time
        if len(payload) != self.nbytes:
            raise OSError(f"{self.file} ends inside {self.name}")
        return payload


@dataclass(frozen=True, slots=True)
class Part:
    """Weights that belong together: one file, or the shards that one index lists. Paths are relative to the root."""

    path: str
    files: tuple[str, ...]
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)

    @property
    def container(self) -> Container:
        return CONTAINERS[os.path.splitext(self.files[0])[1]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is on disk, by on-disk name; `sidecars` (configs, tokenizers, licences) are relative to the root.

    `unmatched` are the globs that were to leave files out and matched none.
    """

    root: Path
    parts: tuple[Part, ...]
    sidecars: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Every file that holds weights, once, sorted."""
        return tuple(sorted({file for part in self.parts for file in part.files}))


@dataclass(frozen=True, slots=True)
class Spelling:
    """A role's name in one naming scheme.

    `parts` of `of` equal row blocks of the named tensor hold the role (fused qkv: part 0 of 3 is q); `transposed` says
    that the two axes are swapped there; `shape` overrides the role's shape where a scheme adds axes of length one.
    `aliases` are further names under which the same tensor may stand, instead or once more (tied weights). Files of
    the scheme may lack an `optional` tensor.
    """

    name: str
    parts: tuple[int, ...] = (0,)
    of: int = 1
    transposed: bool = False
    shape: tuple[int | str, ...] | None = None
    aliases: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Role:
    """One row of a vocabulary: `{n}` counts blocks from 0, another letter another list (`{m}`: S2V's injectors).

    Dimensions are numbers, symbols (`d`), multiples (`6*d`) or fractions (`d/4`). A scheme that maps to None has no
    home for the role (CLIP's text half in diffusers).
    """

    name: str
    kind: Kind
    shape: tuple[int | str, ...]
    spellings: Mapping[Scheme, Spelling | None]


@dataclass(frozen=True, slots=True, eq=False)
class Dead:
    """A tensor that files of one scheme may hold and no client reads: it is left out of every output.

    `name` and `shape` are written as those of a Role; `why` says who ignores it.
    """

    scheme: Scheme
    name: str
    shape: tuple[int | str, ...]
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """The vocabulary of one network in every naming scheme that exists for it.

    `source` is where its table was read; `full` are the (largest) released sizes, `tiny` sizes for tests: symbols and
    counts, plus `heads` where the shapes do not show it. `config` says which of them a scheme's config.json states, as
    (key or product of keys, size). `dead` are tensors beside the network's own, all or some of which a file may hold.
    """

    name: str
    roles: tuple[Role, ...]
    source: str
    full: Mapping[str, int]
    tiny: Mapping[str, int]
    config: Mapping[Scheme, tuple[tuple[str, int | str], ...]]
    schemes: tuple[Scheme, ...] = ("official", "hub")
    dead: tuple[Dead, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """A published size of a family's denoiser: its dimensions, its fingerprint and the repository it came in."""

    name: str
    dims: Mapping[str, int]
    fingerprint: str
    repository: str

    @property
    def heads(self) -> int:
        return self.dims["heads"]


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A kind of model: which components it has (component name -> architecture) and how it samples.

    `boundary` is the timestep share from which the high-noise expert works; `shift` the sampler's default. `told_by` is
    what a denoiser's config.json says where another family has the same networks: (key, value). `breaks_in_fp16` is a
    sentence, for those whose denoiser must not be computed in fp16.
    """

    name: str
    components: Mapping[str, Architecture]
    model_type: str
    shift: float
    releases: tuple[Release, ...]
    boundary: float | None = None
    told_by: tuple[str, object] | None = None
    breaks_in_fp16: str = ""


TILE = (128, 4)  # rows and columns of scales of blocks: cuBLAS documentation, 1D Block Scaling Factors Layout


@dataclass(frozen=True, slots=True)
class Packing:
    """How one client stores a weight that has scales: as tensors of their own beside the payload.

    The last part of a name is its leaf: `payload` and `scales` are the leaves that stand for `weight`, `constants`
    those of further tensors, bytes that never change. One scale for the `tensor` has the shape `()`, those of each
    `row` are `(rows, 1)`, or `(rows,)` where `flat`, and those of each `block` of a row whole tiles of 128 rows and 4
    columns. `inputs` is the leaf of a calibrated scale of the layer's inputs, which others' files may have: it says how
    to multiply, not what the weight is. `since` is the client's first version known to read it.

    Files hold the payload of blocks in the dtype `storage`, its bytes in the same rows, and their scales in
    `scale_dtype`; `whole` is the leaf of one float32 scale that multiplies them all. `caution` is what a user should
    know of the format there.
    """

    client: str
    format: str
    scale: str
    payload: str = "weight"
    scales: str = "weight_scale"
    constants: tuple[tuple[str, bytes], ...] = ()
    inputs: str | None = None
    since: str = ""
    flat: bool = False
    storage: str = ""
    scale_dtype: str = "fp32"
    whole: str | None = None
    caution: str = ""

    @property
    def payload_dtype(self) -> str:
        """The dtype of the payload in a file."""
        return self.storage or self.format

    def payload_shape(self, shape: Shape) -> Shape:
        """Returns the shape in a file of the payload of a weight."""
        if not self.storage:
            return shape
        return (shape[0], DTYPES[self.format].nbytes(shape[1]) // DTYPES[self.storage].itemsize)

    def shape_of(self, payload: Shape) -> Shape:
        """Returns the shape of the weight whose payload a file has in this shape."""
        if not self.storage or len(payload) != 2:
            return payload
        return (payload[0], DTYPES[self.format].numel(payload[1] * DTYPES[self.storage].itemsize))

    def scale_shape(self, shape: Shape) -> Shape:
        if self.scale == "block":
            rows, columns = TILE
            blocks = shape[1] // DTYPES[self.format].block
            return (-(-shape[0] // rows) * rows, -(-blocks // columns) * columns)
        if self.scale != "row":
            return ()
        return (shape[0],) if self.flat else (shape[0], 1)

    def scales_nbytes(self, shape: Shape) -> int:
        """Returns the bytes of all scales of a weight."""
        nbytes = prod(self.scale_shape(shape)) * DTYPES[self.scale_dtype].itemsize
        return nbytes + (DTYPES["fp32"].itemsize if self.whole else 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of elements of a tensor on disk."""

    ref: TensorRef
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Patch:
    """What a LoRA adds to a weight: `scale` times the product of `up` and `down`, or times `down`, the difference.

    `up` is (rows, rank), `down` (rank, row); further axes are part of the row, as a convolution's are.
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

    Where it is stored with scales, `packing` says how, the pieces are its payload, and `scales` lies elsewhere, as does
    the `whole` scale of scales.
    `patches` are added to its numbers when they are read.
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
        """True where its numbers are products with scales, which stand beside them or in their blocks."""
        return self.packing is not None or DTYPES[self.dtype].block > 1

    @property
    def as_it_lies(self) -> bool:
        """True where its numbers are the bytes on disk, in order."""
        return not (self.quantized or self.patches or self.transposed)

    @property
    def stored_as(self) -> str:
        """The dtype on disk, and what its scales cover where it has some: `int8 row`."""
        return self.dtype if self.packing is None else f"{self.dtype} {self.packing.scale}"

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        beside = sum(ref.nbytes for ref in (self.scales, self.whole) if ref is not None)
        return DTYPES[self.dtype].nbytes(self.numel) + beside


@dataclass(frozen=True, slots=True)
class Mark:
    """What a denoiser's files say of its network that its tensors do not: another network has the same ones.

    `name` is its own, in letters that a file name takes. It is said `by` the header, or by the config.json of a scheme,
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

    `tied` are further copies of a tensor on disk: (copy, canonical name); `dead` what no client reads: (tensor, why).
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
    """A LoRA that is merged into one component: how many of its tensors it changes, and by which ranks.

    `unmatched` are the keys that name nothing there; `evidence` says what told its component, where the user did not.
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
class Model:
    """A checkpoint whose every tensor has a role. `evidence` says what told each expert's role.

    Where its denoisers have a mark, the family is that of the tensors alone, and there is no release.

    `loras` are those that its tensors' patches come from.
    `loras` are those that its tensors' patches come from. `skipped` are weight files beside it that are no network of
    any family, each with what is known of it; they are no parts of the checkpoint.
    """

    checkpoint: Checkpoint
    family: Family
    components: Mapping[str, Component]
    release: Release | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def mark(self) -> Mark | None:
        """What its denoisers say that they are; None where they are what their tensors tell."""
        return next((component.mark for component in self.components.values() if component.mark), None)

    @property
    def title(self) -> str:
        """Its own name, or its family's."""
        return self.family.name if self.mark is None else self.mark.name

    @property
    def absent(self) -> tuple[str, ...]:
        """The family's components that it lacks; none where it is another network, of which nobody knows."""
        if self.mark is not None:
            return ()
        return tuple(name for name in self.family.components if name not in self.components)

    @property
    def tensors(self) -> Mapping[str, ModelTensor]:
        return {name: tensor for part in self.components.values() for name, tensor in part.tensors.items()}
