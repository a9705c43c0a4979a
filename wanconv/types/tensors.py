"""Tensors on disk: the place of each, their files, and the checkpoint of these files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

Container = Literal["safetensors", "pth", "gguf"]

Shape = tuple[int, ...]

CONTAINERS: Mapping[str, Container] = {  # by the suffix of a weight file
    ".safetensors": "safetensors",
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), "pth"),
    ".gguf": "gguf",
}


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
        """Returns the payload; raises OSError if the file ends early."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            payload = stream.read(self.nbytes)  # one system call may return less
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
    """The content on disk, by on-disk name; `sidecars` (configs, tokenizers, licences) are relative to the root.

    `unmatched` are the globs of `exclude` that matched no file.
    """

    root: Path
    parts: tuple[Part, ...]
    sidecars: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Every file that holds weights, once, sorted."""
        return tuple(sorted({file for part in self.parts for file in part.files}))
