"""The zip archive inside a .pth: uncompressed records with known offsets, read strictly and laid out.

Both know only torch.save's form: one folder, uncompressed records, payload aligned to 64 bytes, no comments.
Source: PKWARE's APPNOTE.TXT 6.3.10: 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 16 (end), 4.5.3 (ZIP64).
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wanconv.containers.files import MAX_TENSORS, SAVED_WHOLE, OpenFile
from wanconv.errors import InputError
from wanconv.types.figures import exact_size
from wanconv.types.text import printable

ALIGNMENT = 64
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_LOCAL_MARK, _CENTRAL_MARK, _END_MARK = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64_MARK, _LOCATOR_MARK = b"PK\6\6", b"PK\6\7"
_ZIP64, _PADDING = 0x0001, 0x4246  # ids of extra fields; torch calls its padding "FB"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # a field with this value is stored in the ZIP64 extra field
_VERSION, _VERSION64 = 20, 45  # ZIP version needed to read it: 2.0, or 4.5 with ZIP64
_ENCRYPTED = 0x1
_FOLDER = 0x10  # bits of the external attributes that belong to MS-DOS
_MAX_DIRECTORY = 64_000_000  # bytes
_DAMAGED = "the file is damaged or was made to deceive: download it again from its source"
_AGAIN = "download the file again"
_RE_SAVE = "re-save it with a current torch: torch.save(state_dict, path)"


@dataclass(frozen=True, slots=True)
class Record:
    """`start` is the offset of its local header, `offset` of its first byte."""

    name: str
    start: int
    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class Archive:
    """The layout of a file: literal bytes by ascending offset, and the offset of each payload. They cover the file."""

    literals: tuple[tuple[int, bytes], ...]
    payloads: Mapping[str, int]
    size: int


def read_records(file: OpenFile) -> dict[str, Record]:
    """Returns the records by name; raises InputError unless they are uncompressed, inside the file and disjoint."""
    count, start, nbytes = _find_directory(file)
    directory = file.read(start, nbytes)
    try:
        entries = list(_entries(directory, count, file.path))
    except (struct.error, UnicodeDecodeError) as error:
        raise InputError(f"{file.path}: its zip directory is damaged: {error}", _DAMAGED) from error
    records: dict[str, Record] = {}
    end = 0
    for name, header, size, crc in sorted(entries, key=lambda entry: entry[1]):
        if name in records:
            raise InputError(f"{file.path} holds the record {name} twice", _DAMAGED)
        if header < end or header + _LOCAL.size > start:
            raise InputError(
                f"{file.path}: its record {name} overlaps another one or lies outside of the file", _DAMAGED
            )
        record = Record(name, header, _data_offset(file, name, header), size, crc)
        end = record.offset + size
        if end > start:
            raise InputError(f"{file.path}: its record {name} reaches beyond the end of the data", _DAMAGED)
        records[name] = record
    return records


def read_literal(file: OpenFile, record: Record, limit: int) -> bytes:
    """Returns the bytes of a small record; raises InputError if they do not match its CRC."""
    if record.nbytes > limit:
        raise InputError(
            f"{file.path}: its {record.name} has {exact_size(record.nbytes)}; at most {exact_size(limit)} are read",
            SAVED_WHOLE,
        )
    content = file.read(record.offset, record.nbytes)
    if zlib.crc32(content) != record.crc:
        raise InputError(f"{file.path}: its {record.name} does not fit its CRC", _DAMAGED)
    return content


def lay_out(records: Sequence[tuple[str, bytes | int]]) -> Archive:
    """Returns the archive of these records, in this order: literal bytes, or the size of a payload to come.

    The CRC of a payload is 0: its bytes are written in any order, so the sum is unknown when the headers are made.
    torch does not check CRCs; `unzip -t` does. The digests of the file and its tensors are in the manifest.
    """
    literals: list[tuple[int, bytes]] = []
    payloads: dict[str, int] = {}
    directory = bytearray()
    pending = bytearray()  # literal bytes that go to `position`
    position = 0
    for name, content in records:
        nbytes, crc = (content, 0) if isinstance(content, int) else (len(content), zlib.crc32(content))
        start = position + len(pending)
        directory += _central_header(name, start, nbytes, crc)
        pending += _local_header(name, start, nbytes, crc)
        if isinstance(content, bytes):
            pending += content
            continue
        literals.append((position, bytes(pending)))
        position += len(pending)
        pending.clear()
        payloads[name] = position
        position += nbytes
    pending += directory + _end(position + len(pending), len(directory), len(records))
    literals.append((position, bytes(pending)))
    return Archive(tuple(literals), payloads, position + len(pending))


# Reading


def _find_directory(file: OpenFile) -> tuple[int, int, int]:
    """Returns the number of entries, the offset and the size of the directory, which must end at the end record."""
    stop = file.size - _END.size
    fields = _END.unpack(file.read(stop, _END.size)) if stop >= 0 else (b"",)
    if fields[0] != _END_MARK:
        raise InputError(f"{file.path} is cut off: the directory at the end of the archive is missing", _AGAIN)
    stop, end64 = _find_end64(file, stop)  # torch writes a ZIP64 end into every file, needed or not
    _, disk, other_disk, here, count, nbytes, start, _ = end64 or fields
    if disk or other_disk or here != count or start + nbytes != stop:
        raise InputError(f"{file.path}: its zip directory is not where the file says", _DAMAGED)
    if nbytes > _MAX_DIRECTORY or count > MAX_TENSORS:
        raise InputError(
            f"{file.path}: its zip directory has {count} entries in {exact_size(nbytes)}, too many", SAVED_WHOLE
        )
    return count, start, nbytes


def _find_end64(file: OpenFile, end: int) -> tuple[int, tuple[int, ...]]:
    """Returns the offset at which the directory must end, and the ZIP64 end's fields in the order of the plain end."""
    locator = end - _LOCATOR.size
    if locator < _END64.size:
        return end, ()
    mark, _, stop, _ = _LOCATOR.unpack(file.read(locator, _LOCATOR.size))
    if mark != _LOCATOR_MARK:
        return end, ()
    mark, _, _, _, *fields = _END64.unpack(file.read(locator - _END64.size, _END64.size))
    if stop != locator - _END64.size or mark != _END64_MARK:
        raise InputError(f"{file.path}: the ZIP64 end of its directory is not where the file says", _DAMAGED)
    return stop, (0, *fields, 0)


def _entries(directory: bytes, count: int, path: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yields name, offset of the local header, size and CRC."""
    position = 0
    for _ in range(count):
        mark, _, _, flags, method, _, _, crc, packed, nbytes, *rest = _CENTRAL.unpack_from(directory, position)
        name_size, extra_size, comment_size, disk, _, attributes, start = rest
        position += _CENTRAL.size
        raw = directory[position : position + name_size]
        extra = directory[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        name = raw.decode("utf-8")
        if mark != _CENTRAL_MARK or disk or not printable(name):
            raise InputError(f"{path}: its zip directory is damaged at {name!r}", _DAMAGED)
        if method or flags & _ENCRYPTED:
            raise InputError(f"{path}: its record {name} is compressed or encrypted, which torch never does", _RE_SAVE)
        if attributes & _FOLDER:  # torch trusts its size and reads nothing: the tensor would be uninitialised memory
            raise InputError(f"{path}: its record {name} is marked as a folder", _DAMAGED)
        nbytes, packed, start = _widen((nbytes, packed, start), extra)
        if nbytes != packed:
            raise InputError(
                f"{path}: its record {name} has two sizes, {exact_size(nbytes)} and {exact_size(packed)}", _DAMAGED
            )
        yield name, start, nbytes, crc
    if position != len(directory):
        raise InputError(f"{path}: its zip directory has bytes after its last entry", _DAMAGED)


def _widen(fields: tuple[int, int, int], extra: bytes) -> Iterator[int]:
    """Yields the fields; those that overflow come from the ZIP64 extra field, which holds only them, in order."""
    position, wide = 0, b""
    while position < len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, position)
        if kind == _ZIP64:
            wide = extra[position + 4 : position + 4 + nbytes]
        position += 4 + nbytes
    for field in fields:
        if field == _FULL32:
            (value,) = struct.unpack_from("<Q", wide)
            wide = wide[8:]
            yield value
        else:
            yield field


def _data_offset(file: OpenFile, name: str, start: int) -> int:
    mark, *_, name_size, extra_size = _LOCAL.unpack(file.read(start, _LOCAL.size))
    if mark != _LOCAL_MARK or file.read(start + _LOCAL.size, name_size) != name.encode():
        raise InputError(f"{file.path}: its record {name} is not where the directory says", _DAMAGED)
    return start + _LOCAL.size + int(name_size) + int(extra_size)


# Writing. Dates are zero, as in torch's own files: the same input gives the same bytes.


def _local_header(name: str, start: int, nbytes: int, crc: int) -> bytes:
    extra = struct.pack("<2H2Q", _ZIP64, 16, nbytes, nbytes) if nbytes >= _FULL32 else b""
    padding = -(start + _LOCAL.size + len(name) + len(extra) + 4) % ALIGNMENT
    extra += struct.pack("<2H", _PADDING, padding) + b"Z" * padding
    version = _VERSION64 if nbytes >= _FULL32 else _VERSION
    short = min(nbytes, _FULL32)
    header = _LOCAL.pack(_LOCAL_MARK, version, 0, 0, 0, 0, crc, short, short, len(name), len(extra))
    return header + name.encode("ascii") + extra


def _central_header(name: str, start: int, nbytes: int, crc: int) -> bytes:
    wide = [field for field in (nbytes, nbytes, start) if field >= _FULL32]
    extra = struct.pack(f"<2H{len(wide)}Q", _ZIP64, 8 * len(wide), *wide) if wide else b""
    version = _VERSION64 if wide else _VERSION
    short, short_start = min(nbytes, _FULL32), min(start, _FULL32)
    sizes = (crc, short, short, len(name), len(extra), 0)
    header = _CENTRAL.pack(_CENTRAL_MARK, version, version, 0, 0, 0, 0, *sizes, 0, 0, 0, short_start)
    return header + name.encode("ascii") + extra


def _end(start: int, nbytes: int, count: int) -> bytes:
    end64 = b""
    if start >= _FULL32 or count >= _FULL16:
        sizes = (count, count, nbytes, start)
        end64 = _END64.pack(_END64_MARK, _END64.size - 12, _VERSION64, _VERSION64, 0, 0, *sizes)
        end64 += _LOCATOR.pack(_LOCATOR_MARK, 0, start + nbytes, 1)
    short = min(count, _FULL16)
    return end64 + _END.pack(_END_MARK, 0, 0, short, short, nbytes, min(start, _FULL32), 0)
