"""What a plan is: a step for every tensor, the tensors of every output file, and the other files."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wanconv.containers.writer import Image
from wanconv.layouts import Layout, Stored
from wanconv.planning.files import Slot
from wanconv.recipe import Recipe
from wanconv.report import Finding
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import Model, ModelTensor
from wanconv.types.packing import Packing


@dataclass(frozen=True, slots=True)
class Step:
    """One canonical tensor on its way: `format` is its format in the output, `dtype` the dtype on disk, `rule` the rule
    that decides.

    `fallback` is the format that an overflow leads to; `reason` is set if the format is not the rule's own;
    `packing` is how the client stores the scales, if the format has some, and `rounding` how they are found.
    """

    tensor: ModelTensor
    format: str
    dtype: str
    rule: int
    fallback: str | None = None
    reason: str = ""
    packing: Packing | None = None
    rounding: str = "nearest"

    @property
    def nbytes(self) -> int:
        """Bytes on disk: the payload and its scales."""
        payload = DTYPES[self.dtype].nbytes(self.tensor.numel)
        if self.packing is None:
            return payload
        constants = sum(len(content) for _, content in self.packing.constants)
        return payload + self.packing.scales_nbytes(self.tensor.shape) + constants

    @property
    def carried(self) -> bool:
        """True if the source's payload and scales are written unchanged: the formats agree; if the source has one
        scale for all rows, the target may repeat it for each row."""
        if self.tensor.patches:
            return False
        if DTYPES[self.dtype].blocked:
            return self.dtype == self.tensor.dtype
        ours, theirs = self.packing, self.tensor.packing
        if ours is None or theirs is None or ours.format != theirs.format:
            return False
        return ours.scale == theirs.scale or theirs.scale == "tensor"

    @property
    def label(self) -> str:
        """The format, what its scales cover, and the search that finds them, if any: `int8 row mse`."""
        if self.packing is None:
            return self.format
        searched = self.rounding != "nearest" and not self.carried
        return f"{self.format} {self.packing.scale}" + (f" {self.rounding}" if searched else "")


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an output file: filled by its steps one after the other, or with the scales of another one's step,
    or, if `whole`, with the scale that multiplies those."""

    slot: Slot
    steps: tuple[Step, ...]
    transposed: bool = False
    scales_of: Step | None = None
    whole: bool = False

    @property
    def step(self) -> Step:
        """The first step that fills it."""
        return self.scales_of or self.steps[0]


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of the output files: the steps by canonical name, the outputs by key.

    By component, `stored` are its tensors by their names without scales, `slots` all tensors of its files.
    """

    steps: dict[str, Step]
    outputs: dict[str, Output]
    stored: dict[str, Sequence[Stored]]
    slots: dict[str, Sequence[Slot]]
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will do: `documents` are derived files (path -> bytes), `copies` sidecars (path -> source).

    `notes` are about the request; they stay when it is made again with other fallbacks. `shard_nbytes` is the requested
    largest weight file, None if the layout decides.
    """

    model: Model
    recipe: Recipe
    layout: Layout
    images: tuple[Image, ...]
    outputs: Mapping[str, Output]
    documents: Mapping[str, bytes]
    copies: Mapping[str, Path]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...] = ()
    shard_nbytes: int | None = None

    @property
    def steps(self) -> Iterator[Step]:
        return (step for output in self.outputs.values() for step in output.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of the output on disk, without the manifest and the card."""
        copied = sum(path.stat().st_size for path in self.copies.values())
        return sum(image.nbytes for image in self.images) + sum(map(len, self.documents.values())) + copied

    @property
    def identity(self) -> str:
        """A digest of the plan: plans with equal identities write the same files from the same source bytes."""
        table = [
            [image.identity for image in self.images],
            {path: hashlib.sha256(content).hexdigest() for path, content in self.documents.items()},
            sorted(self.copies),
            [
                [
                    step.tensor.name,
                    step.format,
                    step.dtype,
                    step.packing and step.packing.scale,
                    step.rounding,
                    [[p.ref.name, p.start, p.count] for p in step.tensor.pieces],
                ]
                for step in self.steps
            ],
        ]
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()
