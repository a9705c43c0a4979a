"""The GGUF header: what it refuses, what it reads, and that gguf's own reader and writer agree."""

import random
import struct
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from broken import check_named

from wanconv.containers import build_gguf, read_header
from wanconv.containers.files import Entry
from wanconv.containers.gguf import TYPES, header_of
from wanconv.errors import InputError
from wanconv.types.dtypes import DTYPES

U32, TEXT, ARRAY = 4, 8, 9
NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
FILES = {"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def test_the_numbers_of_tensors_and_files_are_those_of_gguf() -> None:
    assert {name: dtype.gguf for name, dtype in DTYPES.items() if dtype.gguf} == {
        name: (gguf.GGMLQuantizationType[kind], gguf.LlamaFileType[FILES[name]]) for name, kind in NAMES.items()
    }


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def row(name: str | bytes = "a", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def framed(
    *rows: bytes,
    metadata: tuple[bytes, ...] = (),
    payload: int = 128,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(rows), len(metadata))))
    head += b"".join(metadata) + b"".join(rows)
    return head + bytes(-len(head) % alignment) + bytes(payload)


def with_alignment(kind: int, value: bytes) -> bytes:
    return framed(row(), metadata=(pair("general.alignment", kind, value),))


WORD = struct.pack("<I", 7)
HOSTILE = {
    "empty": (b"", "is empty, not a GGUF file"),
    "safetensors": (b"\x40" + bytes(7) + b'{"a":1}', "is not a valid GGUF file"),
    "zip": (b"PK\x03\x04" + bytes(60), "is a zip archive"),
    "another letter case": (b"gguf" + bytes(60), "is not a valid GGUF file"),
    "the magic alone": (b"GGUF", "cut off inside its header: the version"),
    "version 1": (framed(row(), version=1), "a GGUF file of version 1"),
    "version 4": (framed(row(), version=4), "a GGUF file of version 4"),
    "big-endian": (framed(row(), version=3 << 24), "a big-endian GGUF file"),
    "2**63 tensors": (framed(counts=(2**63, 0)), "lists 9223372036854775808 tensors; at most"),
    "200001 tensors": (framed(counts=(200_001, 0)), "at most 200000 are read"),
    "2**63 metadata": (framed(counts=(0, 2**63)), "its metadata holds the name ''"),
    "one tensor too few": (framed(row(), counts=(2, 0)), "a tensor named ''"),
    "one metadatum too few": (
        framed(metadata=(pair("a", U32, WORD),), counts=(0, 2), payload=0),
        "its metadata holds the name ''",
    ),
    "metadata cut off": (framed(metadata=(pair("a", U32, WORD),), payload=0)[:39], "the value of a ends at byte 41"),
    "row cut off": (framed(row(), payload=0)[:50], "the row of tensor a ends at byte"),
    "key twice": (framed(metadata=(pair("a", U32, WORD),) * 2), "its metadata holds 'a' twice"),
    "key with escape code": (framed(metadata=(pair("\x1b[2J", U32, WORD),)), "holds the name '\\x1b[2J'"),
    "key that is no UTF-8": (framed(metadata=(pair(b"\xff", U32, WORD),)), "a name in the metadata is not UTF-8"),
    "text that is no UTF-8": (framed(metadata=(pair("a", TEXT, text(b"\xff")),)), "the value of a is not UTF-8"),
    "text of 2**63 bytes": (framed(metadata=(pair("a", TEXT, struct.pack("<Q", 2**63)),)), "the value of a ends at"),
    "key of 2**64-1 bytes": (framed(metadata=(b"\xff" * 8,)), "a name in the metadata ends at byte"),
    "unknown value type": (framed(metadata=(pair("a", 13, WORD),)), "the value of a has the unknown type 13"),
    "array of 2**63 numbers": (
        framed(metadata=(pair("a", ARRAY, struct.pack("<IQ", U32, 2**63)),)),
        "the array a ends at",
    ),
    "array of 2**63 texts": (
        framed(metadata=(pair("a", ARRAY, struct.pack("<IQ", TEXT, 2**63)),)),
        "at most 1048576 are read",
    ),
    "array of arrays": (framed(metadata=(pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "values of type 9"),
    "array of unknown values": (framed(metadata=(pair("a", ARRAY, struct.pack("<IQ", 99, 1)),)), "values of type 99"),
    "alignment of zero": (with_alignment(U32, struct.pack("<I", 0)), "its general.alignment is 0,"),
    "alignment of 24": (with_alignment(U32, struct.pack("<I", 24)), "its general.alignment is 24,"),
    "alignment of 2**31": (with_alignment(U32, struct.pack("<I", 2**31)), "its general.alignment is 2147483648,"),
    "alignment as a text": (with_alignment(TEXT, text("thirty-two")), "its general.alignment is of type 8"),
    "alignment as an array": (
        with_alignment(ARRAY, struct.pack("<IQI", U32, 1, 64)),
        "its general.alignment is of type 9",
    ),
    "tensor twice": (framed(row(), row(offset=128), payload=256), "lists the tensor a twice"),
    "empty name": (framed(row("")), "a tensor named ''"),
    "NUL in a name": (framed(row("a\0b")), "a tensor named 'a\\x00b'"),
    "escape code in a name": (framed(row("\x1b[2J")), "a tensor named '\\x1b[2J'"),
    "name that is no UTF-8": (framed(row(b"\xff")), "a tensor's name is not UTF-8"),
    "name of 2**63 bytes": (framed(struct.pack("<Q", 2**63)), "a tensor's name ends at byte"),
    "nine dimensions": (framed(row(shape=(1,) * 9)), "tensor a has 9 dimensions; at most 8"),
    "2**32-1 dimensions": (framed(text("a") + b"\xff" * 4), "tensor a has 4294967295 dimensions"),
    "shape that overflows": (framed(row(shape=(2**32, 2**32 + 1))), "impossible shape"),
    "zero hides an overflow": (framed(row(shape=(2**40, 2**40, 0)), payload=0), "impossible shape"),
    "a type that is not read": (framed(row(kind=12)), "tensor a is Q4_K"),
    "an unknown type": (framed(row(kind=4)), "tensor a is of the unknown type 4"),
    "blocks cut by a row": (
        framed(row(shape=(2, 16), kind=8), payload=64),
        "is q8_0, and its row length is not a multiple of 32",
    ),
    "blocks without a row": (
        framed(row(shape=(), kind=8), payload=64),
        "is q8_0, and its row length is not a multiple of 32",
    ),
    "overlap": (framed(row(), row("b", offset=96), payload=224), "b overlaps the tensor before it, at byte 96"),
    "two on the same bytes": (framed(row(), row("b"), payload=128), "b overlaps the tensor before it, at byte 0"),
    "hole": (framed(row(), row("b", offset=160), payload=288), "b is not where the one before it ends"),
    "hole at the start": (framed(row(offset=32), payload=160), "a is not where the one before it ends"),
    "unaligned": (framed(row(shape=(1,)), row("b", offset=4), payload=160), "b is not where the one before it"),
    "offset of 2**63": (framed(row(offset=2**63)), "a is not where the one before it ends"),
    "payload cut off": (framed(row(), payload=127), "is cut off: its header promises"),
    "bytes after the end": (framed(row(), payload=129), "has 1 byte after its last tensor"),
    "bytes after the padding": (framed(row(shape=(1,)), payload=33), "has 29 bytes after its last tensor"),
    "bytes and no tensor": (framed(metadata=(pair("a", U32, WORD),), payload=1), "after its last tensor"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_broken_file_is_named_for_what_it_is(kind: str, tmp_path: Path) -> None:
    check_named(read_header, tmp_path / "model.gguf", *HOSTILE[kind])


def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(framed(metadata=(pair("a", TEXT, struct.pack("<Q", 2**33)),)))
    with path.open("r+b") as stream:
        stream.truncate(2**34)  # a hole: no disk is used
    with pytest.raises(InputError, match=r"of a header at most 25 MB .25,000,000 bytes. are read"):
        read_header(path)


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_what_gguf_writes_is_read_with_the_same_names_shapes_types_and_bytes(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_custom_alignment(alignment)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_bool("wan.flag", True)
    writer.add_float32("wan.number", 0.5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ключ", ""])
    writer.add_array("tokenizer.ggml.scores", [1.0, 2.0])
    written = {}
    for kind in (gguf.GGMLQuantizationType[name] for name in NAMES.values()):
        for shape in [(32,), (3, 64), (2, 3, 1, 2, 32), *([] if kind == 8 else [(1,), (7, 5)])]:
            name = f"{kind.name}.{shape}"
            written[name] = shape, gguf.quantize(numbers(shape), kind)
            writer.add_tensor(name, written[name][1], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.metadata == {
        "general.architecture": "wan",
        "general.alignment": str(alignment),
        "general.file_type": "7",
        "wan.flag": "1",
        "wan.number": "0.5",
    }
    assert list(header.tensors) == list(written)
    for name, (shape, raw) in written.items():
        found = header.tensors[name]
        assert (found.shape, NAMES[found.dtype]) == (shape, name.partition(".")[0])
        assert found.read() == raw.tobytes()


def test_gguf_reads_what_is_built_and_finds_everything_where_it_was_put(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shapes = [(32,), (3, 64), (2, 3, 1, 2, 32)]
    entries = [
        Entry(f"{name}.{number}", name, shape, DTYPES[name].nbytes(int(np.prod(shape))))
        for name in TYPES
        for number, shape in enumerate([*shapes, *([] if name == "q8_0" else [(1,), (3, 3)])])
    ]
    metadata = {"general.architecture": "wan", "general.file_type": "7", "ключ": "значение"}
    layout = build_gguf(entries, metadata)
    content = bytearray(layout.size)
    for offset, literal in layout.literals:
        content[offset : offset + len(literal)] = literal
    for number, entry in enumerate(entries):
        start = layout.payloads[entry.name]
        content[start : start + entry.nbytes] = bytes([number + 1]) * entry.nbytes
    path.write_bytes(content)
    reader = gguf.GGUFReader(path)
    assert [(tensor.name, tensor.tensor_type.name) for tensor in reader.tensors] == [
        (entry.name, NAMES[entry.dtype]) for entry in entries
    ]
    for number, (entry, tensor) in enumerate(zip(entries, reader.tensors, strict=True)):
        assert tuple(reversed(tensor.shape.tolist())) == entry.shape
        assert tensor.data.tobytes() == bytes([number + 1]) * entry.nbytes
    assert [reader.fields[key].contents() for key in metadata] == ["wan", 7, "значение"]
    header = read_header(path)
    assert header.metadata == metadata
    assert {name: (ref.dtype, ref.shape, ref.nbytes) for name, ref in header.tensors.items()} == {
        entry.name: (entry.dtype, entry.shape, entry.nbytes) for entry in entries
    }
    assert build_gguf(entries, dict(reversed(metadata.items()))).literals == layout.literals


def test_a_file_without_tensors_or_without_its_last_padding_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert read_header(path).tensors == {}
    path.write_bytes(framed(row(shape=(1,)), payload=4, version=2))
    assert read_header(path).tensors["a"].nbytes == 4


def mutant(seed: int) -> bytes:
    """Returns a good file with one or two changes: a byte, a number, a piece taken out or put in, another length."""
    rng = random.Random(seed)
    raw = bytearray(
        framed(
            row(), row("b.c", (2, 32), 8, 128), metadata=(pair("general.architecture", TEXT, text("wan")),), payload=224
        )
    )
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(min(len(raw), 200))
        change = rng.randrange(5)
        if change == 0:
            raw[place] = rng.randrange(256)
        elif change == 1:
            raw[place : place + 8] = struct.pack("<Q", rng.choice([0, 1, 2, 8, 32, 2**31, 2**32, 2**63, 2**64 - 1]))
        elif change == 2:
            del raw[place : place + rng.randrange(1, 9)]
        elif change == 3:
            raw[place:place] = bytes(rng.randrange(1, 9))
        else:
            raw += bytes(rng.choice([0, 1, 32]))
    return bytes(raw)


@dataclass(frozen=True)
class Held:
    """An OpenFile in memory: writing 2000 files would take longer than reading them."""

    content: bytes
    path: Path = Path("mutant.gguf")

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, nbytes: int) -> bytes:
        assert offset + nbytes <= self.size
        return self.content[offset : offset + nbytes]


def test_of_2000_mutants_those_accepted_are_read_alike_by_gguf_and_only_input_errors_escape(tmp_path: Path) -> None:
    path = tmp_path / "mutant.gguf"
    accepted = 0
    for seed in range(2000):
        try:
            header = header_of(Held(mutant(seed)))
        except InputError:
            continue
        accepted += 1
        path.write_bytes(mutant(seed))
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        assert {
            name: (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())), tensor.data_offset, tensor.n_bytes)
            for name, tensor in found.items()
        } == {name: (NAMES[ref.dtype], ref.shape, ref.offset, ref.nbytes) for name, ref in header.tensors.items()}, seed
    assert 100 < accepted < 1500
