"""A checkpoint on disk as the engine's WeightSource, small and without cache, for tests of what the engine borrows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wanconv.containers import open_checkpoint
from wanconv.models import fill, identify
from wanconv.models.names import numbered
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.types.tensors import Shape


class FolderWeights:
    """Serves canonical names and notes what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.components = identify(open_checkpoint(folder)).components
        self.asked: list[str] = []

    def tensors(self, component: str, prefix: str) -> Mapping[str, Tensor]:
        self.asked.append(f"{component}/{prefix}")
        whole = f"{component}/{prefix}"
        names = [name for name in self.components[component].tensors if f"{name}.".startswith(f"{whole}.")]
        return {name.partition("/")[2]: self._read(component, name) for name in names}

    def rows(self, component: str, name: str, indices: Tensor) -> Tensor:
        self.asked.append(f"{component}/{name}{indices.tolist()}")
        return self._read(component, f"{component}/{name}")[indices]

    def shape(self, component: str, name: str) -> Shape:
        return self.components[component].tensors[f"{component}/{name}"].shape

    def names(self, component: str) -> dict[str, str]:
        """Returns canonical name -> name in transformers or diffusers."""
        found = self.components[component]
        rows = [(role, index, role.spellings["hub"]) for role, index in numbered(found.architecture, found.dims)]
        return {fill(role.name, index): fill(spelling.name, index) for role, index, spelling in rows if spelling}

    def config(self, component: str) -> dict[str, Any]:
        folder = self.folder / self.components[component].part.folder
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return config

    def _read(self, component: str, name: str) -> Tensor:
        tensor = self.components[component].tensors[name]
        (piece,) = tensor.pieces
        flat = torch.frombuffer(bytearray(piece.ref.read()), dtype=TORCH_DTYPES[tensor.dtype])
        return flat.view(tensor.shape)
