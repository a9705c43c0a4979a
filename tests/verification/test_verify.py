"""verify: every change is found and named, every list is read as its own tool reads it, nothing outside is touched."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import flip
from covering import covering, takes
from tiny import copy

from wanconv import recipe
from wanconv.commands import convert as converting
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, WanconvError
from wanconv.layouts import LAYOUTS
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.report import Cell, Finding, Report
from wanconv.storage import digests
from wanconv.types.names import matches
from wanconv.types.progress import ProgressStep
from wanconv.types.tensors import CONTAINERS, TensorRef
from wanconv.verification import checksums

A14B = "wan2.2-t2v-a14b"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny: Make) -> Path:
    """Returns a conversion of the tiny A14B to diffusers; not to be changed."""
    out = tmp_path_factory.mktemp("verify") / "converted"
    converting.convert(tiny(A14B), ConvertOptions("experts-bf16-rest-fp16", layout="diffusers", out=out))
    return out


@pytest.fixture
def out(converted: Path, tmp_path: Path) -> Path:
    """Returns a copy of the conversion, to be spoilt."""
    return Path(shutil.copytree(converted, tmp_path / "out"))


def failures(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity == "failure"]


def warnings(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity == "warning"]


def ref_of(path: Path, name: str) -> TensorRef:
    (part,) = open_checkpoint(path).parts
    return part.tensors[name]


def rewrite(out: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = json.loads((out / "wanconv.json").read_bytes())
    change(value)
    (out / "wanconv.json").write_text(json.dumps(value))


# The manifest


def test_an_untouched_conversion_passes(converted: Path) -> None:
    report = verify(converted, VerifyOptions())
    assert (report.exit_code, report.findings) == (0, [])
    assert report.text("cover") == "408 tensors, every one known and none missing"
    assert str(report.figures["digests"]).endswith("files by wanconv.json")


def test_a_flipped_bit_in_any_file_is_found(converted: Path, out: Path) -> None:
    paths = [path.relative_to(out) for path in out.rglob("*") if path.is_file() and path.name != "wanconv.json"]
    assert {path.suffix for path in paths} == {".safetensors", ".json", ".md"}
    for path in paths:
        flip(out / path, -1)
        report = verify(out, VerifyOptions())
        found = {(finding.where, finding.code) for finding in failures(report)}
        assert (str(path), "digest") in found
        assert report.exit_code == 4
        shutil.copyfile(converted / path, out / path)


def test_a_changed_tensor_is_named(out: Path) -> None:
    flip(out / TRANSFORMER, ref_of(out / TRANSFORMER, "blocks.1.attn2.to_q.weight").offset)
    _, tensor = failures(verify(out, VerifyOptions()))
    assert tensor.where == "expert.high/blocks.1.cross_attn.q.weight"
    assert tensor.message == f"its bytes in {TRANSFORMER} have changed"


def test_a_changed_tensor_is_named_in_a_shard_and_in_a_pth(tiny: Make, tmp_path: Path) -> None:
    out = tmp_path / "sharded"
    converting.convert(tiny(A14B), ConvertOptions("keep", out=out, shard_nbytes=10**6))
    shard = next(path for path in sorted(out.rglob("*-of-*.safetensors")) if "00002" in path.name)
    flip(shard, -1)
    vae = out / "Wan2.1_VAE.pth"
    flip(vae, ref_of(vae, "conv1.weight").offset)
    named = [finding.where for finding in failures(verify(out, VerifyOptions()))]
    assert named[:2] == sorted([str(shard.relative_to(out)), vae.name])
    assert any(name.startswith("vae/") for name in named)
    assert any(name.startswith("expert.") for name in named)


def test_a_missing_file_is_a_failed_check(out: Path) -> None:
    (out / "model_index.json").unlink()
    report = verify(out, VerifyOptions())
    assert [(one.where, one.message, one.code) for one in failures(report)] == [
        ("model_index.json", "is missing", "check-failed")
    ]
    assert report.exit_code == 1


def test_a_shorter_file_is_told_by_its_length(out: Path) -> None:
    os.truncate(out / TRANSFORMER, 1000)
    report = verify(out, VerifyOptions())
    assert failures(report)[0].message.startswith("is 1 kB (1,000 bytes) long, not ")
    assert report.exit_code == 4


def test_a_file_that_the_manifest_does_not_list_is_a_warning(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    report = verify(out, VerifyOptions())
    assert [(one.severity, one.where) for one in report.findings] == [("warning", "notes.txt")]
    assert report.exit_code == 0


def test_an_edited_digest_is_found(out: Path) -> None:
    def edit(value: dict[str, object]) -> None:
        value["files"][0]["sha256"] = "0" * 64  # type: ignore[index]  # the manifest's own form

    rewrite(out, edit)
    assert verify(out, VerifyOptions()).exit_code == 4


def test_a_manifest_that_says_anything_else_than_it_did_is_found(out: Path) -> None:
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda value: value["recipe"].update(name="another"),
        lambda value: value["tool"].update(torch="0"),
        lambda value: value.pop("self_sha256"),
    ]
    for change in changes:
        before = (out / "wanconv.json").read_bytes()
        rewrite(out, change)
        (found,) = failures(verify(out, VerifyOptions()))
        assert found.where == "wanconv.json"
        assert found.message == "is not what was written: its self_sha256 does not fit the rest of it"
        (out / "wanconv.json").write_bytes(before)
    rewrite(out, lambda value: None)  # the spacing alone
    assert failures(verify(out, VerifyOptions())) == []


def test_a_tensor_that_left_its_file_is_named(out: Path) -> None:
    header = (out / TRANSFORMER).read_bytes()
    (out / TRANSFORMER).write_bytes(header.replace(b'"scale_shift_table"', b'"scale_shift_tablE"', 1))
    gone = [one.where for one in failures(verify(out, VerifyOptions())) if "is missing from" in one.message]
    assert gone == ["expert.high/head.modulation"]


FILE = {"path": "model_index.json", "nbytes": 1, "sha256": "0" * 64}
TENSOR = {"file": "elsewhere.safetensors", "name": "a", "xxh3_128": "0"}
BROKEN: dict[str, tuple[bytes | Mapping[str, object], str]] = {
    "no-json": (b"{", "is not valid JSON"),
    "empty": (b"", "is not valid JSON"),
    "a-key-twice": (b'{"schema": 1, "schema": 2}', "stands twice"),
    "a-list": (b"[]", "its schema is not wanconv.manifest/1"),
    "another-schema": ({"schema": "wanconv.manifest/9"}, "its schema is not wanconv.manifest/1"),
    "no-plan": ({"plan": None}, "it names no plan"),
    "no-files": ({"files": None}, "it lists no files"),
    "a-file-that-is-none": ({"files": [1]}, "it lists no files"),
    "parent": ({"files": [FILE | {"path": "../secret"}]}, "'../secret' is not a path inside the folder"),
    "parent-inside": ({"files": [FILE | {"path": "vae/../../secret"}]}, "is not a path inside the folder"),
    "absolute": ({"files": [FILE | {"path": "/etc/passwd"}]}, "'/etc/passwd' is not a path inside the folder"),
    "backslash": ({"files": [FILE | {"path": "..\\secret"}]}, "is not a path inside the folder"),
    "nul": ({"files": [FILE | {"path": "a\0b"}]}, "is not a path inside the folder"),
    "the-folder": ({"files": [FILE | {"path": "."}]}, "is not a path inside the folder"),
    "no-name": ({"files": [FILE | {"path": ""}]}, "is not a path inside the folder"),
    "a-size-that-is-none": ({"files": [FILE | {"nbytes": "1"}]}, "size or sha256 of model_index.json is invalid"),
    "a-digest-that-is-none": ({"files": [FILE | {"sha256": "0"}]}, "size or sha256 of model_index.json is invalid"),
    "no-tensors": ({"tensors": []}, "it lists no tensors"),
    "a-tensor-that-is-none": ({"tensors": {"a": 1}}, "its entry of a is invalid"),
    "a-tensor-elsewhere": ({"tensors": {"a": TENSOR}}, "a is in 'elsewhere.safetensors', which it does not list"),
    "no-options": ({"options": None}, "it has no options"),
    "an-expert-of-no-kind": ({"options": {"expert": "middle", "exclude": []}}, "it has no options"),
    "excluding-nothing": ({"options": {"expert": None, "exclude": "x"}}, "its option exclude is not a list of texts"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_manifest_that_cannot_be_trusted_is_refused(kind: str, out: Path) -> None:
    broken, message = BROKEN[kind]
    if isinstance(broken, bytes):
        (out / "wanconv.json").write_bytes(broken)
    else:
        rewrite(out, lambda value: value.update(broken))
    with pytest.raises(InputError) as caught:
        verify(out, VerifyOptions())
    assert message in caught.value.message
    assert "wanconv.json" in caught.value.message


def test_a_listed_size_beyond_everything_is_a_wrong_size(out: Path) -> None:
    rewrite(out, lambda value: value["files"].append(FILE | {"path": "README.md", "nbytes": 10**40}))  # type: ignore[attr-defined]  # a list
    assert "not over a million TB" in failures(verify(out, VerifyOptions()))[0].message


@pytest.mark.parametrize("kind", ["link", "folder-link", "fifo"])
def test_a_listed_file_is_never_read_outside_of_the_folder(kind: str, out: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim" / "config.json"
    victim.parent.mkdir()
    shutil.copy(out / "vae" / "config.json", victim)
    listed = out / "vae" / "config.json"
    listed.unlink()
    if kind == "link":
        listed.symlink_to(victim)
    elif kind == "folder-link":
        shutil.rmtree(out / "vae")
        (out / "vae").symlink_to(victim.parent)
    else:
        os.mkfifo(listed)
    report = verify(out, VerifyOptions())
    assert report.exit_code == 3
    assert any("outside of the checkpoint" in one.message or "is a FIFO" in one.message for one in failures(report))
    assert not any("sha256" in one.message for one in failures(report))


def test_the_manifest_itself_is_no_link_to_elsewhere_and_no_fifo(out: Path, tmp_path: Path) -> None:
    (out / "wanconv.json").rename(tmp_path / "wanconv.json")
    (out / "wanconv.json").symlink_to(tmp_path / "wanconv.json")
    with pytest.raises(InputError, match="outside of the checkpoint"):
        verify(out, VerifyOptions())
    (out / "wanconv.json").unlink()
    os.mkfifo(out / "wanconv.json")
    with pytest.raises(InputError, match="is a FIFO"):
        verify(out, VerifyOptions())


# Digest lists


def shell(command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, check=False)


STYLES = {
    "sha256sum": "sha256sum {files}",
    "text": "sha256sum -t {files}",
    "binary": "sha256sum -b {files}",
    "bsd": "sha256sum --tag {files}",
    "md5": "md5sum {files}",
    "md5-bsd": "md5sum --tag {files}",
    "sha1": "sha1sum {files}",
    "sha512": "sha512sum {files}",
    "sha384-bsd": "sha384sum --tag {files}",
    "upper-case": "sha256sum {files} | sed 's/^[0-9a-f]*/\\U&/'",
    "crlf": "sha256sum {files} | sed 's/$/\\r/'",
    "comments": "echo '# made by hand'; echo; sha256sum {files}",
    "dots": "sha256sum ./configuration.json ./weights.safetensors",
}


@pytest.fixture
def downloaded(tiny: Make, tmp_path: Path) -> Path:
    """Returns a small model as it was downloaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tiny(A14B) / "Wan2.1_VAE.pth", folder)
    (folder / "configuration.json").write_text("{}")
    return folder


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("damage", [False, True])
def test_a_list_says_what_its_own_tool_says(style: str, damage: bool, tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "configuration.json").write_text("{}")
    shutil.copy(tiny(A14B) / "high_noise_model" / "diffusion_pytorch_model.safetensors", folder / "weights.safetensors")
    command = STYLES[style].format(files="configuration.json weights.safetensors")
    (folder / "LIST").write_text(shell(command, folder).stdout)
    if damage:
        flip(folder / "configuration.json", 0)
    tool = "cksum" if style == "dots" else next(word for word in command.split() if word.endswith("sum"))
    if style not in ("crlf", "dots"):  # which sha256sum takes for part of the name; and cksum needs a newer coreutils
        assert (shell(f"{tool} -c LIST", folder).returncode != 0) == damage
    report = verify(folder, VerifyOptions(sums=(folder / "LIST",), expert="high"))
    assert report.exit_code == (4 if damage else 0)
    assert report.figures["digests"] == "2 files by LIST"
    assert [one.where for one in failures(report)] == ["configuration.json"] * damage


def test_escaped_names_are_read_as_sha256sum_writes_them(tmp_path: Path) -> None:
    for name in ("two\nlines", "back\\slash", "back\\nslash", "cr\rname", " leading", "star*"):
        (tmp_path / name).write_text(name)
    for style in ("", "--tag"):
        (tmp_path / "LIST").write_text(shell(f"sha256sum {style} -- [!L]*", tmp_path).stdout)
        assert shell("sha256sum -c LIST", tmp_path).returncode == 0
        listed = {line.path: line.digest for line in checksums.read_list(tmp_path / "LIST").lines}
        assert listed == {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in tmp_path.iterdir()
            if path.name != "LIST"
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "lists nothing"),
        (b"\n\n# nothing\n", "lists nothing"),
        (b"hello\n", "line 1 is not a digest and a file name: 'hello'"),
        (b"0123456789  a\n", "line 1 has a digest of an unknown kind, with 10 digits"),
        (b"BLAKE2b (a) = " + b"0" * 128 + b"\n", "has a digest of an unknown kind, with 128 digits"),
        (b"MD5 (a) = " + b"0" * 64 + b"\n", "has a digest of an unknown kind, with 64 digits"),
        (b"\xff\xfe", "line 1 is not UTF-8"),
    ],
)
def test_what_is_no_list_is_refused(text: bytes, message: str, converted: Path, tmp_path: Path) -> None:
    (tmp_path / "LIST").write_bytes(text)
    with pytest.raises(InputError, match=message):
        verify(converted, VerifyOptions(sums=(tmp_path / "LIST",)))
    with pytest.raises(InputError, match="does not exist"):
        verify(converted, VerifyOptions(sums=(tmp_path / "none",)))


def test_a_listed_file_that_is_missing_or_elsewhere_is_a_failed_check(converted: Path, tmp_path: Path) -> None:
    names = ("gone.safetensors", "../secret", "/etc/hostname")
    (tmp_path / "LIST").write_text("".join(f"{'0' * 64}  {name}\n" for name in names))
    report = verify(converted, VerifyOptions(sums=(tmp_path / "LIST",)))
    assert {one.where: one.message for one in failures(report)} == {
        "gone.safetensors": "is missing",
        "../secret": "LIST lists it, and its path is not inside this folder",
        "/etc/hostname": "LIST lists it, and its path is not inside this folder",
    }
    assert report.exit_code == 1


def test_lists_in_the_folder_are_found_and_one_that_is_damaged_is_a_failure(downloaded: Path) -> None:
    (downloaded / "SHA256SUMS").write_text(shell("sha256sum *.json *.pth", downloaded).stdout)
    (downloaded / "Wan2.1_VAE.pth.sha256").write_text("?")
    report = verify(downloaded, VerifyOptions())
    assert report.figures["digests"] == "2 files by SHA256SUMS"
    damaged = downloaded / "Wan2.1_VAE.pth.sha256"
    said = f"{damaged} is not a list of digests: line 1 is not a digest and a file name: '?'"
    assert [(one.where, one.message) for one in failures(report)] == [(str(damaged), said)]
    assert report.exit_code == 3
    damaged.unlink()
    flip(downloaded / "configuration.json", 0)
    assert verify(downloaded, VerifyOptions()).exit_code == 4


def test_a_lone_file_is_checked_by_its_own_line(downloaded: Path) -> None:
    (downloaded / "LIST").write_text(shell("sha256sum *.json *.pth", downloaded).stdout + "0" * 64 + "  gone\n")
    vae = downloaded / "Wan2.1_VAE.pth"
    assert verify(vae, VerifyOptions(sums=(downloaded / "LIST",))).exit_code == 0
    (downloaded / "OTHER").write_text("0" * 64 + "  other.pth\n")
    with pytest.raises(InputError, match=r"no line of .*OTHER is about Wan2.1_VAE.pth"):
        verify(vae, VerifyOptions(sums=(downloaded / "OTHER",)))


def test_a_damaged_line_is_a_failure_and_the_good_ones_are_checked_all_the_same(downloaded: Path) -> None:
    """One bit of a letter of the first digest has flipped."""
    names = ("configuration.json", "Wan2.1_VAE.pth")
    digests = [hashlib.sha256((downloaded / name).read_bytes()).hexdigest() for name in names]
    lines = f"g{digests[0][1:]}  {names[0]}\n{digests[1]}  {names[1]}\n"
    (downloaded / "SHA256SUMS").write_text(lines)
    report = verify(downloaded, VerifyOptions())
    assert failures(report)[0].message.startswith("line 1 is not a digest and a file name: 'g")
    assert (len(failures(report)), report.exit_code, report.figures["digests"]) == (1, 3, "1 file by SHA256SUMS")
    flip(downloaded / "Wan2.1_VAE.pth", -1)
    report = verify(downloaded, VerifyOptions())
    assert [one.where for one in failures(report)] == [str(downloaded / "SHA256SUMS"), "Wan2.1_VAE.pth"]
    assert report.exit_code == 4


def test_weight_files_that_a_list_does_not_cover_are_named(tiny: Make, tmp_path: Path) -> None:
    folder = copy(tiny(A14B), tmp_path / "model")
    weights = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in CONTAINERS)
    assert len(weights) == 4
    (folder / "SHA256SUMS").write_text(shell(f"sha256sum {weights[0]} {weights[3]}", folder).stdout)
    report = verify(folder, VerifyOptions())
    assert report.exit_code == 0
    assert {one.where: one.message for one in warnings(report)} == dict.fromkeys(
        weights[1:3], "no digest of it is known"
    )
    (folder / "MD5SUMS").write_text(shell(f"md5sum {weights[1]} {weights[2]}", folder).stdout)
    assert warnings(verify(folder, VerifyOptions())) == []


def test_a_list_made_further_up_is_about_the_folder_that_it_names(tiny: Make, tmp_path: Path) -> None:
    folder = copy(tiny(A14B), tmp_path / "checkpoints" / "wan")
    (tmp_path / "LIST").write_text(shell("md5sum checkpoints/*/*/*.safetensors checkpoints/wan/*.pth", tmp_path).stdout)
    report = verify(folder, VerifyOptions(sums=(tmp_path / "LIST",)))
    assert (report.exit_code, report.figures["digests"], warnings(report)) == (0, "4 files by LIST", [])
    flip(folder / "Wan2.1_VAE.pth", -1)
    assert [one.where for one in failures(verify(folder, VerifyOptions(sums=(tmp_path / "LIST",))))] == [
        "Wan2.1_VAE.pth"
    ]


def test_an_expert_alone_is_found_in_a_list_of_both(tiny: Make, tmp_path: Path) -> None:
    folder = copy(tiny(A14B), tmp_path / "wan")
    (tmp_path / "LIST").write_text(shell("sha256sum wan/*/*.safetensors", tmp_path).stdout)
    file = folder / "low_noise_model" / "diffusion_pytorch_model.safetensors"
    lone = VerifyOptions(sums=(tmp_path / "LIST",), expert="low")
    for path in (file, file.parent):
        assert verify(path, lone).exit_code == 0
    file.parent.rename(folder / "renamed")  # now nothing tells which of the two it is
    report = verify(folder / "renamed", lone)
    (failure,) = failures(report)
    assert failure.message.endswith("in 2 ways, as any of wan/high_noise_model, wan/low_noise_model")
    with pytest.raises(InputError, match="could both be"):
        verify(folder / "renamed" / file.name, lone)


def test_a_digest_without_a_name_is_of_the_file_that_has_it(downloaded: Path) -> None:
    vae = downloaded / "Wan2.1_VAE.pth"
    digest = hashlib.sha256(vae.read_bytes()).hexdigest()
    for name in ("Wan2.1_VAE.pth.sha256", "vae.sha256"):
        (downloaded / name).write_text(f"{digest}\n")
        report = verify(downloaded, VerifyOptions())
        assert (report.exit_code, report.figures["digests"], warnings(report)) == (0, f"1 file by {name}", [])
        flip(vae, -1)
        (failure,) = failures(verify(downloaded, VerifyOptions()))
        expected = "sha256 is " if name.startswith("Wan") else f"no file of this folder has the sha256 {digest}"
        assert failure.message.startswith(expected)
        flip(vae, -1)
        (downloaded / name).unlink()


def test_a_file_that_is_listed_often_is_read_once(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("sha256", "md5", "sha512"):
        (downloaded / f"{tool}sums").write_text(shell(f"{tool}sum *.pth *.json; {tool}sum *.pth", downloaded).stdout)
    read: list[str] = []
    chunks = digests.read_chunks

    def noted(path: Path) -> Iterator[memoryview]:
        read.append(path.name)
        return chunks(path)

    monkeypatch.setattr(digests, "read_chunks", noted)
    assert verify(downloaded, VerifyOptions()).exit_code == 0
    assert sorted(read) == ["Wan2.1_VAE.pth", "configuration.json"]


def test_what_a_manifest_and_a_list_say_is_read_once(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "LIST").write_text(shell("find . -type f ! -name wanconv.json | xargs sha256sum", converted).stdout)
    read: list[str] = []
    chunks = digests.read_chunks

    def noted(path: Path) -> Iterator[memoryview]:
        read.append(path.relative_to(converted).as_posix())
        return chunks(path)

    monkeypatch.setattr(digests, "read_chunks", noted)
    assert verify(converted, VerifyOptions(sums=(tmp_path / "LIST",))).exit_code == 0
    assert len(read) == len(set(read)) > 3


def test_without_any_digest_there_is_a_warning(tiny: Make) -> None:
    report = verify(tiny(A14B), VerifyOptions())
    assert [one.message for one in warnings(report)] == [
        "no digest is known: headers and cover are all that is checked"
    ]
    assert report.exit_code == 0


def test_digests_that_hugging_face_left_are_used(downloaded: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256((downloaded / "Wan2.1_VAE.pth").read_bytes()).hexdigest()
    metadata = downloaded / ".cache" / "huggingface" / "download" / "Wan2.1_VAE.pth.metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"{'a' * 40}\n{digest}\n1700000000.0\n")
    cache = tmp_path / "models--o--n"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    shutil.copy(downloaded / "Wan2.1_VAE.pth", cache / "blobs" / digest)
    (snapshot / "Wan2.1_VAE.pth").symlink_to(f"../../blobs/{digest}")
    for folder in (downloaded, snapshot, snapshot / "Wan2.1_VAE.pth"):
        report = verify(folder, VerifyOptions())
        assert (report.exit_code, report.figures["digests"]) == (0, "1 file by Hugging Face's client")
    flip(downloaded / "Wan2.1_VAE.pth", -1)
    flip(cache / "blobs" / digest, -1)
    for folder in (downloaded, snapshot):
        report = verify(folder, VerifyOptions())
        assert (report.exit_code, failures(report)[0].where) == (4, "Wan2.1_VAE.pth")


# Against the source


def matching(one: recipe.Recipe) -> bool:
    return any(matches(glob, A14B) for glob in one.families)


@covering(
    ("name", "layout"),
    recipe.names(),
    list(LAYOUTS),
    strength=1,
    given=lambda name, layout: takes(layout, name) and matching(recipe.load(name)),
)
def test_every_recipe_is_proven_within_its_bound(name: str, layout: str, tiny: Make, tmp_path: Path) -> None:
    source, out = tiny(A14B), tmp_path / "out"
    converting.convert(source, ConvertOptions(name, layout=layout, out=out))
    report = verify(out, VerifyOptions(against=source))
    assert (report.exit_code, failures(report)) == (0, [])
    worst = {(row[0], row[1]): row[4].value for row in report.tables[0].rows if isinstance(row[4], Cell)}
    for (before, after), ratio in worst.items():
        assert isinstance(ratio, float)
        rounds = before != after and (before, after) != ("bf16", "fp32")
        assert 0.99 < ratio <= 1.0 if rounds else ratio == 0.0


def test_one_flipped_low_bit_is_found_and_located(converted: Path, out: Path, tiny: Make) -> None:
    ref = ref_of(out / TRANSFORMER, "blocks.1.ffn.net.2.weight")
    row, column = 3, 5
    flip(out / TRANSFORMER, ref.offset + 2 * (row * ref.shape[1] + column))
    (out / "wanconv.json").unlink()
    report = verify(out, VerifyOptions(against=tiny(A14B)))
    (finding,) = failures(report)
    assert finding.where == "expert.high/blocks.1.ffn.down.weight"
    stored = value_of(ref, row * ref.shape[1] + column)
    source = ref_of(tiny(A14B) / "high_noise_model" / "diffusion_pytorch_model.safetensors", "blocks.1.ffn.2.weight")
    weight = value_of(source, row * ref.shape[1] + column)
    assert finding.message.startswith(f"element [3, 5] is {stored:.9g}, and {weight:.9g} in the source: more than ")
    assert (finding.code, report.exit_code) == ("check-failed", 1)
    assert [row[4] for row in report.tables[0].rows if row[:2] == ("fp32", "bf16")] == [
        Cell("broken", "broken: above 1", "failure")
    ]


def value_of(ref: TensorRef, index: int) -> float:
    return float(torch.frombuffer(bytearray(ref.read()), dtype=TORCH_DTYPES[ref.dtype])[index].item())


@pytest.mark.parametrize("bits", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"], ids=["nan", "inf", "-inf"])
def test_a_value_that_is_no_number_is_found(bits: bytes, out: Path, tiny: Make) -> None:
    ref = ref_of(out / TRANSFORMER, "blocks.0.attn1.to_k.weight")
    with (out / TRANSFORMER).open("r+b") as stream:
        stream.seek(ref.offset)
        stream.write(bits)
    (out / "wanconv.json").unlink()
    report = verify(out, VerifyOptions(against=tiny(A14B)))
    (finding,) = failures(report)
    assert finding.where == "expert.high/blocks.0.self_attn.k.weight"
    assert "in the source: not finite" in finding.message
    assert (finding.code, report.exit_code) == ("not-finite", 5)


def test_a_tensor_in_the_place_of_another_is_found(out: Path, tiny: Make) -> None:
    first, second = (ref_of(out / TRANSFORMER, f"blocks.0.attn1.to_{name}.weight") for name in "qk")
    payload = second.read()
    with (out / TRANSFORMER).open("r+b") as stream:
        stream.seek(first.offset)
        stream.write(payload)
    (out / "wanconv.json").unlink()
    named = [one.where for one in failures(verify(out, VerifyOptions(against=tiny(A14B))))]
    assert named == ["expert.high/blocks.0.self_attn.q.weight"]


def test_swapped_experts_are_found(out: Path, tiny: Make) -> None:
    (out / "transformer").rename(out / "third")
    (out / "transformer_2").rename(out / "transformer")
    (out / "third").rename(out / "transformer_2")
    (out / "wanconv.json").unlink()
    report = verify(out, VerifyOptions(against=tiny(A14B)))
    assert report.exit_code == 1
    assert {one.where.partition("/")[0] for one in failures(report)} == {"expert.high", "expert.low"}


def test_two_layouts_of_one_model_are_compared(converted: Path, tiny: Make, tmp_path: Path) -> None:
    back = tmp_path / "back"
    converting.convert(converted, ConvertOptions("keep", layout="official", out=back))
    assert verify(back, VerifyOptions(against=converted)).exit_code == 0
    assert verify(back, VerifyOptions(against=tiny(A14B))).exit_code == 0


def test_a_source_with_fewer_components_is_a_failure_for_each(converted: Path, tiny: Make, tmp_path: Path) -> None:
    part = Path(shutil.copytree(tiny(A14B), tmp_path / "part"))
    shutil.rmtree(part / "low_noise_model")
    (part / "Wan2.1_VAE.pth").unlink()
    told = [(one.where, one.message) for one in failures(verify(converted, VerifyOptions(against=part)))]
    assert told == [("expert.low", "is here and not in the source"), ("vae", "is here and not in the source")]


def test_a_component_that_was_lost_is_a_failure(out: Path, tiny: Make) -> None:
    shutil.rmtree(out / "vae")
    (out / "wanconv.json").unlink()
    report = verify(out, VerifyOptions(against=tiny(A14B)))
    assert [(one.where, one.message) for one in failures(report)] == [("vae", "is in the source and not here")]
    assert report.exit_code == 1


@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
def test_what_another_naming_does_without_is_not_missed(layout: str, tiny: Make, tmp_path: Path) -> None:
    """CLIP's text half and its projection: nothing that runs Wan looks at them."""
    source = tiny("wan2.1-i2v-14b")
    converting.convert(source, ConvertOptions("bf16", layout=layout, out=tmp_path / "out"))
    assert verify(tmp_path / "out", VerifyOptions(against=source)).exit_code == 0


def test_what_the_conversion_excluded_is_not_missed(tiny: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    converting.convert(tiny(A14B), ConvertOptions("bf16", layout="diffusers", out=out, exclude=("*.pth", "google/*")))
    assert verify(out, VerifyOptions(against=tiny(A14B))).exit_code == 0


def test_a_lone_expert_is_compared_with_the_role_it_was_given(tiny: Make, tmp_path: Path) -> None:
    lone = tmp_path / "model.safetensors"
    shutil.copy(tiny(A14B) / "low_noise_model" / "diffusion_pytorch_model.safetensors", lone)
    converting.convert(lone, ConvertOptions("bf16", out=tmp_path / "out", expert="low"))
    assert verify(tmp_path / "out", VerifyOptions(against=lone)).exit_code == 0


@pytest.mark.parametrize("other", ["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"])
def test_a_source_of_another_family_is_told_in_one_sentence(other: str, converted: Path, tiny: Make) -> None:
    report = verify(converted, VerifyOptions(against=tiny(other)))
    (finding,) = failures(report)
    assert finding.message.startswith("is not the source of this model: it is wan2.")
    assert "and this is wan2.2-t2v-a14b (expert.high, expert.low, text_encoder, vae)" in finding.message
    assert (finding.fix, report.exit_code) == ("give the folder that it was made from", 1)


def test_a_source_that_cannot_be_read_is_told_before_anything_is_hashed(converted: Path, tmp_path: Path) -> None:
    told: list[ProgressStep] = []
    with pytest.raises(WanconvError, match="does not exist"):
        verify(converted, VerifyOptions(against=tmp_path / "none"), told.append)
    assert told == []


def test_files_are_hashed_in_small_pieces(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(100 << 20)
    largest = max(len(chunk) for chunk in digests.read_chunks(file))
    assert largest <= 4 << 20
