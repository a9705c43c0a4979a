"""What a layout says: where a client looks for each component, and what its loader demands of the numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from wanconv.tensors import Model, Scheme

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a component's weights go: `stem` is the file name without its suffix."""

    folder: str
    stem: str
    container: Literal["safetensors", "pth"] = "safetensors"

    @property
    def prefix(self) -> str:
        return f"{self.folder}/" if self.folder else ""


@dataclass(frozen=True, slots=True)
class Override:
    """Tensors that a loader needs in another format than a recipe may choose; `keep` is never overridden.

    `unless_exact`: only where the chosen format would lose something of the source.
    """

    match: str
    allowed: tuple[str, ...]
    instead: str
    reason: str
    unless_exact: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and files as one client wants them.

    `places` maps a component, or `<component>:<architecture>` where file names differ, to its place; `folders` maps a
    group of sidecars to its folder. `documents` derives the JSON files from a model (path -> value); `derived` are
    globs of files that such documents replace when a model comes from this layout. `coarse` are formats that the client
    loads but gains nothing from, `refused` families without a home, each with a sentence. `loader` is the code that was
    read.
    """

    name: str
    summary: str
    scheme: Scheme
    loader: str
    places: Mapping[str, Place]
    folders: Mapping[str, str]
    documents: Callable[[Model], Mapping[str, Json]]
    derived: tuple[str, ...]
    shard_nbytes: int
    overrides: tuple[Override, ...] = ()
    coarse: Mapping[str, str] | None = None
    refused: Mapping[str, str] | None = None

    def place(self, component: str, architecture: str) -> Place | None:
        return self.places.get(f"{component}:{architecture}") or self.places.get(component)
