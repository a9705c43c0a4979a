"""A model on disk as the engine sees it: canonical names, decoded values, and a bound on the memory.

Blocks are used in turn, over and over. The first ones that fit stay in memory, and the others are read each time: for
a cycle, no policy keeps more, and keeping the latest would keep nothing. A GPU computes while the next block is read;
on a CPU that would cost a second block's memory, and the cores are busy.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from wanconv.quantization.codecs import Codecs
from wanconv.quantization.plain import TORCH_DTYPES, decode
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import Model, ModelTensor
from wanconv.types.tensors import Shape
from wanconv.weights.reader import Reader, Sources, read_scales

Loaded = tuple[dict[str, Tensor], int]  # tensors by name, and the number of bytes read for them


class ModelWeights:
    """A WeightSource (engine/weights.py) on a model's files. `read_nbytes` counts what was read so far.

    `ahead` reads the next block while the caller computes with the last one; by default, on a GPU only.
    """

    def __init__(self, model: Model, memory_nbytes: int, device: torch.device, ahead: bool | None = None) -> None:
        self.model = model
        self.read_nbytes = 0
        self._left = memory_nbytes
        self._device = device
        self._kept: dict[tuple[str, str], Mapping[str, Tensor]] = {}
        self._sources = Sources()
        self._below = {name: _prefixes(component.tensors) for name, component in model.components.items()}
        ahead = device.type == "cuda" if ahead is None else ahead
        self._reader = ThreadPoolExecutor(1) if ahead else None
        self._coming: dict[tuple[str, str], Future[Loaded]] = {}

    def __enter__(self) -> "ModelWeights":
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.shutdown()
        self._coming.clear()
        self._kept.clear()
        self._sources.close()

    def tensors(self, component: str, prefix: str) -> Mapping[str, Tensor]:
        found = self._kept.get((component, prefix))
        if found is None:
            coming = self._coming.pop((component, prefix), None)
            found, read_nbytes = self._load(component, prefix) if coming is None else coming.result()
            self.read_nbytes += read_nbytes
            nbytes = sum(tensor.nbytes for tensor in found.values())
            if nbytes <= self._left:
                self._left -= nbytes
                self._kept[component, prefix] = found
        self._read_ahead(component, prefix)
        return found

    def _load(self, component: str, prefix: str) -> Loaded:
        wanted = self._below[component][prefix]
        return {name: self._read(tensor) for name, tensor in wanted.items()}, sum(one.nbytes for one in wanted.values())

    def _read_ahead(self, component: str, prefix: str) -> None:
        """Begins to read the block after `prefix`, one at a time and only if it is not in memory."""
        parent, _, number = prefix.rpartition(".")
        if self._reader is None or self._coming or not number.isdigit():
            return
        following = f"{parent}.{int(number) + 1}"
        if following in self._below[component] and (component, following) not in self._kept:
            self._coming[component, following] = self._reader.submit(self._load, component, following)

    def release(self, component: str) -> None:
        """Drops a component's cached weights once it is not needed again, which frees the memory for the next one."""
        for key in [key for key in self._kept if key[0] == component]:
            self._left += sum(tensor.nbytes for tensor in self._kept.pop(key).values())

    def rows(self, component: str, name: str, indices: Tensor) -> Tensor:
        tensor = self.model.components[component].tensors[f"{component}/{name}"]
        columns = tensor.shape[1]
        reader = Reader(self._sources)
        gathered = [reader.values(tensor, row * columns, columns).clone() for row in indices.flatten().tolist()]
        self.read_nbytes += len(gathered) * DTYPES[tensor.dtype].nbytes(columns)
        values = torch.stack(gathered).view(*indices.shape, columns)
        return _decoded(values).to(self._device)

    def shape(self, component: str, name: str) -> Shape:
        return self.model.components[component].tensors[f"{component}/{name}"].shape

    def _read(self, tensor: ModelTensor) -> Tensor:
        codecs = Codecs()
        payload = torch.empty(
            DTYPES[tensor.dtype].nbytes(tensor.numel) // TORCH_DTYPES[tensor.dtype].itemsize,
            dtype=TORCH_DTYPES[tensor.dtype],
        )
        if tensor.numel:
            self._sources.read_elements(tensor, 0, payload.view(torch.uint8).numpy().data)
        scales = read_scales(self._sources, tensor, codecs)  # invalid ones, too: what a client makes of them is judged
        columns = tensor.shape[-1] if tensor.shape else 1
        values = codecs.of(tensor.dtype, tensor.packing).decode(payload, scales, 0, columns)
        values = _decoded(values).to(self._device)
        return values.view(tensor.shape[::-1]).t() if tensor.transposed else values.view(tensor.shape)


def _decoded(values: Tensor) -> Tensor:
    """Returns the numbers of plain fp8 in fp16, which holds them all: E5M2 is its upper half, E4M3 is narrower."""
    return decode(values, torch.float16) if values.is_floating_point() and values.itemsize == 1 else values


def _prefixes(tensors: Mapping[str, ModelTensor]) -> dict[str, dict[str, ModelTensor]]:
    """Returns prefix -> relative name -> tensor, for every prefix that ends at a dot, and for whole names."""
    below: dict[str, dict[str, ModelTensor]] = {}
    for full, tensor in tensors.items():
        name = full.partition("/")[2]
        segments = name.split(".")
        for length in range(1, len(segments) + 1):
            below.setdefault(".".join(segments[:length]), {})[name] = tensor
    return below


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A candidate and the reference that it is compared with; there is none if safety alone is asked for."""

    candidate: ModelWeights
    reference: ModelWeights | None

    @property
    def models(self) -> list[ModelWeights]:
        """Both, the reference first."""
        return [weights for weights in (self.reference, self.candidate) if weights is not None]

    def having(self, component: str) -> list[ModelWeights]:
        """Returns those that have a component, the reference first."""
        return [weights for weights in self.models if component in weights.model.components]

    def compares(self, component: str) -> bool:
        return len(self.having(component)) == 2
