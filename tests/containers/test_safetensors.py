"""The safetensors header: what it refuses, what it reads, and that the library agrees."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from battery import PARTS, Scale
from broken import check_named
from safetensors.torch import load_file, save_file

from wanconv.containers import build_header, read_header
from wanconv.containers.files import Entry
from wanconv.containers.pickled import TORCH_DTYPES
from wanconv.errors import InputError
from wanconv.types.dtypes import DTYPES

GOOD = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def framed(header: str | bytes, payload: bytes = bytes(8)) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(raw)) + raw + payload


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> str:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}})


def two(first: tuple[int, int], second: tuple[int, int]) -> str:
    rows = {"a": first, "b": second}
    return json.dumps(
        {
            name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
            for name, (begin, end) in rows.items()
        }
    )


# fmt: off
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty":                     (b"",                                           "is empty"),
    "five bytes":                (b"\x01\x02\x03\x04\xff",                       "too few for a safetensors file"),
    "zeros":                     (bytes(5000),                                   "filled with zero bytes"),
    "LFS pointer":               (b"version https://git-lfs.github.com/spec/v1\noid", "git-LFS pointer"),
    "HTML":                      (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "XML":                       (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "a web page"),
    "JSON error":                (b'{"error": "Repository not found"}',          "JSON text"),
    "plain text":                (b"Entry not found",                            "text ('Entry not found')"),
    "zip":                       (b"PK\x03\x04" + bytes(60),                     "a zip archive"),
    "legacy torch":              (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "before version 1.6"),
    "pickle":                    (b"\x80\x04\x95\x01" + bytes(60),               "a bare pickle"),
    "gzip":                      (b"\x1f\x8b\x08" + bytes(60),                   "a gzip file"),
    "GGUF":                      (b"GGUF\x03\x00\x00\x00" + bytes(60),           "a GGUF file"),
    "noise":                     (bytes(range(200, 256)),                        "not a valid safetensors file"),
    "header length 2**63":       (struct.pack("<Q", 2**63) + b"{}",              "over a million TB"),
    "header above the limit":    (struct.pack("<Q", 25_000_001) + b'{"a"',       "at most 25 MB"),
    "cut off in the header":     (framed(GOOD)[:30],                             "is cut off"),
    "cut off in the payload":    (framed(GOOD)[:-1],                             "is cut off"),
    "trailing bytes":            (framed(GOOD, bytes(9)),                        "1 byte after its last tensor"),
    "no brace at the start":     (framed(" " + GOOD),                            "does not start with '{'"),
    "garbage after the JSON":    (framed(GOOD + "x"),                            "not a JSON object padded"),
    "newline after the JSON":    (framed(GOOD + "\n"),                           "not a JSON object padded"),
    "two objects":               (framed(GOOD + GOOD),                           "not valid JSON"),
    "no JSON":                   (framed("{a:1}"),                               "not valid JSON"),
    "not UTF-8":                 (framed(b'{"\xff":1}'),                         "not UTF-8"),
    "nesting bomb":              (framed('{"a":' * 200_000 + "}" * 200_000),     "nested too deeply"),
    "number of 5000 digits":     (framed('{"a":' + "9" * 5000 + "}"),            "not valid JSON"),
    "duplicate tensor":          (framed(GOOD[:-1] + "," + GOOD[1:]),            "'a' stands twice"),
    "duplicate field":           (framed(GOOD.replace('"shape"', '"dtype":"F32","shape"')), "'dtype' stands twice"),
    "duplicate metadata":        (framed('{"__metadata__":{"k":"1","k":"2"},' + GOOD[1:]), "'k' stands twice"),
    "metadata of numbers":       (framed('{"__metadata__":{"k":1},' + GOOD[1:]), "other than text under 'k'"),
    "metadata as a list":        (framed('{"__metadata__":[],' + GOOD[1:]),      "not an object of strings"),
    "lone surrogate in metadata":(framed('{"__metadata__":{"k":"\\ud800"},' + GOOD[1:]), "other than text under 'k'"),
    "extra field":               (framed(entry(extra=1)),                        "exactly the fields"),
    "missing field":             (framed('{"a":{"dtype":"F32","shape":[2]}}'),   "exactly the fields"),
    "entry as a list":           (framed('{"a":[]}'),                            "exactly the fields"),
    "unknown dtype":             (framed(entry(dtype="F7")),                     "has the dtype 'F7'"),
    "dtype of the wrong type":   (framed(entry(dtype=["F32"])),                  "has the dtype ['F32']"),
    "dtype of another size":     (framed(entry(dtype="F64")),                    "needs 16 bytes, its range has 8"),
    "shape as a number":         (framed(entry(shape=2)),                        "has the shape 2"),
    "float in the shape":        (framed(entry(shape=[2.0])),                    "has the shape [2.0]"),
    "bool in the shape":         (framed(entry(shape=[True, 2])),                "has the shape [True, 2]"),
    "negative shape":            (framed(entry(shape=[-2])),                     "has the shape [-2]"),
    "minus zero":                (framed(entry().replace("[0,", "[-0,")),        "has the data_offsets [-0.0, 8]"),
    "shape that overflows":      (framed(entry(shape=[2**32, 2**32 + 1])),       "impossible shape"),
    "zero hides an overflow":    (framed(entry(shape=[2**40, 2**40, 0], offsets=[0, 0]), b""), "impossible shape"),
    "shape that disagrees":      (framed(entry(shape=[3])),                      "needs 12 bytes, its range has 8"),
    "three offsets":             (framed(entry(offsets=[0, 4, 8])),              "has the data_offsets [0, 4, 8]"),
    "offsets reversed":          (framed(entry(offsets=[8, 0])),                 "has the data_offsets [8, 0]"),
    "float offsets":             (framed(entry(offsets=[0, 8.0])),               "has the data_offsets [0, 8.0]"),
    "NaN offset":                (framed(entry(offsets=[0, float("nan")])),      "has the data_offsets [0, nan]"),
    "overlap":                   (framed(two((0, 5), (4, 8))),                   "b overlaps the tensor before it"),
    "two on the same bytes":     (framed(two((0, 8), (0, 8))),                   "b overlaps the tensor before it"),
    "hole":                      (framed(two((0, 3), (4, 8))),                   "b leaves a hole before it"),
    "hole at the start":         (framed(two((1, 3), (3, 8))),                   "a leaves a hole before it"),
    "empty name":                (framed(GOOD.replace('"a"', '""')),             "a tensor named ''"),
    "NUL in a name":             (framed(GOOD.replace('"a"', '"a\\u0000b"')),    "a tensor named 'a\\x00b'"),
    "escape code in a name":     (framed(GOOD.replace('"a"', '"\\u001b[2J"')),   "a tensor named '\\x1b[2J'"),
    "lone surrogate in a name":  (framed(GOOD.replace('"a"', '"\\udc80"')),      "a tensor named '\\udc80'"),
    "200001 tensors":            (framed("{" + ",".join(f'"{i}":0' for i in range(200_001)) + "}"), "at most 200000"),
}
# fmt: on


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_broken_file_is_named_for_what_it_is(kind: str, tmp_path: Path) -> None:
    check_named(read_header, tmp_path / "model.safetensors", *HOSTILE[kind])


def test_what_the_library_saves_is_read_with_the_same_names_shapes_dtypes_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {}
    for name, torch_name, _ in TORCH_DTYPES:
        for shape in [(), (0,), (3,), (2, 0, 4), (2, 3)]:
            raw = torch.arange(torch.Size(shape).numel() * DTYPES[name].itemsize, dtype=torch.uint8) % 2
            tensors[f"{name}{list(shape)}"] = raw.view(getattr(torch, torch_name)).reshape(shape)
    save_file(tensors, path, {"format": "pt", "ключ": "значение"})
    header = read_header(path)
    assert header.metadata == {"format": "pt", "ключ": "значение"}
    assert header.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = header.tensors[name]
        assert found.shape == tuple(tensor.shape)
        assert found.dtype == name.partition("[")[0]
        assert found.read() == bytes(tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else b"")


def test_a_header_that_ends_with_spaces_and_holds_no_tensor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed("{}     ", b""))
    assert read_header(path).tensors == {}


def test_the_library_opens_what_is_built_and_finds_the_tensors_in_the_order_given(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entries = [Entry(f"z.{name}", name, (3, 2), each.nbytes(6)) for name, each in DTYPES.items() if each.code]
    entries += [Entry("пустой", "bf16", (0, 7), 0), Entry('quote"d', "fp32", (), 4)]
    header = build_header(entries, {"b": "2", "a": "1"})
    path.write_bytes(header + bytes(sum(entry.nbytes for entry in entries)))
    found = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {e.name: e.shape for e in entries}
    read = read_header(path)
    assert list(read.tensors) == [entry.name for entry in entries]
    assert list(read.metadata) == ["a", "b"]
    assert len(header) % 8 == 0


def test_a_header_is_built_to_the_same_bytes_whatever_the_order_of_its_metadata() -> None:
    entries = [Entry("a", "fp32", (2,), 8)]
    assert build_header(entries, {"x": "1", "y": "2"}) == build_header(entries, {"y": "2", "x": "1"})
    expected = b'{"__metadata__":{"x":"1"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert build_header(entries, {"x": "1"}) == struct.pack("<Q", 80) + expected + b" "


# A mutant is a good file with one or two changes in its JSON text, its structure or its bytes.

Mutation = Callable[[random.Random, bytes], bytes]
NUMBERS = ["-0", "-1", "0", "1", "8", "2.0", "1e1", "true", "null", "NaN", "[]", '"8"', "4294967296", "1" * 25]
PIECES = [
    '"a"',
    '"shape":[2]',
    '"dtype":"F32"',
    "{}",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    " ",
    "\n",
    "\\u0000",
    "\\ud800",
    "é",
]


def mutate_number(rng: random.Random, raw: bytes) -> bytes:
    places = [i for i, byte in enumerate(raw) if 48 <= byte <= 57]
    place = rng.choice(places) if places else 0
    return raw[:place] + rng.choice(NUMBERS).encode() + raw[place + 1 :]


def mutate_piece(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(len(raw) + 1)
    return raw[:place] + rng.choice(PIECES).encode() + raw[place + rng.randrange(3) :]


def mutate_byte(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(max(len(raw), 1))
    return raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :]


def mutate_structure(rng: random.Random, raw: bytes) -> bytes:
    try:
        header = json.loads(raw)
    except ValueError:
        return raw
    if not isinstance(header, dict):
        return raw
    pairs = list(header.items())
    rng.shuffle(pairs)
    if rng.random() < 0.3:
        pairs.append(rng.choice(pairs))
    if pairs and isinstance(pairs[0][1], dict):
        inner = dict(pairs[0][1])
        key = rng.choice(["dtype", "shape", "data_offsets", "extra", "format"])
        inner[key] = rng.choice(["F16", "BF16", "X", [2], [0, 8], [8, 16], [], [1, 2, 1], 3, None, {}])
        pairs[0] = (pairs[0][0], inner)
    return ("{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs) + "}").encode()


def mutate_nothing(rng: random.Random, raw: bytes) -> bytes:
    return raw + b" " * rng.randrange(9)


MUTATIONS: list[Mutation] = [mutate_number, mutate_piece, mutate_byte, mutate_structure, mutate_nothing]


def mutant(seed: int) -> bytes:
    rng = random.Random(seed)
    raw = build_header([Entry("a", "fp32", (2,), 8), Entry("b.c", "bf16", (2, 2), 8)], {"format": "pt"})[8:].rstrip()
    for _ in range(rng.randint(1, 2)):
        raw = rng.choice(MUTATIONS)(rng, raw)
    payload = bytes(16 + rng.choice([0, 0, 0, 0, 0, 1, -1, 8]))
    length = len(raw) + rng.choice([0, 0, 0, 0, 0, 0, 1, -1, 2**40])
    return struct.pack("<Q", max(length, 0)) + raw + payload


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutant_is_refused_or_read_as_the_library_reads_it(
    part: int, scale: Scale, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    """Only input errors escape, and nothing is accepted that the library refuses."""
    path = in_memory / "mutant.safetensors"
    seeds = range(part, scale.header_mutants, PARTS)
    accepted = 0
    for seed in seeds:
        path.write_bytes(mutant(seed))
        try:
            header = read_header(path)
        except InputError:
            continue
        accepted += 1
        with safetensors.safe_open(path, "pt") as library:
            found = {name: library.get_slice(name) for name in library.keys()}  # noqa: SIM118  # no mapping
            assert {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in found.items()} == {
                name: (tensor.shape, DTYPES[tensor.dtype].code) for name, tensor in header.tensors.items()
            }, seed
    assert 0.05 < accepted / len(seeds) < 0.75
    record_property("cases", len(seeds))
