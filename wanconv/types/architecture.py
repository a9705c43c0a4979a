"""What networks and families are: roles, their names in each scheme, sizes.

Values are equal if their fields are; architectures and families are pickled as their names (`types/registry.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "conv", "norm", "embed", "modulation", "bias", "constant"]

Scheme = Literal["official", "hub", "comfyui"]


@dataclass(frozen=True, slots=True)
class Spelling:
    """A role's name in one naming scheme.

    `parts` of `of` equal row blocks of the named tensor hold the role (fused qkv: part 0 of 3 is q); `transposed` says
    that its two axes are swapped; `shape` overrides the role's shape if a scheme adds axes of length one.
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


@dataclass(frozen=True, slots=True)
class Role:
    """One row of a vocabulary: `{n}` counts blocks from 0, another letter another list (`{m}`: S2V's injectors).

    Dimensions are numbers, symbols (`d`), multiples (`6*d`) or fractions (`d/4`). A scheme that maps to None does not
    store the role (CLIP's text half in diffusers).
    """

    name: str
    kind: Kind
    shape: tuple[int | str, ...]
    spellings: Mapping[Scheme, Spelling | None]

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Dead:
    """A tensor that files of one scheme may hold and no client reads: it is left out of every output.

    `name` and `shape` are written as those of a Role; `why` says who ignores it.
    """

    scheme: Scheme
    name: str
    shape: tuple[int | str, ...]
    why: str

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The vocabulary of one network in every naming scheme that exists for it.

    `source` is where its table was read; `full` are the (largest) released sizes, `tiny` sizes for tests: symbols and
    counts, plus `heads` where the shapes do not show it. `config` says which of them a scheme's config.json states, as
    (key or product of keys, size). `dead` are further tensors without use, all or some of which a file may hold.
    `classes` are the names by which a config.json calls this network and no other.
    """

    name: str
    roles: tuple[Role, ...]
    source: str
    full: Mapping[str, int]
    tiny: Mapping[str, int]
    config: Mapping[Scheme, tuple[tuple[str, int | str], ...]]
    schemes: tuple[Scheme, ...] = ("official", "hub")
    dead: tuple[Dead, ...] = ()
    classes: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)


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


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model: which components it has (component name -> architecture) and how it samples.

    `boundary` is the timestep share from which the high-noise expert works; `shift` the sampler's default. `config_key`
    is the (key, value) of a denoiser's config.json by which the family is known if another one has the same networks.
    `breaks_in_fp16` is a sentence, for those whose denoiser must not be computed in fp16.
    """

    name: str
    components: Mapping[str, Architecture]
    model_type: str
    shift: float
    releases: tuple[Release, ...]
    boundary: float | None = None
    config_key: tuple[str, object] | None = None
    breaks_in_fp16: str = ""

    def __hash__(self) -> int:
        return hash(self.name)
