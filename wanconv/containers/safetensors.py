"""The safetensors header, read strictly and written: a check before the library, which accepts duplicate keys and more.

A file is `N` (8 bytes, little-endian), `N` bytes of JSON, and the tensors' bytes, which the header must cover exactly.
Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard

from wanconv.containers.files import (
    MAX_TENSORS,
    NAMED_WRONGLY,
    TOO_MUCH,
    Entry,
    Header,
    OpenFile,
    check_name,
    regular_file,
    strict_json,
    what_is,
)
from wanconv.errors import InputError
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import exact_size
from wanconv.types.tensors import Shape, TensorRef
from wanconv.types.text import printable

MAX_HEADER = 25_000_000  # bytes; a real Wan shard has 0.2 MB
_MAX_ELEMENTS = 2**60  # far above any disk, far below the overflow of 64-bit counters
_FIELDS = {"dtype", "shape", "data_offsets"}
_DAMAGED = "the file is damaged or was made to deceive: download it again from its source"
_AGAIN = "download the file again"
_METADATA = "re-save it with the safetensors library, whose metadata are strings"
_CODES = {dtype.code: dtype for dtype in DTYPES.values() if dtype.code}


def read_header(path: Path) -> Header:
    """Returns the header of a safetensors file; raises InputError for everything that the format does not allow."""
    with regular_file(path) as file:
        return header_of(file)


def header_of(file: OpenFile) -> Header:
    """Returns the header of an open file, as read_header does; reads nothing behind it."""
    raw, path, size = _raw_header(file), file.path, file.size
    if raw[8:9] != b"{" or not raw.rstrip(b" ").endswith(b"}"):
        raise InputError(f"{path}: its header is not a JSON object padded with spaces", _DAMAGED)
    entries = strict_json(raw[8:], f"{path}: its header")
    if not isinstance(entries, dict):
        raise InputError(f"{path}: its header is not a JSON object", _DAMAGED)
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    if len(entries) > MAX_TENSORS:
        raise InputError(f"{path} lists {len(entries)} tensors; at most {MAX_TENSORS} are read", TOO_MUCH)
    tensors = [_tensor(name, entry, path, len(raw)) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(tensors, path, len(raw), size)
    return Header({tensor.name: tensor for tensor in tensors}, metadata, hashlib.sha256(raw).hexdigest())


def build_header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """Returns the header of a file whose tensors lie one after the other in the order given.

    The JSON is padded with spaces so that the payload starts at a multiple of 8.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, dtype, shape, nbytes in entries:
        assert name not in header, f"{name} stands twice"
        header[name] = {"dtype": DTYPES[dtype].code, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _raw_header(file: OpenFile) -> bytes:
    head = file.read(0, min(9, file.size))
    nbytes = int.from_bytes(head[:8], "little")
    if head[8:] == b"{" and nbytes <= MAX_HEADER and 8 + nbytes <= file.size:
        return file.read(0, 8 + nbytes)
    if not (head[8:] == b"{" and nbytes <= MAX_HEADER) and (known := what_is(file)):
        raise InputError(f"{file.path} is {known[0]}, not a safetensors file", known[1])
    if len(head) < 9:
        raise InputError(f"{file.path} has {exact_size(file.size)}, too few for a safetensors file", _AGAIN)
    if nbytes > MAX_HEADER:
        raise InputError(
            f"{file.path} is not a valid safetensors file: "
            f"its first 8 bytes announce a header of {exact_size(nbytes)}; "
            f"at most {exact_size(MAX_HEADER)} are read",
            NAMED_WRONGLY,
            TOO_MUCH,
        )
    if head[8:] == b"{":
        message = (
            f"{file.path} is cut off: its header promises {exact_size(nbytes)}, the file has {exact_size(file.size)}"
        )
        raise InputError(message, _AGAIN)
    raise InputError(f"{file.path} is not a valid safetensors file: its header does not start with '{{'", NAMED_WRONGLY)


def _metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: its __metadata__ is not an object of strings", _METADATA)
    for key, text in value.items():
        if not isinstance(text, str) or not printable(key) or any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError(f"{path}: its __metadata__ holds something other than text under {key!r}", _METADATA)
    return value


def _tensor(name: str, entry: object, path: Path, start: int) -> TensorRef:
    check_name(name, path)
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise InputError(f"{where} does not have exactly the fields dtype, shape and data_offsets", _DAMAGED)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _CODES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InputError(f"{where} has the dtype {code!r}", f"wanconv reads {', '.join(_CODES)}")
    if not _is_counts(shape):
        raise InputError(f"{where} has the shape {shape!r}", _DAMAGED)
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{where} has the data_offsets {offsets!r}", _DAMAGED)
    begin, end = offsets
    nbytes = numel(shape, where) * dtype.itemsize
    if nbytes != end - begin:
        needed, there = exact_size(nbytes), exact_size(end - begin)
        message = f"{where} of shape {shape} in {dtype.name} needs {needed}, its range has {there}"
        raise InputError(message, _DAMAGED)
    return TensorRef(name, dtype.name, tuple(shape), path, start + begin, nbytes)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def numel(shape: Shape | list[int], where: str) -> int:
    """Returns the number of elements; raises InputError if a 64-bit product, taken from the left, would overflow."""
    count = 1
    for size in shape:
        count *= size
        if count > _MAX_ELEMENTS or size > _MAX_ELEMENTS:
            raise InputError(f"{where} has the impossible shape {list(shape)}", _DAMAGED)
    return count


def _check_cover(tensors: list[TensorRef], path: Path, start: int, size: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise InputError(f"{path}: tensor {tensor.name} {what}, at byte {tensor.offset - start}", _DAMAGED)
        end += tensor.nbytes
    if end > size:
        message = f"{path} is cut off: its header promises {exact_size(end)}, the file has {exact_size(size)}"
        raise InputError(message, _AGAIN)
    if end < size:
        raise InputError(f"{path} has {exact_size(size - end)} after its last tensor", _DAMAGED)
