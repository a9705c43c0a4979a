"""From tensors to files: shards, headers, archives and the index, with every payload's place."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from wanconv.containers import gguf
from wanconv.containers.archive import Archive
from wanconv.containers.files import Entry
from wanconv.containers.pth import build_archive
from wanconv.containers.safetensors import build_header
from wanconv.containers.writer import Image, Payload
from wanconv.layouts import Place
from wanconv.types.dtypes import DTYPES
from wanconv.types.tensors import Container, Shape

_PLAIN = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor's place in an output file: `name` is its name in the file, `key` is unique in the plan.

    One that is `attached` to another follows it into its shard: scales, or a `constant`, whose bytes are known already.
    """

    key: str
    name: str
    dtype: str
    shape: Shape
    attached: bool = False
    constant: bytes | None = None

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].nbytes(prod(self.shape))

    @property
    def entry(self) -> Entry:
        return Entry(self.name, self.dtype, self.shape, self.nbytes)


def not_held(container: Container, dtype: str) -> str:
    """Returns why a file of this kind cannot hold a dtype; empty if it can."""
    if container == "gguf":
        return "" if dtype in gguf.TYPES else f"GGUF files hold {', '.join(gguf.TYPES)} alone"
    return "" if DTYPES[dtype].code else f"only GGUF files hold {dtype}"


def to_json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def lay_out(
    place: Place, slots: Sequence[Slot], shard_nbytes: int | None, metadata: Mapping[str, str] = _PLAIN
) -> tuple[list[Image], dict[str, bytes]]:
    """Returns a component's files and, if there are several, their index (path -> bytes). `metadata` is in each."""
    path = f"{place.prefix}{place.stem}.{place.container}"
    if place.container == "pth":
        return [_archive(path, slots, build_archive([slot.entry for slot in slots]))], {}
    if place.container == "gguf":
        return [_archive(path, slots, gguf.build_gguf([slot.entry for slot in slots], metadata))], {}
    shards = _shards(slots, shard_nbytes)
    if len(shards) == 1:
        return [_safetensors(path, slots, metadata)], {}
    names = [f"{place.stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    index = {
        "metadata": {"total_size": sum(slot.nbytes for slot in slots)},
        "weight_map": {slot.name: name for name, shard in zip(names, shards, strict=True) for slot in shard},
    }
    files = [_safetensors(place.prefix + name, shard, metadata) for name, shard in zip(names, shards, strict=True)]
    return files, {f"{place.prefix}{place.stem}.safetensors.index.json": to_json(index)}


def _shards(slots: Sequence[Slot], limit: int | None) -> list[list[Slot]]:
    shards: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if limit is not None and shards[-1] and not slot.attached and size + slot.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += slot.nbytes
    return shards


def _safetensors(path: str, shard: Sequence[Slot], metadata: Mapping[str, str]) -> Image:
    ordered = _ordered(shard)
    header = build_header([slot.entry for slot in ordered], metadata)
    payloads, literals, offset = [], [(0, header)], len(header)
    for slot in ordered:
        if slot.constant is None:
            payloads.append(Payload(slot.key, offset, slot.nbytes))
        else:
            literals.append((offset, slot.constant))
        offset += slot.nbytes
    return Image(path, offset, tuple(literals), tuple(payloads))


def _ordered(shard: Sequence[Slot]) -> list[Slot]:
    """Returns the tensors in the file's order: each at a multiple of its element size, as safetensors requires.

    They keep their order, in which the source's files are needed one after the other, with constants last. If that
    misaligns one, wide elements come first, then scales, which are measured with their payloads. If the payloads would
    misalign the scales, these are sorted like other wide elements.
    """
    in_turn = sorted(shard, key=lambda slot: slot.constant is not None)
    ends = accumulate(slot.nbytes for slot in in_turn)
    if not any(end % DTYPES[slot.dtype].itemsize for end, slot in zip(ends, in_turn[1:], strict=False)):
        return in_turn
    wide_first = sorted(shard, key=lambda slot: -DTYPES[slot.dtype].itemsize)
    late = sorted(wide_first, key=lambda slot: (slot.attached, slot.constant is not None))
    odd = sum(slot.nbytes for slot in shard if not slot.attached) % DTYPES["fp32"].itemsize
    return wide_first if odd else late


def _archive(path: str, slots: Sequence[Slot], archive: Archive) -> Image:
    payloads = tuple(Payload(slot.key, archive.payloads[slot.name], slot.nbytes) for slot in slots)
    return Image(path, archive.size, archive.literals, payloads)
