"""Opening folders, files, indexes and links; what of them is refused, and with which words."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wanconv.containers import build_header, header_digest, open_checkpoint
from wanconv.containers.files import Entry
from wanconv.errors import InputError

INDEX = "model.safetensors.index.json"
SHARD = "model-0000{}-of-00002.safetensors"


def weights(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(2) for name in names}, path, {"format": "pt"})
    return path


def write_index(folder: Path, weight_map: object, total: object = None) -> Path:
    metadata = {} if total is None else {"total_size": total}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return folder / INDEX


def sharded(folder: Path, total: object = 16) -> Path:
    """Two shards of one tensor each, and their index."""
    weights(folder / SHARD.format(1), "a")
    weights(folder / SHARD.format(2), "b")
    write_index(folder, {"a": SHARD.format(1), "b": SHARD.format(2)}, total)
    return folder


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything, so a test of permissions is somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def refusal(path: Path, exclude: tuple[str, ...] = ()) -> str:
    """Returns the error as a user reads it."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path, exclude)
    assert caught.value.hint
    assert "Errno" not in caught.value.message
    return "\n".join([caught.value.message, *caught.value.details])


# What is read


def test_a_folder_is_parts_and_sidecars_in_a_fixed_order(tmp_path: Path) -> None:
    sharded(tmp_path / "high_noise_model")
    weights(tmp_path / "z.safetensors", "z")
    torch.save({"v": torch.zeros(3)}, tmp_path / "Wan2.1_VAE.pth")
    (tmp_path / "config.json").write_text('{"dim": 8}')
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "spiece.model").write_bytes(b"\x0a\x0e")
    weights(tmp_path / ".cache" / "half.safetensors", "x")
    (tmp_path / ".gitattributes").write_text("*.safetensors filter=lfs")
    found = open_checkpoint(tmp_path)
    assert [part.path for part in found.parts] == ["Wan2.1_VAE.pth", f"high_noise_model/{INDEX}", "z.safetensors"]
    assert found.sidecars == ("config.json", "google/spiece.model")
    assert found.root == tmp_path
    pth, index, _ = found.parts
    assert (pth.container, pth.tensors["v"].read()) == ("pth", bytes(12))
    assert index.files == tuple(f"high_noise_model/{SHARD.format(number)}" for number in (1, 2))
    assert (index.folder, index.container, list(index.tensors)) == ("high_noise_model", "safetensors", ["a", "b"])
    assert index.metadata == {"format": "pt"}


@pytest.mark.parametrize("name", ["lone.safetensors", "lone.pth", "lone.pt", "lone.bin", "lone.ckpt"])
def test_a_single_file_is_opened_with_the_config_beside_it_and_nothing_else(name: str, tmp_path: Path) -> None:
    if name.endswith("safetensors"):
        weights(tmp_path / name, "a")
    else:
        torch.save({"a": torch.zeros(2)}, tmp_path / name)
    weights(tmp_path / "other.safetensors", "b")
    (tmp_path / "config.json").write_text("{}")
    found = open_checkpoint(tmp_path / name)
    assert [part.path for part in found.parts] == [name]
    assert list(found.parts[0].tensors) == ["a"]
    assert (found.root, found.sidecars) == (tmp_path, ("config.json",))


def test_an_index_is_opened_by_its_path(tmp_path: Path) -> None:
    sharded(tmp_path)
    weights(tmp_path / "other.safetensors", "c")
    found = open_checkpoint(tmp_path / INDEX)
    assert [list(part.tensors) for part in found.parts] == [["a", "b"]]
    assert found.sidecars == ()


def test_total_size_may_count_the_tensors_or_the_files(tmp_path: Path) -> None:
    sharded(tmp_path)
    files = sum((tmp_path / SHARD.format(number)).stat().st_size for number in (1, 2))
    for total in (None, 16, files):
        sharded(tmp_path, total)
        assert len(open_checkpoint(tmp_path).parts) == 1


def test_what_is_excluded_is_not_looked_at(tmp_path: Path) -> None:
    weights(tmp_path / "good.safetensors", "a")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "bad.safetensors").write_bytes(b"")
    (tmp_path / "notes.bin").write_bytes(b"")
    (tmp_path / "examples").symlink_to("/")
    assert "3 problems" in refusal(tmp_path)
    found = open_checkpoint(tmp_path, ["old/*", "*.bin", "examples"])
    assert [part.path for part in found.parts] == ["good.safetensors"]
    assert len(open_checkpoint(tmp_path, ["old", "*.bin", "exam*"]).parts) == 1


def test_a_one_of_one_shard_needs_no_index(tmp_path: Path) -> None:
    weights(tmp_path / "model-00001-of-00001.safetensors", "a")
    assert len(open_checkpoint(tmp_path).parts) == 1


def test_links_inside_the_checkpoint_are_followed(tmp_path: Path) -> None:
    weights(tmp_path / "real" / "a.safetensors", "a")
    (tmp_path / "b.safetensors").symlink_to("real/a.safetensors")
    assert [part.path for part in open_checkpoint(tmp_path).parts] == ["b.safetensors", "real/a.safetensors"]


def cached(home: Path) -> Path:
    """A snapshot as huggingface_hub lays it out."""
    repository = home / "models--Wan-AI--Wan2.2"
    snapshot = repository / "snapshots" / "0123abcd"
    weights(repository / "blobs" / "aaaa", "a")
    (repository / "blobs" / "bbbb").write_text("{}")
    (snapshot / "transformer").mkdir(parents=True)
    (snapshot / "transformer" / "model.safetensors").symlink_to("../../../blobs/aaaa")
    (snapshot / "transformer" / "config.json").symlink_to("../../../blobs/bbbb")
    return snapshot


@pytest.mark.parametrize("below", ["", "transformer", "transformer/model.safetensors"])
def test_a_hugging_face_cache_is_read_through_its_links(below: str, tmp_path: Path) -> None:
    found = open_checkpoint(cached(tmp_path) / below)
    assert list(found.parts[0].tensors) == ["a"]
    assert len(found.sidecars) == 1
    assert found.parts[0].tensors["a"].read() == bytes(8)


def test_a_link_to_another_repositorys_blobs_is_refused(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    weights(tmp_path / "models--other--secret" / "blobs" / "cccc", "c")
    (snapshot / "x.safetensors").symlink_to("../../../models--other--secret/blobs/cccc")
    assert "outside of the checkpoint" in refusal(snapshot)


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    sharded(tmp_path / "disk" / "model")
    (tmp_path / "model").symlink_to("disk/model")
    assert open_checkpoint(tmp_path / "model").root == tmp_path / "model"


def test_no_payload_is_read_and_neither_torch_nor_numpy_imported(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    header = build_header([Entry("a", "fp32", (1024, 1024, 1024), 2**32)], {})
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + 2**32)
    torch.save({"v": torch.zeros(3)}, tmp_path / "vae.pth")
    code = (
        "import sys; from pathlib import Path; from wanconv.containers import open_checkpoint; "
        "print(len(open_checkpoint(Path(sys.argv[1])).parts)); "
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("2\n", "")


def test_twenty_shards_of_300_tensors_are_one_part(tmp_path: Path) -> None:
    weight_map: dict[str, str] = {}
    for number in range(20):
        shard = f"model-{number + 1:05d}-of-00020.safetensors"
        entries = [Entry(f"blocks.{number}.ffn.{i}.weight", "bf16", (5, 7), 70) for i in range(300)]
        (tmp_path / shard).write_bytes(build_header(entries, {}) + bytes(21_000))
        weight_map |= {entry.name: shard for entry in entries}
    write_index(tmp_path, weight_map, 420_000)
    (part,) = open_checkpoint(tmp_path).parts
    assert (len(part.files), len(part.tensors)) == (20, 6000)


def test_the_header_digest_tells_files_apart_by_their_header_only(tmp_path: Path) -> None:
    first, second = weights(tmp_path / "1.safetensors", "a"), weights(tmp_path / "2.safetensors", "b")
    assert header_digest(first) != header_digest(second)
    before = header_digest(first)
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    assert header_digest(first) == before
    for path, names in [(tmp_path / "1.pth", "ab"), (tmp_path / "2.pth", "ac"), (tmp_path / "3.pth", "ab")]:
        torch.save({name: torch.rand(2) for name in names}, path)
    assert header_digest(tmp_path / "1.pth") == header_digest(tmp_path / "3.pth") != header_digest(tmp_path / "2.pth")


# What is refused. A kind makes a folder and may return what to open instead of it.


def replace_index(content: str | bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        sharded(folder)
        (folder / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def map_to(shard: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        weights(folder.parent / "victim.safetensors", "a")
        weights(folder / "a.safetensors", "a")
        write_index(folder, {"a": shard})

    return make


def lone(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def total_of(total: object) -> Callable[[Path], Path]:
    return lambda folder: sharded(folder, total)


def missing_shard(folder: Path) -> None:
    (sharded(folder) / SHARD.format(2)).unlink()


def shard_with_other_keys(folder: Path) -> None:
    weights(sharded(folder) / SHARD.format(2), "c")


def two_bad_shards(folder: Path) -> None:
    sharded(folder)
    (folder / SHARD.format(1)).write_bytes(b"")
    (folder / SHARD.format(2)).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def no_index(folder: Path) -> None:
    (sharded(folder) / INDEX).unlink()


def leftover_shard(folder: Path) -> None:
    weights(sharded(folder) / "model-00003-of-00003.safetensors", "old")


def two_indexes(folder: Path) -> None:
    (folder / f"again.{INDEX}").write_bytes((sharded(folder) / INDEX).read_bytes())


def two_formats(folder: Path) -> None:
    weights(folder / "a.safetensors", "a")
    torch.save({"b": torch.zeros(2)}, folder / "b.bin")
    write_index(folder, {"a": "a.safetensors", "b": "b.bin"})


def tensor_in_two_shards(folder: Path) -> None:
    weights(sharded(folder) / SHARD.format(1), "a", "b")


def link_out(folder: Path) -> None:
    weights(folder.parent / "victim.safetensors", "a")
    (folder / "a.safetensors").symlink_to("../victim.safetensors")


def shard_link_out(folder: Path) -> Path:
    link_out(folder)
    return write_index(folder, {"a": "a.safetensors"})


def sidecar_link_out(folder: Path) -> None:
    weights(folder / "a.safetensors", "a")
    (folder / "notes.txt").symlink_to("/etc/passwd")


def config_link_out(folder: Path) -> Path:
    (folder / "config.json").symlink_to("/etc/passwd")
    return weights(folder / "a.safetensors", "a")


def folder_link(folder: Path) -> None:
    weights(folder / "a.safetensors", "a")
    (folder / "vae").symlink_to("..")


def link_loop(folder: Path) -> None:
    (folder / "a.safetensors").symlink_to("b.safetensors")
    (folder / "b.safetensors").symlink_to("a.safetensors")


def dangling_link(folder: Path) -> None:
    (folder / "a.safetensors").symlink_to("../blobs/gone")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "a.safetensors")


def lone_fifo(folder: Path) -> Path:
    fifo(folder)
    return folder / "a.safetensors"


def fifo_sidecar(folder: Path) -> None:
    weights(folder / "a.safetensors", "a")
    os.mkfifo(folder / "log")


def pointer_sidecar(folder: Path) -> None:
    weights(folder / "a.safetensors", "a")
    (folder / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def odd_file_name(folder: Path) -> None:
    weights(folder / "a.safetensors", "a")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b.txt")).write_text("")


def only_hidden(folder: Path) -> None:
    weights(folder / ".cache" / "a.safetensors", "a")


def shard_alone(folder: Path) -> Path:
    return sharded(folder) / SHARD.format(1)


GOOD_MAP = json.dumps({"a": SHARD.format(1), "b": SHARD.format(2)})[1:-1]

# fmt: off
HOSTILE: Mapping[str, tuple[Callable[[Path], Path | None], str]] = {
    "nothing there":          (lambda folder: folder / "gone",            "gone does not exist"),
    "empty folder":           (lambda folder: None,                       "holds no weights"),
    "only hidden files":      (only_hidden,                               "holds no weights"),
    "control code in path":   (lambda folder: folder / "a\x1bb",          "characters that no path should have"),
    "NUL in path":            (lambda folder: folder / "a\0b",            "characters that no path should have"),
    "path too long":          (lambda folder: folder / ("x" * 300),       "File name too long"),
    "file as a folder":       (lambda folder: lone("x", b"")(folder) / "y", "Not a directory"),
    "device":                 (lambda folder: Path("/dev/zero"),          "/dev/zero is a device, not a file"),
    "lone FIFO":              (lone_fifo,                                 "is a FIFO, not a file"),
    "FIFO in a folder":       (fifo,                                      "is a FIFO, not a file"),
    "FIFO as a sidecar":      (fifo_sidecar,                              "is a FIFO, not a file"),
    "GGUF, cut off":          (lone("wan-Q4.gguf", b"GGUF\3\0\0\0"),      "wan-Q4.gguf is cut off inside its header"),
    "GGUF by another name":   (lone("wan-Q4.bin", b"GGUF\3\0\0\0"),       "wan-Q4.bin is a GGUF file"),
    "text file":              (lone("README.md", b"# Wan\n"),             "is text"),
    "unknown file":           (lone("wan.onnx", b"\x08\x07\xff"),         "not a weight file, by its name"),
    "pickle as .bin":         (lone("a.bin", b"\x80\4\x95abc"),           "a bare pickle"),
    "zip as safetensors":     (lone("a.safetensors", b"PK\3\4abc"),       "a zip archive"),
    "one shard alone":        (shard_alone,                               "one shard of several"),
    "no index":               (no_index,                                  "no index lists these shards (2 of them)"),
    "leftover shard":         (leftover_shard,                            "model-*-of-00003.safetensors: no index"),
    "missing shard":          (missing_shard,                             "is missing: model.safetensors.index"),
    "index is no JSON":       (replace_index("{"),                        "not valid JSON"),
    "index is empty":         (replace_index(""),                         "is empty, not an index"),
    "index is an LFS pointer":(replace_index("version https://git-lfs.github.com/"), "a git-LFS pointer, not an index"),
    "index is a page":        (replace_index("<!doctype html>"),          "a web page, not an index"),
    "index is not UTF-8":     (replace_index(b'{"weight_map": {"\xff": 1}}'), "is not UTF-8"),
    "index is a list":        (replace_index("[1]"),                      "no weight_map"),
    "index without a map":    (replace_index("{}"),                       "no weight_map"),
    "index with an empty map":(replace_index('{"weight_map": {}}'),       "no weight_map"),
    "map is a list":          (replace_index('{"weight_map": ["a"]}'),    "no weight_map"),
    "key twice in the map":   (replace_index(f'{{"weight_map": {{{GOOD_MAP}, {GOOD_MAP}}}}}'), "'a' stands twice"),
    "metadata is a list":     (replace_index(f'{{"metadata": [], "weight_map": {{{GOOD_MAP}}}}}'), "not a JSON object"),
    "nesting bomb":           (replace_index("[" * 100_000),              "nested too deeply"),
    "shard above":            (map_to("../victim.safetensors"),           "not a plain file name"),
    "shard absolute":         (map_to("/etc/a.safetensors"),              "not a plain file name"),
    "shard in a folder":      (map_to("sub/a.safetensors"),               "not a plain file name"),
    "shard with a backslash": (map_to("..\\victim.safetensors"),          "not a plain file name"),
    "shard with a NUL":       (map_to("a\0.safetensors"),                 "not a plain file name"),
    "shard hidden":           (map_to(".a.safetensors"),                  "not a plain file name"),
    "shard empty":            (map_to(""),                                "not a weight file"),
    "shard of another kind":  (map_to("config.json"),                     "not a weight file"),
    "shard is a number":      (map_to(3),                                 "to 3 instead of a file name"),
    "shards of two formats":  (two_formats,                               "more than one format"),
    "shard with other keys":  (shard_with_other_keys,                     "missing: b"),
    "tensor in two shards":   (tensor_in_two_shards,                      "not listed: b"),
    "two indexes":            (two_indexes,                               "is listed by again.model"),
    "total_size wrong":       (total_of(17),                              "total_size of 17 bytes"),
    "total_size as text":     (total_of("16"),                            "total_size of '16' bytes"),
    "total_size as float":    (total_of(16.0),                            "total_size of 16.0 bytes"),
    "total_size true":        (total_of(True),                            "total_size of True bytes"),
    "link out of the folder": (link_out,                                  "victim.safetensors, outside of the"),
    "shard links out":        (shard_link_out,                            "outside of the checkpoint"),
    "sidecar links out":      (sidecar_link_out,                          "/etc/passwd, outside of the checkpoint"),
    "config links out":       (config_link_out,                           "outside of the checkpoint"),
    "link to a folder":       (folder_link,                               "links to a folder"),
    "link loop":              (link_loop,                                 "symbolic links"),
    "dangling link":          (dangling_link,                             "is a dangling link"),
    "LFS pointer as sidecar": (pointer_sidecar,                           "spiece.model is a git-LFS pointer"),
    "odd file name":          (odd_file_name,                             "holds a file named"),
}
# fmt: on


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_broken_checkpoint_is_refused_with_a_sentence(kind: str, tmp_path: Path) -> None:
    make, message = HOSTILE[kind]
    folder = tmp_path / "model"
    folder.mkdir()
    assert message in refusal(make(folder) or folder)


def test_all_bad_shards_are_named_at_once(tmp_path: Path) -> None:
    two_bad_shards(tmp_path)
    (tmp_path / "vae.pth").write_bytes(b"<html>")
    with pytest.raises(InputError, match="2 problems") as caught:
        open_checkpoint(tmp_path)
    text = "\n".join(caught.value.details)
    assert all(words in text for words in ("is empty", "git-LFS pointer", "a web page", SHARD.format(1)))


def test_a_file_that_may_not_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights(folder / "a.safetensors", "a").chmod(0)
    (folder / "closed").mkdir(mode=0)
    for parent in [folder, *folder.parents]:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(0o755)
    with nobody():
        assert "Permission denied" in refusal(folder / "a.safetensors")
        assert "Permission denied" in refusal(folder / "closed")
        assert "permission denied" in refusal(folder, ("closed",))


def test_a_failing_disk_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(tmp_path / "a.safetensors", "a")

    def fail(descriptor: int, nbytes: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    assert "a.safetensors cannot be read: Input/output error" in refusal(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path / "a.safetensors", "a")
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, nbytes, offset: whole(descriptor, nbytes // 2, offset))
    assert "inside its header" in refusal(path)
