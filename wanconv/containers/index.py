"""The `*.index.json` of a sharded model: which shard holds which tensor. Read strictly, for it says what to open."""

import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from wanconv.containers.files import Header, regular_file, strict_json, what_is
from wanconv.errors import InputError
from wanconv.types.figures import count, exact_size, size
from wanconv.types.tensors import TensorRef
from wanconv.types.text import printable

_MAX_INDEX = 64_000_000  # bytes
_AGAIN = "download the index again"
_SAME_REVISION = "download the shards and the index again, from the same revision"


@dataclass(frozen=True, slots=True)
class Index:
    """`shards` are file names in the index's folder, sorted, with the tensors that each must hold."""

    path: Path
    shards: Mapping[str, Set[str]]
    total_size: object


def check_size(path: Path, nbytes: int, hint: str) -> None:
    """Raises InputError for a file that is too large to be an index."""
    if nbytes > _MAX_INDEX:
        raise InputError(f"{path} has {exact_size(nbytes)}; an index has at most {size(_MAX_INDEX)}", hint)


def read_index(path: Path, extensions: tuple[str, ...]) -> Index:
    """Returns an index whose shards are plain names of one of the `extensions`; raises InputError for any other."""
    with regular_file(path) as file:
        check_size(path, file.size, _AGAIN)
        raw = file.read(0, file.size)
        known = what_is(file)
    if known and "JSON" not in known[0]:
        raise InputError(f"{path} is {known[0]}, not an index", known[1])
    index = strict_json(raw, str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(index, dict) or not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path} has no weight_map from tensor names to shards", _AGAIN)
    metadata = index.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InputError(f"{path} has a metadata field that is not a JSON object", _AGAIN)
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(_shard_name(shard, path, extensions), set()).add(name)
    if len({os.path.splitext(shard)[1] for shard in shards}) > 1:
        raise InputError(f"{path} lists shards of more than one format", "give an index of one of them")
    return Index(path, dict(sorted(shards.items())), metadata.get("total_size"))


def check_shard(path: Path, promised: Set[str], header: Header) -> None:
    """Raises InputError unless the shard holds exactly the tensors that its index promises."""
    missing, extra = sorted(promised - header.tensors.keys()), sorted(header.tensors.keys() - promised)
    if missing or extra:
        details = [*(f"missing: {name}" for name in missing), *(f"not listed: {name}" for name in extra)]
        message = f"{path} and its index disagree: {count(len(missing), 'tensor')} missing, {len(extra)} not listed"
        raise InputError(message, _SAME_REVISION, details)


def check_total_size(index: Index, tensors: Iterable[TensorRef]) -> None:
    """Raises InputError unless total_size, if there is one, is the tensors' bytes or the files' bytes."""
    if index.total_size is None:
        return
    tensor_bytes = sum(tensor.nbytes for tensor in tensors)
    file_bytes = sum((index.path.parent / shard).stat().st_size for shard in index.shards)  # LightX2V's way
    if type(index.total_size) is not int or index.total_size not in (tensor_bytes, file_bytes):
        total = index.total_size
        promised = exact_size(total) if type(total) is int else f"{total!r} bytes"
        raise InputError(
            f"{index.path} promises a total_size of {promised}; "
            f"its tensors have {exact_size(tensor_bytes)}, its files {exact_size(file_bytes)}",
            "remove total_size from the index, which no loader reads: what changed the tensors left it as it was",
        )


def _shard_name(value: object, index: Path, extensions: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise InputError(f"{index} maps a tensor to {value!r} instead of a file name", _AGAIN)
    if not printable(value) or "/" in value or "\\" in value or value.startswith("."):
        raise InputError(
            f"{index} names the shard {value!r}, which is not a plain file name", "do not trust this download"
        )
    if not value.endswith(extensions):
        raise InputError(
            f"{index} names the shard {value!r}, which is not a weight file", f"shards end in {', '.join(extensions)}"
        )
    return value
