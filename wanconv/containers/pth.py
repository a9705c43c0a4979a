"""The .pth file of torch.save, read and laid out without torch: a zip archive of a pickle and one record per storage.

    <folder>/data.pkl      the state dict; its tensors name a storage
    <folder>/byteorder     "little"
    <folder>/data/0, 1 …   the storages' bytes, uncompressed
    <folder>/version       "3"

Format: torch/serialization.py, `_save` and `_load`.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from wanconv.containers import archive
from wanconv.containers.archive import Archive, Record
from wanconv.containers.files import (
    MAX_TENSORS,
    NAMED_WRONGLY,
    SAVED_WHOLE,
    Entry,
    Header,
    OpenFile,
    check_name,
    regular_file,
    what_is,
)
from wanconv.containers.pickled import TORCH_DTYPES, StoredTensor, contiguous_stride, dump, parse
from wanconv.containers.safetensors import MAX_HEADER, numel
from wanconv.errors import InputError
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import exact_size
from wanconv.types.tensors import TensorRef

_MAX_PICKLE = 64_000_000  # bytes; that of UMT5-xxl has 0.03 MB
_DAMAGED = "the file is damaged or was made to deceive: download it again from its source"
_TORCH_ERRORS = (  # errors of torch.load on a damaged file
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError, EOFError),
    pickle.UnpicklingError,
)
_RE_SAVE = "re-save it with a current torch: torch.save(state_dict, path)"


def read_header(path: Path) -> Header:
    """Returns the place of each tensor in a .pth; raises InputError unless it is a state dict of contiguous tensors."""
    with regular_file(path) as file:
        return header_of(file)


def header_of(file: OpenFile) -> Header:
    """Returns the header of an open file, as read_header does; reads none of the tensors' bytes."""
    path = file.path
    _check_is_zip(file)
    records = archive.read_records(file)
    folder = _folder(records, path)
    pickled = archive.read_literal(file, records[f"{folder}/data.pkl"], _MAX_PICKLE)
    order = records.get(f"{folder}/byteorder")
    if order is not None and archive.read_literal(file, order, limit=16) != b"little":
        raise InputError(f"{path} was saved on a big-endian machine", _RE_SAVE)
    stored = parse(pickled, path)
    if len(stored) > MAX_TENSORS:
        raise InputError(f"{path} lists {len(stored)} tensors; at most {MAX_TENSORS} are read", SAVED_WHOLE)
    tensors = [_locate(name, tensor, records, folder, path) for name, tensor in stored.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_overlaps(tensors, path)
    unused = records.keys() - {f"{folder}/data/{tensor.storage.key}" for tensor in stored.values()}
    if odd := sorted(name for name in unused if name.startswith(f"{folder}/data/")):
        raise InputError(f"{path} holds {len(odd)} records that no tensor uses, the first {odd[0]}", _RE_SAVE)
    table = [(tensor.name, tensor.dtype, tensor.shape, tensor.offset) for tensor in tensors]
    digest = hashlib.sha256(pickled + json.dumps(table).encode()).hexdigest()
    return Header({tensor.name: tensor for tensor in tensors}, {}, digest)


def build_archive(entries: Sequence[Entry]) -> Archive:
    """Returns the layout of a .pth that torch.load reads as an OrderedDict of these tensors; its payloads are theirs.

    The same entries give the same bytes under every version of torch, since torch is not used.
    """
    records: list[tuple[str, bytes | int]] = [("archive/data.pkl", dump(entries)), ("archive/byteorder", b"little")]
    records += [(f"archive/data/{key}", entry[3]) for key, entry in enumerate(entries)]
    layout = archive.lay_out([*records, ("archive/version", b"3\n")])
    payloads = {entry[0]: layout.payloads[f"archive/data/{key}"] for key, entry in enumerate(entries)}
    return Archive(layout.literals, payloads, layout.size)


def confirm(path: Path, tensors: Mapping[str, TensorRef]) -> None:
    """Raises InputError unless torch, too, finds these names, shapes, dtypes and places in the file.

    A crafted file can make two readers of one format disagree; this check runs before any payload is read.
    """
    import torch  # slow to import, and only needed before bytes are read

    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _TORCH_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is refused by torch: {reason}", _RE_SAVE) from error
    if isinstance(loaded, dict) and len(loaded) == 1 and isinstance(next(iter(loaded.values())), dict):
        (loaded,) = loaded.values()
    if not isinstance(loaded, dict) or loaded.keys() != tensors.keys():
        raise InputError(f"{path}: torch finds other tensors in it", _DAMAGED)
    torch_names = {name: torch_name for name, torch_name, _ in TORCH_DTYPES}
    bases = set()  # the file's start in memory, computed from each tensor
    for name, tensor in tensors.items():
        found = loaded[name]
        if not isinstance(found, torch.Tensor):
            raise InputError(f"{path}: torch finds no tensor under {name}", _DAMAGED)
        if tuple(found.shape) != tensor.shape or str(found.dtype) != f"torch.{torch_names[tensor.dtype]}":
            raise InputError(f"{path}: torch finds {found.dtype} {list(found.shape)} under {name}", _DAMAGED)
        if tensor.nbytes:
            bases.add(found.data_ptr() - tensor.offset)
    if len(bases) > 1:
        raise InputError(f"{path}: torch finds its tensors at other places in the file", _DAMAGED)


def _check_is_zip(file: OpenFile) -> None:
    head = file.read(0, min(9, file.size))
    if head.startswith(b"PK\3\4"):
        return
    nbytes = int.from_bytes(head[:8], "little")
    if head[8:] == b"{" and nbytes <= MAX_HEADER:
        raise InputError(f"{file.path} is a safetensors file, not a .pth", "rename it to end in .safetensors")
    what, hint = what_is(file) or ("none of the formats that wanconv knows", NAMED_WRONGLY)
    why = "which wanconv does not read" if "torch" in what else "not a torch file"
    raise InputError(f"{file.path} is {what}, {why}", hint)


def _folder(records: Mapping[str, Record], path: Path) -> str:
    """Returns the one folder of all records; its name is the saver's choice."""
    folders = {name.partition("/")[0] for name in records}
    folder = next(iter(folders), "")
    if len(folders) != 1 or f"{folder}/data.pkl" not in records:
        raise InputError(f"{path} is a zip archive, but not one that torch.save wrote: it has no data.pkl", _RE_SAVE)
    if f"{folder}/constants.pkl" in records:
        raise InputError(f"{path} is a TorchScript program, not a state dict", _RE_SAVE)
    if min(record.start for record in records.values()):
        raise InputError(f"{path} has bytes before its first record", _DAMAGED)
    return folder


def _locate(name: str, tensor: StoredTensor, records: Mapping[str, Record], folder: str, path: Path) -> TensorRef:
    check_name(name, path)
    where = f"{path}: tensor {name}"
    record = records.get(f"{folder}/data/{tensor.storage.key}")
    if record is None:
        raise InputError(f"{where} has no record data/{tensor.storage.key}", _DAMAGED)
    if record.nbytes != tensor.storage.nbytes:
        message = (
            f"{where}: its storage has {exact_size(tensor.storage.nbytes)}, the record {exact_size(record.nbytes)}"
        )
        raise InputError(message, _DAMAGED)
    itemsize = DTYPES[tensor.dtype].itemsize
    start, nbytes = tensor.start * itemsize, numel(tensor.shape, where) * itemsize
    if nbytes and not _is_contiguous(tensor):
        message = f"{where} is not contiguous: shape {list(tensor.shape)}, strides {list(tensor.stride)}"
        raise InputError(message, "re-save it with .contiguous() on each tensor")
    if nbytes and start + nbytes > record.nbytes:
        raise InputError(f"{where} reaches beyond the end of its record, at byte {start + nbytes}", _DAMAGED)
    return TensorRef(name, tensor.dtype, tensor.shape, path, record.offset + (start if nbytes else 0), nbytes)


def _is_contiguous(tensor: StoredTensor) -> bool:
    expected = contiguous_stride(tensor.shape)
    return all(
        size == 1 or step == want for size, step, want in zip(tensor.shape, tensor.stride, expected, strict=True)
    )


def _check_overlaps(tensors: Sequence[TensorRef], path: Path) -> None:
    """Raises InputError for tensors that share some of their bytes. Tied tensors share all: they are valid."""
    for before, after in pairwise(tensors):
        same = (before.offset, before.nbytes) == (after.offset, after.nbytes)
        if after.offset < before.offset + before.nbytes and not same:
            raise InputError(
                f"{path}: tensors {before.name} and {after.name} share some of their bytes",
                "re-save it with .clone() on each tensor",
            )
