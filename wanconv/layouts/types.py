"""The data of a layout: where a client looks for each component, and what its loader needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wanconv.models import DENOISERS
from wanconv.types.architecture import Family, Kind, Scheme
from wanconv.types.documents import JsonMapping
from wanconv.types.model import MarkKind, Model, ModelTensor
from wanconv.types.names import matches
from wanconv.types.packing import Packing
from wanconv.types.tensors import Container, Shape


@dataclass(frozen=True, slots=True)
class Place:
    """Where a component's weights go: `stem` is the file name without its suffix, `{family}` in it the family's."""

    folder: str
    stem: str
    container: Container = "safetensors"

    @property
    def prefix(self) -> str:
        return f"{self.folder}/" if self.folder else ""


@dataclass(frozen=True, slots=True)
class Override:
    """Tensors, of some or all `kinds`, that a loader needs in another format than a recipe may choose.

    `unless_exact`: only if the chosen format would lose something of the source. `families` is a glob. `kept` says
    that `keep` is overridden, too: the client could not read the file.
    """

    match: str
    allowed: tuple[str, ...]
    instead: str
    reason: str
    unless_exact: bool = False
    families: str = "**"
    kinds: tuple[Kind, ...] = ()
    kept: bool = False

    def is_about(self, tensor: ModelTensor) -> bool:
        return (not self.kinds or tensor.role.kind in self.kinds) and matches(self.match, tensor.name)


@dataclass(frozen=True, slots=True)
class Together:
    """Linear weights that a loader reads in one format only: those of `follow` are stored like those of `lead`, if
    these have scales; no others may have any."""

    lead: str
    follow: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a component as its file will hold it: `name` is the client's name for it without scales."""

    name: str
    dtype: str
    shape: Shape
    packing: Packing | None


@dataclass(frozen=True, slots=True)
class Marker:
    """A tensor by which a client knows that a file's weights may have scales. Its values are zeros, without meaning.

    `shapes` are by component.
    """

    name: str
    dtype: str
    shapes: Mapping[str, Shape]


def plain_metadata(component: str, tensors: Sequence[Stored]) -> Mapping[str, str]:
    """Returns the metadata in the header of every file."""
    return {"format": "pt"}


def no_additions(tensors: Sequence[Stored]) -> JsonMapping:
    return {}


def no_settings(model: Model, tensors: Mapping[str, Sequence[Stored]]) -> Mapping[str, JsonMapping]:
    return {}


@dataclass(frozen=True, slots=True)
class Layout:
    """The names and files that one client reads.

    `places` maps a component, or `<component>:<architecture>` if file names differ, to its place; `folders` maps a
    group of sidecars to its folder. `documents` derives the JSON files from a model (path -> value); `derived` are
    globs of files that these documents replace when a model comes from this layout. `coarse` are formats that a client
    loads but gains nothing from, `refused` families without a home, each with a sentence. `loader` is the code that
    these facts come from. `schemes` are the naming schemes of components that differ from `scheme`. Without
    `shard_nbytes`, a component is one file.

    Of scales: `packings` are all that the loader reads, for the linear weights of the components `scaled`; `unscaled`
    says why it reads no others, `unread` why it refuses plain dtypes. `metadata` is what the header of a component's
    files says (and `restated` the part that tensors also say, so that third-party files may lack it), `config` what its
    config.json says besides, `settings` further JSON files (path -> value). `marker` stands in every file that has
    scales; `caution` is a warning for their user. `attached` are sidecars that the client reads as tensors:
    `<component>:<architecture>` -> (tensor, file name). `numerics` is the client's precision
    (engine/numerics.py), `since` its first version known to read the layout without scales. `marks` are the ways
    in which a model may say what it is (Mark.by) that the client reads and the layout keeps.
    """

    name: str
    summary: str
    scheme: Scheme
    loader: str
    places: Mapping[str, Place]
    folders: Mapping[str, str]
    documents: Callable[[Model], Mapping[str, JsonMapping]]
    derived: tuple[str, ...]
    shard_nbytes: int | None
    overrides: tuple[Override, ...] = ()
    coarse: Mapping[str, str] | None = None
    refused: Mapping[str, str] | None = None
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    packings: tuple[Packing, ...] = ()
    scaled: tuple[str, ...] = DENOISERS
    unscaled: str = ""
    unread: Mapping[str, str] = field(default_factory=dict)
    together: Together | None = None
    metadata: Callable[[str, Sequence[Stored]], Mapping[str, str]] = plain_metadata
    restated: tuple[str, ...] = ()
    config: Callable[[Sequence[Stored]], JsonMapping] = no_additions
    settings: Callable[[Model, Mapping[str, Sequence[Stored]]], Mapping[str, JsonMapping]] = no_settings
    attached: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    marker: Marker | None = None
    caution: str = ""
    numerics: str = "official"
    since: str = ""
    marks: tuple[MarkKind, ...] = ()

    def scheme_of(self, component: str, architecture: str) -> Scheme:
        return self.schemes.get(f"{component}:{architecture}") or self.schemes.get(component, self.scheme)

    def attached_to(self, component: str, architecture: str) -> tuple[str, str] | None:
        return self.attached.get(f"{component}:{architecture}")

    def packing(self, name: str, scale: str) -> Packing | None:
        """Returns how the client stores a format with this scale (`auto`: the finest it reads); None if it does not."""
        fits = (each for each in self.packings if each.format == name and scale in ("auto", each.scale))
        return next(fits, None)

    def overrides_for(self, family: Family) -> list[Override]:
        return [override for override in self.overrides if matches(override.families, family.name)]

    def place(self, component: str, architecture: str) -> Place | None:
        return self.places.get(f"{component}:{architecture}") or self.places.get(component)
