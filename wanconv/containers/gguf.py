"""The GGUF header, read strictly and written: little-endian, versions 2 and 3.

    "GGUF", u32 version, u64 tensor count, u64 metadata count
    metadata     each: name, u32 type, value
    tensors      each: name, u32 dimension count, u64 dimensions (innermost first), u32 type, u64 offset
    zero bytes up to a multiple of general.alignment (32 without it)
    payloads     one after the other at their offsets from here, each padded likewise, except perhaps the last one

A text is its u64 length and UTF-8; an array is a u32 type, a u64 length and the values.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; types: gguf-py 0.19 gguf/constants.py.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wanconv.containers.archive import Archive
from wanconv.containers.files import MAX_TENSORS, NAMED_WRONGLY, TOO_MUCH, Entry, Header, OpenFile, check_name, what_is
from wanconv.containers.safetensors import MAX_HEADER, numel
from wanconv.errors import InputError
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import exact_size
from wanconv.types.tensors import TensorRef
from wanconv.types.text import printable

# What is read and written, blocks last.
TYPES: Mapping[str, int] = {
    dtype.name: dtype.gguf[0]
    for dtype in sorted(DTYPES.values(), key=lambda dtype: (dtype.blocked, dtype.gguf or ()))
    if dtype.gguf
}
_DTYPES = {number: DTYPES[name] for name, number in TYPES.items()}
_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
_MAX_DIMENSIONS = 8
_MAX_TEXTS = 1 << 20  # most texts in an array; the longest vocabularies have a quarter of it
_AHEAD_NBYTES = 1 << 17
_DAMAGED = "the file is damaged or was made to deceive: download it again from its source"
_AGAIN = "download the file again"
_WRITER = "take another file: what wrote this one broke the format's rules"
_ALIGNMENT_KEY = "general.alignment"
_UINT32, _BOOL, _TEXT, _ARRAY = 4, 7, 8, 9
# fmt: off
_NUMBERS = {  # type → struct format
    0: "<B", 1: "<b", 2: "<H", 3: "<h", _UINT32: "<I", 5: "<i", 6: "<f", _BOOL: "<B", 10: "<Q", 11: "<q", 12: "<d",
}
_WRITTEN_AS_NUMBERS = ("general.file_type", "general.quantization_version")  # written as uint32; all others as text
_OTHERS = {  # types that are known but not read
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}
# fmt: on


def header_of(file: OpenFile) -> Header:
    """Returns the header of a GGUF file; raises InputError for everything that the format does not allow.

    Arrays in the metadata are skipped; nothing after the header is read.
    """
    path = file.path
    head = file.read(0, min(4, file.size))
    if head != _MAGIC:
        what, hint = what_is(file) or ("not a valid GGUF file: it does not start with 'GGUF'", NAMED_WRONGLY)
        raise InputError(f"{path} is {what}" + ("" if "GGUF" in what else ", not a GGUF file"), hint)
    cursor = _Cursor(file)
    cursor.take(4, "the magic")
    version = cursor.number("<I", "the version")
    if version not in (2, _VERSION):
        what = "a big-endian GGUF file" if version & 0xFFFF == 0 else f"a GGUF file of version {version}"
        raise InputError(f"{path} is {what}", "wanconv reads versions 2 and 3, little-endian")
    count, metadata_count = cursor.number("<Q", "the tensor count"), cursor.number("<Q", "the metadata count")
    if count > MAX_TENSORS:
        raise InputError(f"{path} lists {count} tensors; at most {MAX_TENSORS} are read", TOO_MUCH)
    metadata: dict[str, str] = {}
    seen: set[str] = set()
    for _ in range(metadata_count):
        key = cursor.text("a name in the metadata")
        if key in seen:
            raise InputError(f"{path}: its metadata holds {key!r} twice", _DAMAGED)
        if not key or not printable(key):
            raise InputError(f"{path}: its metadata holds the name {key!r}", _DAMAGED)
        seen.add(key)
        kind = cursor.number("<I", f"the type of {key}")
        if key == _ALIGNMENT_KEY and kind != _UINT32:
            raise InputError(f"{path}: its {key} is of type {kind}, not {_UINT32}", _DAMAGED)
        value = cursor.value(kind, key)
        if value is not None:
            metadata[key] = value
    alignment = _alignment(metadata, path)
    rows = [_row(cursor, path) for _ in range(count)]
    cursor.take(-cursor.at % alignment if count else 0, "the padding")
    tensors: dict[str, TensorRef] = {}
    for row in rows:
        if row.name in tensors:
            raise InputError(f"{path} lists the tensor {row.name} twice", _DAMAGED)
        tensors[row.name] = _tensor(row, path, cursor.at)
    _check_cover(list(tensors.values()), alignment, file, cursor.at)
    return Header(tensors, metadata, hashlib.sha256(cursor.seen).hexdigest())


def build_gguf(entries: Sequence[Entry], metadata: Mapping[str, str]) -> Archive:
    """Returns the layout of a file whose tensors lie one after the other in the order given.

    Metadata are written sorted by name: GGUF's own keys as numbers, all others as texts.
    """
    head = [_MAGIC, struct.pack("<IQQ", _VERSION, len(entries), len(metadata))]
    for key, value in sorted(metadata.items()):
        is_number = key in _WRITTEN_AS_NUMBERS
        raw = struct.pack("<I", int(value)) if is_number else _text(value)
        head += [_text(key), struct.pack("<I", _UINT32 if is_number else _TEXT), raw]
    offsets: dict[str, int] = {}
    end = 0
    for name, dtype, shape, nbytes in entries:
        assert name not in offsets, f"{name} stands twice"
        offsets[name] = end
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += [_text(name), dimensions, struct.pack("<IQ", TYPES[dtype], end)]
        end += nbytes + -nbytes % _ALIGNMENT
    header = b"".join(head)
    header += bytes(-len(header) % _ALIGNMENT)
    payloads = {name: len(header) + offset for name, offset in offsets.items()}
    paddings = [(payloads[name] + nbytes, bytes(-nbytes % _ALIGNMENT)) for name, _, _, nbytes in entries]
    literals = ((0, header), *((offset, padding) for offset, padding in paddings if padding))
    return Archive(literals, payloads, len(header) + end)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


class _Cursor:
    """Reads a header on demand: never past the file's end, and never more than a header may have."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._raw = bytearray()
        self.at = 0

    @property
    def seen(self) -> bytes:
        return bytes(self._raw[: self.at])

    def take(self, nbytes: int, what: str) -> bytes:
        path, end = self._file.path, self.at + nbytes
        if end > self._file.size:
            message = f"{path} is cut off inside its header: {what} ends at byte {end}, the file has {self._file.size}"
            raise InputError(message, _AGAIN)
        if end > MAX_HEADER:
            message = f"{path}: {what} ends at byte {end}; of a header at most {exact_size(MAX_HEADER)} are read"
            raise InputError(message, TOO_MUCH)
        if end > len(self._raw):
            known = len(self._raw)
            self._raw += self._file.read(known, min(max(end - known, _AHEAD_NBYTES), self._file.size - known))
        taken = bytes(self._raw[self.at : end])
        self.at = end
        return taken

    def number(self, code: str, what: str) -> int:
        (value,) = struct.unpack(code, self.take(struct.calcsize(code), what))
        return value  # type: ignore[no-any-return]  # struct knows no types; floats are only printed

    def text(self, what: str) -> str:
        raw = self.take(self.number("<Q", f"the length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self._file.path}: {what} is not UTF-8: {error.reason}", _DAMAGED) from error

    def value(self, kind: int, key: str) -> str | None:
        """Returns a value of the metadata as text, None for an array."""
        what = f"the value of {key}"
        if kind == _TEXT:
            return self.text(what)
        if kind == _ARRAY:
            self._pass_over(key)
            return None
        if kind not in _NUMBERS:
            raise InputError(f"{self._file.path}: {what} has the unknown type {kind}", _DAMAGED)
        return str(self.number(_NUMBERS[kind], what))

    def _pass_over(self, key: str) -> None:
        path, what = self._file.path, f"the array {key}"
        kind, count = self.number("<I", what), self.number("<Q", what)
        if kind in _NUMBERS:
            self.take(count * struct.calcsize(_NUMBERS[kind]), what)
            return
        if kind != _TEXT:
            message = f"{path}: {what} holds values of type {kind}, neither numbers nor texts"
            raise InputError(message, "write it again without this array: no client reads it")
        if count > _MAX_TEXTS:
            raise InputError(f"{path}: {what} has {count} texts; at most {_MAX_TEXTS} are read", TOO_MUCH)
        for _ in range(count):
            self.text(what)


class _Row(NamedTuple):
    """The header's entry of one tensor: `shape` outermost first, `offset` from the first payload."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _row(cursor: _Cursor, path: Path) -> _Row:
    name = cursor.text("a tensor's name")
    check_name(name, path)
    what = f"the row of tensor {name}"
    count = cursor.number("<I", what)
    if count > _MAX_DIMENSIONS:
        raise InputError(f"{path}: tensor {name} has {count} dimensions; at most {_MAX_DIMENSIONS} are read", _DAMAGED)
    dimensions = [cursor.number("<Q", what) for _ in range(count)]
    return _Row(name, tuple(reversed(dimensions)), cursor.number("<I", what), cursor.number("<Q", what))


def _tensor(row: _Row, path: Path, start: int) -> TensorRef:
    where = f"{path}: tensor {row.name}"
    dtype = _DTYPES.get(row.kind)
    if dtype is None:
        kind = _OTHERS.get(row.kind, f"of the unknown type {row.kind}")
        known = "F32, F16, BF16 and Q8_0"
        raise InputError(
            f"{where} is {kind}", f"wanconv reads {known}: use a file in one of these types, or the original weights"
        )
    count = numel(row.shape, where)
    if dtype.blocked and (not row.shape or row.shape[-1] % dtype.block):
        raise InputError(f"{where} is {dtype.name}, and its row length is not a multiple of {dtype.block}", _WRITER)
    return TensorRef(row.name, dtype.name, row.shape, path, start + row.offset, dtype.nbytes(count))


def _alignment(metadata: Mapping[str, str], path: Path) -> int:
    alignment = int(metadata.get(_ALIGNMENT_KEY, _ALIGNMENT))
    if not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        message = f"{path}: its {_ALIGNMENT_KEY} is {alignment}, not a power of two up to {_MAX_ALIGNMENT}"
        raise InputError(message, _DAMAGED)
    return alignment


def _check_cover(tensors: Sequence[TensorRef], alignment: int, file: OpenFile, start: int) -> None:
    end = start
    for tensor in tensors:
        wanted = end + -(end - start) % alignment
        if tensor.offset != wanted:
            what = "overlaps the tensor before it" if tensor.offset < end else "is not where the one before it ends"
            message = f"{file.path}: tensor {tensor.name} {what}, at byte {tensor.offset - start}"
            raise InputError(message, _DAMAGED)
        end = tensor.offset + tensor.nbytes
    if end > file.size:
        raise InputError(
            f"{file.path} is cut off: its header promises {exact_size(end)}, the file has {exact_size(file.size)}",
            _AGAIN,
        )
    if file.size not in (end, end + -(end - start) % alignment):
        raise InputError(f"{file.path} has {exact_size(file.size - end)} after its last tensor", _DAMAGED)
