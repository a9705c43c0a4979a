"""Hostile and broken input through the command line: a sentence, exit code 3, and nothing left behind."""

import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from command import Done, run_all

DIT, VAE = "diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth"
NAME = "blocks.0.ffn.0.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(64)
MANY = b"{" + b",".join(b'"%d":0' % number for number in range(200_001)) + b"}"
SCRIPT, DEFLATED, BIG_ENDIAN = {"constants.pkl": b"\x80\x02)."}, zipfile.ZIP_DEFLATED, {"byteorder": b"big"}
DEEP = '{"a":' + "[" * 99_999
Entries = dict[str, dict[str, object]]
Damage = Callable[[Path], object]


def contents(data: bytes, file: str = DIT) -> Damage:
    """Returns a damage that puts other bytes in a file's place."""

    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).write_bytes(data)

    return damage


def payload(change: Callable[[bytes], bytes], file: str = DIT) -> Damage:
    return lambda folder: contents(change((folder / file).read_bytes()), file)(folder)


def raw_header(change: Callable[[bytes], bytes]) -> Damage:
    """Returns a damage of the header's text, its length kept right."""

    def changed(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        text = change(data[8 : 8 + size])
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return payload(changed)


def header(change: Callable[[Entries], object]) -> Damage:
    """Returns a damage of the header's entries."""

    def changed(text: bytes) -> bytes:
        entries = json.loads(text)
        change(entries)
        return json.dumps(entries).encode()

    return raw_header(changed)


def offsets(entries: Entries, first: int, last: int) -> None:
    begin, end = cast(list[int], entries[NAME]["data_offsets"])
    entries[NAME]["data_offsets"] = [begin + first, end + last]


def rename(entries: Entries, name: str) -> None:
    entries[name] = entries.pop(NAME)


def turned(entries: Entries) -> None:
    """Swaps the sides of a matrix: the bytes are still right."""
    entries[NAME]["shape"] = cast(list[int], entries[NAME]["shape"])[::-1]


def extra(folder: Path) -> None:
    header(
        lambda entries: entries.update({"lora.down.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    )(folder)


def deleted(data: bytes) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + size])
    body, kept, at = bytearray(), {}, 0
    for name, entry in entries.items():
        if name not in (NAME, "__metadata__"):
            begin, end = entry["data_offsets"]
            body += data[8 + size + begin : 8 + size + end]
            kept[name] = entry | {"data_offsets": [at, at + end - begin]}
            at += end - begin
    text = json.dumps(kept).encode()
    return struct.pack("<Q", len(text)) + text + body


def index(weight_map: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / f"{DIT}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return damage


def replaced_by(make: Callable[[Path], object], file: str = DIT) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return damage


def link_out(path: Path) -> None:
    victim = path.parent.parent / "victim.safetensors"
    victim.write_bytes(b"secret")
    path.symlink_to(victim)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {os.environ['WANCONV_TEST_CANARY']}",)


def evil_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv1.weight": Payload()}, protocol=2))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))


def climbing_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../data.pkl", b"\x80\x02}.")


def lora() -> bytes:
    """Returns a file of low-rank updates, as trainers save it."""
    entries = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": {
            "dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4],
        }
        for place, side in enumerate("AB")
    }  # fmt: skip
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def swapped(folder: Path) -> None:
    contents((folder / VAE).read_bytes())(folder)


def index_text(text: str) -> Damage:
    return lambda folder: (folder / f"{DIT}.index.json").write_text(text)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may not be long
        bound.bind(path.name)
        os.chdir(here)


def archive(records: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Damage:
    """Returns what makes a zip archive of a .pth's shape."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", kind) as made:
            for name, content in ({"data.pkl": b"\x80\x02}."} | records).items():
                made.writestr(f"archive/{name}", content)

    return make


def record_as_a_folder(data: bytes) -> bytes:
    place = data.rindex(b"archive/data/0") - 8  # of the attributes in the directory
    return data[:place] + b"\x10" + data[place + 1 :]


def record_twice(data: bytes) -> bytes:
    return data.replace(b"archive/data/1", b"archive/data/0")


# fmt: off
BROKEN: dict[str, tuple[Damage, str]] = {
    "truncated":             (payload(lambda data: data[:-1]),                       DIT),
    "truncated header":      (payload(lambda data: data[:100]),                      DIT),
    "empty":                 (contents(b""),                                         f"{DIT} is empty"),
    "seven bytes":           (contents(b"\x08\0\0\0\0\0\0"),                         DIT),
    "zero bytes":            (contents(bytes(4096)),                                 "filled with zero bytes"),
    "LFS pointer":           (contents(POINTER),                                      "is a git-LFS pointer"),
    "web page":              (contents(b"<!DOCTYPE html><html>Access denied</html>"), "is a web page"),
    "error message":         (contents(b'{"error": "Repository not found"}'),        "JSON text"),
    "huge header":           (payload(lambda data: struct.pack("<Q", 1 << 40) + data[8:]), DIT),
    "trailing bytes":        (payload(lambda data: data + b"\0"),                    DIT),
    "header is no JSON":     (raw_header(lambda text: text[:-1] + b"!}"),             "not valid JSON"),
    "nesting bomb":          (raw_header(lambda text: DEEP.encode() + b"]}"),   "nested too deeply"),
    "duplicate key":         (raw_header(lambda text: b'{"patch_embedding.bias":1,' + text[1:]), "stands twice"),
    "bad dtype":             (header(lambda entries: entries[NAME].update(dtype="F13")), "F13"),
    "bad shape":             (header(lambda entries: entries[NAME].update(shape=[-1, 2])), NAME),
    "shape against bytes":   (header(lambda entries: entries[NAME].update(shape=[3, 5])), NAME),
    "float offset":          (header(lambda entries: entries[NAME].update(data_offsets=[0.0, 1.0])), NAME),
    "overlap":               (header(lambda entries: offsets(entries, -4, -4)),      DIT),
    "hole":                  (header(lambda entries: offsets(entries, 4, 0)),        NAME),
    "beyond the end":        (header(lambda entries: offsets(entries, 1 << 40, 1 << 40)), DIT),
    "NUL in a name":         (header(lambda entries: rename(entries, "a\0b")),       r"'a\x00b'"),
    "path as a name":        (header(lambda entries: rename(entries, "../../etc/passwd")), "../../etc/passwd"),
    "index is no JSON":      (lambda folder: (folder / f"{DIT}.index.json").write_text("{"), "not valid JSON"),
    "index above":           (index({NAME: "../victim.safetensors"}),                "not a plain file name"),
    "index absolute":        (index({NAME: "/etc/passwd"}),                          "not a plain file name"),
    "index with backslash":  (index({NAME: "..\\victim.safetensors"}),               "not a plain file name"),
    "index with a NUL":      (index({NAME: "a\0.safetensors"}),                      "not a plain file name"),
    "missing shard":         (index({NAME: "gone.safetensors"}),                      "gone.safetensors is missing"),
    "index and shard differ": (index({NAME: DIT, "extra": DIT}),                     "missing: extra"),
    "pickle with a payload": (replaced_by(evil_zip, VAE),                            VAE),
    "bare pickle":           (contents(pickle.dumps([1], protocol=2), VAE),          "bare pickle"),
    "legacy pickle":         (contents(LEGACY, VAE),                                  "before version 1.6"),
    "truncated pth":         (payload(lambda data: data[: len(data) // 2], VAE),     VAE),
    "zip bomb":              (replaced_by(bomb, VAE),                                VAE),
    "zip that climbs":       (replaced_by(climbing_zip, VAE),                        VAE),
    "safetensors as pth":    (lambda folder: shutil.copy(folder / DIT, folder / "model.pth"), "model.pth"),
    "folder as a file":      (replaced_by(lambda path: path.mkdir()),                f"{DIT} is a folder, not a file"),
    "FIFO":                  (replaced_by(os.mkfifo),                                "is a FIFO"),
    "dangling link":         (replaced_by(lambda path: path.symlink_to("gone")),     "is a dangling link"),
    "link to itself":        (replaced_by(lambda path: path.symlink_to(path.name)),  "symbolic links"),
    "link out of the folder": (replaced_by(link_out),                                "outside of the checkpoint"),
    "a file twice":          (lambda folder: shutil.copy(folder / DIT, folder / "copy.safetensors"), "are both dit"),
    "config of another":     (contents(b'{"model_type": "t2v", "dim": 7}', "config.json"), "dim is 7"),
    "deleted tensor":        (payload(deleted),                                      f"missing: {NAME}"),
    "renamed tensor":        (header(lambda entries: rename(entries, "blocks.0.w1")), "unknown: blocks.0.w1"),
    "extra tensor":          (extra,                                                 "unknown: lora.down.weight"),
    "wrongly shaped tensor": (header(turned),                                        f"shape of {NAME}: found ("),
    "GGUF":                  (contents(b"GGUF\3\0\0\0" + bytes(64)),                 "is a GGUF file"),
    "gzip":                  (contents(b"\x1f\x8b\x08" + bytes(64)),                  "is a gzip file"),
    "pth as safetensors":    (swapped,                                               "is a zip archive"),
    "pickle as safetensors": (contents(LEGACY),                                      "before version 1.6"),
    "storage's XML error":   (contents(b'<?xml version="1.0"?><Error/>'),            "is a web page"),
    "error in plain text":   (contents(b"Entry not found"),                          "is text ("),
    "noise":                 (contents(bytes(range(200, 256)) * 9),                  "not a valid safetensors file"),
    "LoRA":                  (contents(lora()),                                      "is a LoRA, not a model"),
    "200001 tensors":        (raw_header(lambda text: MANY),                         "at most 200000"),
    "socket":                (replaced_by(bind),                                     "is a socket, not a file"),
    "endless device":        (replaced_by(lambda path: path.symlink_to("/dev/zero")), "links to /dev/zero, outside"),
    "index as a list":       (index([DIT]),                                          DIT),
    "index with numbers":    (index({NAME: 1}),                                      DIT),
    "index of a tensor twice": (index_text('{"weight_map": {"a": "b", "a": "c"}}'),  "stands twice"),
    "index nested deeply":   (index_text(DEEP),                    "nested too deeply"),
    "index to a pth":        (index({NAME: VAE}),                                    f"{VAE} and its index disagree"),
    "config is no JSON":     (contents(b"{", "config.json"),                         "config.json"),
    "config nested deeply":  (contents(DEEP.encode(), "config.json"),     "config.json is not valid JSON"),
    "TorchScript":           (replaced_by(archive(SCRIPT), VAE),                      "a TorchScript program"),
    "empty pickle":          (replaced_by(archive({"data.pkl": b""}), VAE),          "is not what torch.save writes"),
    "compressed pickle":     (replaced_by(archive({}, DEFLATED), VAE),               "compressed or encrypted"),
    "big-endian pth":        (replaced_by(archive(BIG_ENDIAN), VAE),                 "big-endian"),
    "record as a folder":    (payload(record_as_a_folder, VAE),                      "is marked as a folder"),
    "record twice":          (payload(record_twice, VAE),                            VAE),
}
# fmt: on


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> dict[str, tuple[Path, Done, Done]]:
    """Returns for each kind: where it was tried, and what inspect and convert said of it."""
    root = tmp_path_factory.mktemp("hostile")
    commands = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANCONV_TEST_CANARY", str(root / "canary"))
        for kind, (damage, _) in BROKEN.items():
            folder = root / kind / "source"
            shutil.copytree(tiny("wan2.1-t2v-1.3b"), folder, copy_function=os.link)
            damage(folder)
            commands.append(["inspect", str(folder)])
            commands.append(["convert", str(folder), "-r", "bf16", "-o", str(root / kind / "out")])
    done = iter(run_all(commands, root))
    return {kind: (root / kind, next(done), next(done)) for kind in BROKEN}


@pytest.mark.parametrize("verb", ["inspect", "convert"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_input_is_refused_in_a_sentence(
    kind: str, verb: str, outcomes: dict[str, tuple[Path, Done, Done]]
) -> None:
    _, inspected, converted = outcomes[kind]
    done = inspected if verb == "inspect" else converted
    assert (done.exit_code, done.output) == (3, "")
    first, *_, last = done.errors.splitlines()
    assert first.startswith(("error[unreadable]: ", "error[unrecognised]: "))
    assert last.startswith("hint: ")
    assert BROKEN[kind][1] in done.errors
    assert "Traceback" not in done.errors
    assert len(done.errors.splitlines()) <= 13


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_a_refusal_costs_less_than_a_second_and_200_mb(verb: str, outcomes: dict[str, tuple[Path, Done, Done]]) -> None:
    """Beyond the start of Python; the seconds are the processor's, for a clock would count other processes."""
    costs = {
        kind: inspected if verb == "inspect" else converted for kind, (_, inspected, converted) in outcomes.items()
    }
    assert {kind: done.cpu_s for kind, done in costs.items() if done.cpu_s > 1} == {}
    assert {kind: done.peak_nbytes for kind, done in costs.items() if done.peak_nbytes > 200e6} == {}
    assert any(done.cpu_s > 0.01 and done.peak_nbytes > 1e6 for done in costs.values())


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_input_leaves_nothing_behind(kind: str, outcomes: dict[str, tuple[Path, Done, Done]]) -> None:
    folder = outcomes[kind][0]
    assert {path.name for path in folder.iterdir()} <= {"source", "victim.safetensors"}
    assert not (folder.parent / "canary").exists()


def test_the_payload_would_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary of the tests above sings: what they prove is that nobody unpickled it."""
    monkeypatch.setenv("WANCONV_TEST_CANARY", str(tmp_path / "canary"))
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "canary").exists()
