"""The .pth file without torch: what it refuses, what it reads, what it lays out, and that torch agrees."""

import io
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from battery import PARTS, Scale
from broken import check_named

from wanconv.containers import build_archive, confirm, read_header
from wanconv.containers.archive import Archive, lay_out, read_records
from wanconv.containers.files import Entry, regular_file
from wanconv.containers.pickled import TORCH_DTYPES, dump
from wanconv.errors import InputError
from wanconv.types.dtypes import DTYPES

NAME_OF = {getattr(torch, torch_name): name for name, torch_name, _ in TORCH_DTYPES}


def sample() -> dict[str, torch.Tensor]:
    """Every dtype in every awkward shape."""
    tensors = {}
    for name, torch_name, _ in TORCH_DTYPES:
        for shape in [(), (0,), (3,), (2, 0, 4), (2, 3), (1, 2, 1)]:
            raw = torch.arange(torch.Size(shape).numel() * DTYPES[name].itemsize, dtype=torch.uint8) % 2
            tensors[f"{name}{list(shape)}"] = raw.view(getattr(torch, torch_name)).reshape(shape)
    return tensors


def payload(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def write(path: Path, layout: Archive, payloads: Mapping[str, bytes]) -> None:
    with path.open("wb") as stream:
        stream.truncate(layout.size)
        for offset, literal in layout.literals:
            stream.seek(offset)
            stream.write(literal)
        for name, content in payloads.items():
            stream.seek(layout.payloads[name])
            stream.write(content)


def zipped(records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return stream.getvalue()


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def with_pickle(raw: bytes, **more: bytes) -> bytes:
    records = {"archive/data.pkl": raw, "archive/byteorder": b"little", "archive/data/0": bytes(8)}
    return zipped(records | {f"archive/{name}": content for name, content in more.items()})


GOOD = dump([Entry("a", "fp32", (2,), 8)])
SAVED = saved({"a": torch.zeros(2)})
BASE = torch.zeros(8)
KEY, SIZE = b"X\1\0\0\x000", b"(J\2\0\0\0t"  # as they stand in GOOD
ITEMS = b"\x80\x02}(X\x01\x00\x00\x00a"  # {"a": …
DEEP = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))  # t = (t, t), 60 times


def legacy() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def script() -> bytes:
    return zipped({"m/data.pkl": GOOD, "m/constants.pkl": b"\x80\x02)."})


def laid(*records: tuple[str, bytes]) -> bytes:
    return b"".join(literal for _, literal in lay_out(records).literals)


def overlapping() -> bytes:
    """The directory says that data/0 lies where data.pkl does."""
    source = with_pickle(GOOD)
    return patched(source.rindex(b"archive/data/0") - 4, bytes(4), source)


def patched(place: int, content: bytes, source: bytes = SAVED) -> bytes:
    place %= len(source)
    return source[:place] + content + source[place + len(content) :]


# fmt: off
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty":                     (b"",                                               "is empty"),
    "LFS pointer":               (b"version https://git-lfs.github.com/spec/v1\n",   "git-LFS pointer"),
    "HTML":                      (b"<html>Sign in</html>",                           "a web page"),
    "JSON error":                (b'{"error": "not found"}',                         "JSON text"),
    "safetensors":               (b"\x10" + bytes(7) + b'{"a":{}}        ',          "a safetensors file, not a .pth"),
    "legacy torch":              (legacy(),                                          "before version 1.6"),
    "pickle":                    (pickle.dumps({"a": 1}),                            "a bare pickle"),
    "gzip":                      (b"\x1f\x8b\x08" + bytes(60),                       "a gzip file"),
    "noise":                     (bytes(range(200, 256)),                            "none of the formats"),
    "other zip":                 (zipped({"a/readme.txt": b"hello"}),                "it has no data.pkl"),
    "two folders":               (zipped({"a/data.pkl": GOOD, "b/x": b""}),          "it has no data.pkl"),
    "TorchScript":               (script(),                                          "a TorchScript program"),
    "cut off":                   (SAVED[:-1],                                        "is cut off"),
    "cut off in the middle":     (SAVED[: len(SAVED) // 2],                          "is cut off"),
    "bytes after the end":       (SAVED + bytes(7),                                  "is cut off"),
    "zip comment":               (patched(-2, b"\x01\x00") + b"!",                   "is cut off"),
    "bytes before the start":    (b"PK\x03\x04" + SAVED,                             "is not where the file says"),
    "directory elsewhere":       (patched(-6, b"\x01", with_pickle(GOOD)),           "is not where the file says"),
    "ZIP64 end elsewhere":       (patched(-34, b"\x01"),                             "ZIP64 end of its directory"),
    "compressed":                (zipped({"a/data.pkl": GOOD * 9}, zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "record twice":              (laid(("a/data.pkl", GOOD), ("a/x", b""), ("a/x", b"")), "holds the record a/x twice"),
    "NUL in a record's name":    (with_pickle(GOOD).replace(b"byteorder", b"byte\0rder"), "directory is damaged"),
    "records on one another":    (overlapping(),                                     "overlaps another one"),
    "marked as a folder":        (patched(SAVED.rindex(b"archive/data/0") - 8, b"\x10"), "is marked as a folder"),
    "wrong CRC":                 (SAVED.replace(b"FloatStorage", b"floatStorage"),   "does not fit its CRC"),
    "local header elsewhere":    (SAVED.replace(b"archive/version", b"archive/versiom", 1), "not where the directory"),
    "big-endian":                (with_pickle(GOOD).replace(b"little", b"bigbig"),   "does not fit its CRC"),
    "short record":              (zipped({"a/data.pkl": GOOD, "a/data/0": b"1234567"}), "has 8 bytes, the record 7"),
    "long record":               (zipped({"a/data.pkl": GOOD, "a/data/0": bytes(9)}),   "has 8 bytes, the record 9"),
    "missing record":            (zipped({"a/data.pkl": GOOD}),                      "has no record data/0"),
    "unused record":             (with_pickle(GOOD, **{"data/1": b"?"}),             "1 records that no tensor uses"),
    "path as storage key":       (with_pickle(GOOD.replace(KEY, b"X\4\0\0\0../0")), "no record data/../0"),
    "NUL in a name":             (with_pickle(GOOD.replace(b"\0a", b"\0\0")),        "a tensor named '\\x00'"),
    "no pickle":                 (with_pickle(b"hello"),                             "is not what torch.save writes"),
    "empty pickle":              (with_pickle(b""),                                  "is not what torch.save writes"),
    "pickle cut off":            (with_pickle(GOOD[:-1]),                            "is not what torch.save writes"),
    "bytes after the pickle":    (with_pickle(GOOD + b"x"),                          "opcode STOP"),
    "stack underflow":           (with_pickle(b"\x80\x02s."),                        "is not what torch.save writes"),
    "tuple underflow":           (with_pickle(b"\x80\x02\x86."),                     "ends before the mark"),
    "unknown memo":              (with_pickle(b"\x80\x02h\x05."),                    "is not what torch.save writes"),
    "memo bomb":                 (with_pickle(b"\x80\x02Nr\xff\xff\xff\xff."),       "None instead of a dict"),
    "8 GB of bytes announced":   (with_pickle(b"\x80\x02\x8e" + b"\0\0\0\0\2\0\0\0."), "is not what torch.save writes"),
    "exponential key":           (with_pickle(b"\x80\x02})" + DEEP + b"Ns."),        "a tuple of 2 as a key"),
    "key twice":                 (with_pickle(ITEMS + b"NX\x01\0\0\0aNu."),          "'a' stands twice"),
    "code":                      (with_pickle(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."), "(os.system); nothing"),
    "builtins.eval":             (with_pickle(b"\x80\x02c__builtin__\neval\n."),     "(__builtin__.eval); nothing"),
    "stack global":              (with_pickle(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "protocol 4 (it has SHORT_"),
    "call of a dtype":           (with_pickle(b"\x80\x02ctorch\nfloat32\n)R."),      "a call of torch.float32"),
    "attributes":                (with_pickle(b"\x80\x02}}X\x01\0\0\0aNsb."),        "attributes for something"),
    "odd persistent id":         (with_pickle(b"\x80\x02X\x01\0\0\0aQ."),            "that is not a storage"),
    "tensor of a bool shape":    (with_pickle(GOOD.replace(SIZE, b"(\x88t", 1)), "torch.save does not"),
    "negative storage offset":   (with_pickle(GOOD.replace(b"QJ" + bytes(4), b"QJ" + b"\xff" * 4)), "torch.save does"),
    "tensor beyond its storage": (with_pickle(GOOD.replace(b"QJ\0", b"QJ\1")),       "beyond the end of its record"),
    "shape that overflows":      (with_pickle(GOOD.replace(SIZE, b"(\x8a\x09" + bytes(8) + b"\1t", 1)), "impossible"),
    "a list":                    (saved([torch.zeros(2)]),                           "a list of 1 instead of a dict"),
    "a lone tensor":             (saved(torch.zeros(2)),                             "a tensor of shape [2] instead"),
    "a number among tensors":    (saved({"a": torch.zeros(2), "step": 7}),           "the first step: int '7'"),
    "None among tensors":        (saved({"a": torch.zeros(2), "b": None}),           "the first b: None"),
    "a training checkpoint":     (saved({"state_dict": {"a": torch.zeros(2)}, "lr": 0.1}), "state_dict: a dict of 1"),
    "wrapped twice":             (saved({"model": {"state_dict": {"a": torch.zeros(2)}}}), "state_dict: a dict of 1"),
    "a number as a name":        (saved({1: torch.zeros(2)}),                        "under the key 1"),
    "an object":                 (saved({"a": Path("x")}),                           "nothing was run"),
    "complex":                   (saved({"a": torch.zeros(2, dtype=torch.complex64)}), "(torch.ComplexFloatStorage)"),
    "transposed":                (saved({"a": torch.zeros(2, 3).t()}),               "is not contiguous: shape [3, 2]"),
    "expanded":                  (saved({"a": torch.zeros(1).expand(4)}),            "is not contiguous"),
    "partly shared":             (saved({"a": BASE[:5], "b": BASE[4:]}),             "a and b share some of their"),
    "one inside the other":      (saved({"a": BASE, "b": BASE[:2]}),                 "share some of their bytes"),
}
# fmt: on


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_broken_file_is_named_for_what_it_is(kind: str, tmp_path: Path) -> None:
    check_named(read_header, tmp_path / "model.pth", *HOSTILE[kind])


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(zipped({"a/data.pkl": GOOD, "a/byteorder": b"big", "a/data/0": bytes(8)}))
    with pytest.raises(InputError, match="big-endian"):
        read_header(path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_a_payload_that_would_make_a_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target, path = tmp_path / "owned", tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2), "b": Bomb(target)}, path)
    with pytest.raises(InputError, match="nothing was run"):
        read_header(path)
    with pytest.raises(InputError, match="is refused by torch"):
        confirm(path, {})
    assert not target.exists()
    torch.load(path, weights_only=False)  # the bomb is live
    assert target.exists()


def test_every_dtype_has_a_torch_name() -> None:
    assert [name for name, _, _ in TORCH_DTYPES] == [name for name, dtype in DTYPES.items() if dtype.block == 1]


def test_what_torch_saves_is_read_with_the_same_names_shapes_dtypes_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    tensors = sample()
    torch.save(tensors, path)
    header = read_header(path)
    assert header.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = header.tensors[name]
        assert (found.shape, found.dtype) == (tuple(tensor.shape), NAME_OF[tensor.dtype])
        assert found.read() == payload(tensor)
    confirm(path, header.tensors)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "module", "model"])
def test_a_module_is_read_with_its_metadata_parameters_and_one_wrapper(wrapper: str | None, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    for content in (module.state_dict(), dict(module.named_parameters())):
        path = tmp_path / "model.pth"
        torch.save({wrapper: content} if wrapper else content, path)
        header = read_header(path)
        assert header.tensors.keys() == content.keys()
        assert header.tensors["0.weight"].read() == payload(content["0.weight"])
        confirm(path, header.tensors)


def test_views_and_tied_tensors_are_read_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    base = torch.arange(12.0)
    torch.save({"low": base[:4], "high": base[4:].view(2, 4), "again": base[4:].view(2, 4)}, path)
    header = read_header(path)
    assert header.tensors["high"].offset == header.tensors["again"].offset == header.tensors["low"].offset + 16
    assert header.tensors["high"].read() == payload(base[4:])
    confirm(path, header.tensors)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_laid_out(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    tensors = sample() | {"имя \"'\n"[:-1]: torch.ones(5)}
    layout = build_archive([Entry(n, NAME_OF[t.dtype], tuple(t.shape), t.nbytes) for n, t in tensors.items()])
    write(path, layout, {name: payload(tensor) for name, tensor in tensors.items()})
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert type(loaded) is OrderedDict
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        found = loaded[name]
        assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert payload(found) == payload(tensor)
        assert not found.requires_grad


def test_what_is_laid_out_is_read_back_at_the_offsets_that_were_promised(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    layout = build_archive([Entry(n, NAME_OF[t.dtype], tuple(t.shape), t.nbytes) for n, t in sample().items()])
    write(path, layout, {})
    header = read_header(path)
    assert {name: tensor.offset for name, tensor in header.tensors.items()} == layout.payloads
    assert all(offset % 64 == 0 for offset in layout.payloads.values())
    confirm(path, header.tensors)


def test_the_crc_of_literals_is_right_and_that_of_payloads_zero(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write(path, build_archive([Entry("a", "fp32", (2,), 8)]), {"a": b"12345678"})
    with zipfile.ZipFile(path) as archive:
        assert archive.read("archive/data.pkl") == GOOD  # zipfile checks the CRC
        assert archive.read("archive/version") == b"3\n"
        assert archive.getinfo("archive/data/0").CRC == 0


def test_literals_and_payloads_cover_the_file_without_overlap() -> None:
    entries = [Entry("a", "fp32", (2,), 8), Entry("b", "bf16", (0,), 0), Entry("c", "int8", (7,), 7)]
    layout = build_archive(entries)
    spans = [(offset, len(literal)) for offset, literal in layout.literals]
    spans += [(layout.payloads[entry.name], entry.nbytes) for entry in entries]
    end = 0
    for offset, nbytes in sorted(spans):
        assert offset == end
        end += nbytes
    assert end == layout.size


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_beyond_4_gib_is_read_by_torch_and_by_us(count: int, tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    entries = [Entry(f"t{i}", "fp32", (1100, 1024, 1024), 1100 * 2**22) for i in range(count)]
    entries += [Entry("last", "bf16", (3,), 6)]
    layout = build_archive(entries)
    write(path, layout, {"last": b"abcdef"})
    assert layout.size > count * 2**32
    assert path.stat().st_blocks * 512 < 2**20  # sparse
    header = read_header(path)
    assert {name: tensor.offset for name, tensor in header.tensors.items()} == layout.payloads
    confirm(path, header.tensors)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert payload(loaded["last"]) == b"abcdef"
    assert tuple(loaded["t0"].shape) == (1100, 1024, 1024)


def test_more_records_than_16_bits_count_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    layout = lay_out([(f"t{i}", 1) for i in range(66_000)])
    write(path, layout, {})
    with regular_file(path) as file:
        assert {name: record.offset for name, record in read_records(file).items()} == layout.payloads
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 66_000


def test_the_layout_is_the_same_bytes_in_every_process_and_needs_no_torch() -> None:
    code = (
        "import sys, hashlib; from wanconv.containers import build_archive; "
        "print(hashlib.sha256(repr(build_archive([('a', 'fp8_e5m2', (2, 3), 6)])).encode()).hexdigest()); "
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


def test_confirm_sees_a_wrong_name_shape_dtype_and_place(tmp_path: Path) -> None:
    path, other = tmp_path / "model.pth", tmp_path / "other.pth"
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, path)
    tensors = read_header(path).tensors
    for content, message in [
        ({"a": torch.zeros(2, 3), "c": torch.zeros(4)}, "finds other tensors"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, r"torch.float32 \[3, 2\] under a"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int32)}, r"torch.int32 \[4\] under b"),
        ({"b": torch.zeros(4), "a": torch.zeros(2, 3)}, "at other places"),
        ({"a": torch.zeros(2, 3), "b": 1}, "finds no tensor under b"),
        ([1], "finds other tensors"),
    ]:
        torch.save(content, other)
        with pytest.raises(InputError, match=message):
            confirm(other, tensors)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutant_is_refused_or_read_as_torch_reads_it(
    part: int, scale: Scale, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    """Only input errors escape, and torch reads what is confirmed."""
    seeds = range(part * scale.pth_mutants // PARTS, (part + 1) * scale.pth_mutants // PARTS)
    path = in_memory / "mutant.pth"
    good = saved(OrderedDict(a=torch.arange(4.0), b=torch.zeros(2, 2, dtype=torch.float8_e5m2)))
    pickled = good.index(b"\x80\x02"), good.index(b"u.") + 2
    accepted = 0
    for seed in seeds:
        rng = random.Random(seed)
        if seed % 2:  # a pickle with a wrong byte in an archive that fits
            raw = bytearray(good[slice(*pickled)])
            raw[rng.randrange(len(raw))] = rng.choice([rng.randrange(256), *b"().}]NQRbu\x85"])
            path.write_bytes(with_pickle(bytes(raw), **{"data/0": bytes(16), "data/1": bytes(4)}))
        else:
            whole = bytearray(good)
            whole[rng.randrange(len(whole))] = rng.randrange(256)
            path.write_bytes(whole)
        try:
            header = read_header(path)
            confirm(path, header.tensors)
        except InputError:
            continue
        accepted += 1
        loaded = torch.load(path, weights_only=True)
        assert {name: payload(tensor) for name, tensor in loaded.items()} == {
            name: tensor.read() for name, tensor in header.tensors.items()
        }
    assert 0.1 < accepted / len(seeds) < 0.9
    record_property("cases", len(seeds))


def test_a_pth_may_come_from_a_zip_tool_without_zip64(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(with_pickle(GOOD, version=b"3\n"))
    assert struct.unpack("<2f", read_header(path).tensors["a"].read()) == (0.0, 0.0)
