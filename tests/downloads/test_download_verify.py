"""From a hub to a verified folder: verify knows what a download brought, whoever downloaded it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub.server import Hub, git_sha1, running, sha256

from wanconv.commands.convert import convert
from wanconv.commands.download import DownloadOptions, download
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.conversion.options import ConvertOptions
from wanconv.downloads.selection import Wish
from wanconv.errors import InputError, UsageError
from wanconv.report import Report

Make = Callable[..., Path]
VAE = "Wan2.1_VAE.pth"


@pytest.fixture(scope="module")
def hub(tiny: Make) -> Iterator[Hub]:
    """Returns a hub with the tiny Wan 2.1, an example clip and another framework's copy."""
    root = tiny("wan2.1-t2v-1.3b")
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with running(files | {"examples/cat.mp4": b"moving", "model.onnx": b"other"}) as server:
        yield server


@pytest.fixture(scope="module")
def pristine(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Returns the downloaded folder; not to be changed. The clients in this process are led to the hub."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment().items():
            patch.setenv(name, value)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("MODELSCOPE_HOME", str(home))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read once, at import
        folder = home / "model"
        download("owner/name", DownloadOptions(local_dir=folder))
        yield folder


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """Returns a copy of the download, to be spoilt."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def flip(path: Path) -> None:
    """Changes one bit, and neither size nor time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def said(report: Report, severity: str) -> list[tuple[str, str]]:
    return [(one.where, one.message) for one in report.findings if one.severity == severity]


def test_a_download_is_verified_without_the_hub(hub: Hub, pristine: Path) -> None:
    hub.log.clear()
    report = verify(pristine, VerifyOptions())
    assert (report.exit_code, said(report, "failure"), said(report, "warning")) == (0, [], [])
    files = len(hub.files) - 2
    assert report.figures["digests"] == f"{files} files by .wanconv-download.json"
    assert hub.log == []


@pytest.mark.parametrize("path", [VAE, "config.json"])
def test_a_flipped_bit_with_size_and_time_preserved_is_found(model: Path, path: str) -> None:
    flip(model / path)
    report = verify(model, VerifyOptions())
    assert report.exit_code == 4
    assert [where for where, _ in said(report, "failure")] == [path]
    assert ".wanconv-download.json says" in said(report, "failure")[0][1]


def test_missing_and_extra_files_are_told(model: Path) -> None:
    (model / "google" / "umt5-xxl" / "notes.txt").write_text("mine")
    next((model / "google" / "umt5-xxl").glob("*.json")).unlink()
    report = verify(model, VerifyOptions())
    assert report.exit_code == 1
    assert [message for _, message in said(report, "failure")] == ["is missing"]
    assert said(report, "warning") == [("google/umt5-xxl/notes.txt", "is not of the download")]


def test_a_record_that_is_none_is_refused(model: Path) -> None:
    record = model / ".wanconv-download.json"
    text = record.read_text()
    for spoilt in (
        "[]",
        "{",
        text.replace(VAE, "../../x"),
        text.replace("sha256", "crc32"),
        text.replace('"hub"', '"h"'),
    ):
        record.write_text(spoilt)
        with pytest.raises(InputError, match=r"\.wanconv-download\.json"):
            verify(model, VerifyOptions())


def test_the_hub_is_asked_for_what_was_recorded(hub: Hub, pristine: Path) -> None:
    hub.log.clear()
    report = verify(pristine, VerifyOptions(hub="recorded"))
    assert (report.exit_code, said(report, "failure"), said(report, "warning")) == (0, [], [])
    assert str(report.figures["digests"]).endswith(f"files by hf://owner/name@{hub.head}")
    assert len(hub.log) == 2


def test_the_hub_finds_a_record_and_a_file_that_were_changed_together(model: Path) -> None:
    flip(model / "config.json")
    record = model / ".wanconv-download.json"
    lines = record.read_text().split("\n")
    place = next(number for number, line in enumerate(lines) if '"config.json"' in line)
    lines[place + 3] = f'   "digest": "{git_sha1((model / "config.json").read_bytes())}"'
    record.write_text("\n".join(lines))
    assert verify(model, VerifyOptions()).exit_code == 0
    assert verify(model, VerifyOptions(hub="recorded")).exit_code == 4


def test_a_folder_of_unknown_origin_is_compared_with_the_hub_that_is_named(model: Path) -> None:
    (model / ".wanconv-download.json").unlink()
    (model / "notes.txt").write_text("mine")
    for name in ("hf://owner/name", "ms://owner/name"):
        report = verify(model, VerifyOptions(hub=name))
        assert (report.exit_code, said(report, "failure")) == (0, [])
        warned = dict(said(report, "warning"))
        assert warned.keys() == {"notes.txt", "examples/cat.mp4", "model.onnx"}
    with pytest.raises(UsageError, match="says which repository it is from"):
        verify(model, VerifyOptions(hub="recorded"))


def test_one_file_has_no_list_at_a_hub(pristine: Path) -> None:
    with pytest.raises(UsageError, match="`hub` is about folders"):
        verify(pristine / VAE, VerifyOptions(hub="recorded"))


def have_downloaded(hub: Hub, homes: Mapping[str, str], client: str, *words: str) -> None:
    """Has a hub's own client download the repository."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(client)), "download", "owner/name", *words],
        env={**os.environ, **hub.environment(), **homes},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_hugging_faces_client_downloads_is_verified_offline(hub: Hub, pristine: Path, tmp_path: Path) -> None:
    homes = {"HF_HOME": str(tmp_path / "home")}
    excluded = ("--exclude", "examples/*", "--exclude", "*.onnx")
    for place in (("--local-dir", str(tmp_path / "local")), ()):
        have_downloaded(hub, homes, "hf", *place, *excluded)
    cached = tmp_path / "home" / "hub" / "models--owner--name" / "snapshots" / hub.head
    files = len(hub.files) - 2
    for folder in (tmp_path / "local", cached):
        report = verify(folder, VerifyOptions())
        assert (report.exit_code, said(report, "failure")) == (0, [])
        assert report.figures["digests"] == f"{files} files by Hugging Face's client"
    assert verify(cached, VerifyOptions(hub="recorded")).exit_code == 0
    flip((cached / "config.json").resolve())
    assert verify(cached, VerifyOptions()).exit_code == 4


def test_what_modelscopes_client_downloads_is_verified_by_the_hubs_list(
    hub: Hub, pristine: Path, tmp_path: Path
) -> None:
    """It records no digest, so offline there is nothing to hold the files against; its cache's path names the model."""
    homes = {"MODELSCOPE_HOME": str(tmp_path / "home"), "MODELSCOPE_CACHE": str(tmp_path / "cache")}
    for place in (("--local-dir", str(tmp_path / "local")), ()):
        have_downloaded(hub, homes, "ms-hub", *place)
    cached = tmp_path / "cache" / "models" / "owner--name" / "snapshots" / "master"
    assert said(verify(cached, VerifyOptions()), "warning")[0][1].startswith("no digest is known")
    for folder, which in ((tmp_path / "local", "ms://owner/name"), (cached, "recorded")):
        report = verify(folder, VerifyOptions(hub=which))
        assert (report.exit_code, said(report, "failure"), said(report, "warning")) == (0, [], [])
        assert report.figures["digests"] == f"{len(hub.files)} files by ms://owner/name@master"
        flip(folder / VAE)
        assert verify(folder, VerifyOptions(hub=which)).exit_code == 4


def test_downloaded_verified_converted_verified(hub: Hub, pristine: Path, tmp_path: Path) -> None:
    assert verify(pristine, VerifyOptions()).exit_code == 0
    convert(pristine, ConvertOptions("fp16", layout="diffusers", out=tmp_path / "out"))
    assert verify(tmp_path / "out", VerifyOptions(against=pristine)).exit_code == 0
    sources = json.loads((tmp_path / "out" / "wanconv.json").read_text())["source"]
    assert {one["sha256_from"] for one in sources} == {f"hf://owner/name@{hub.head}"}
    assert {one["sha256"] for one in sources} == {sha256(hub.files[one["path"]]) for one in sources}
    assert not [path for path in (tmp_path / "out").rglob("*") if "download" in path.name]


def test_a_part_of_a_model_is_a_model_to_verify(hub: Hub, pristine: Path, tmp_path: Path) -> None:
    report = download("owner/name", DownloadOptions(wish=Wish(only=("vae",)), local_dir=tmp_path / "vae"))
    weights = [path.name for path in (tmp_path / "vae").rglob("*") if path.suffix in (".pth", ".safetensors")]
    assert weights == [VAE]
    assert any("belongs to dit" in finding.message for finding in report.findings)
    assert verify(tmp_path / "vae", VerifyOptions()).exit_code == 0
    more = replace(DownloadOptions(local_dir=tmp_path / "vae"), wish=Wish(only=("experts",)))
    download("owner/name", more)
    report = verify(tmp_path / "vae", VerifyOptions())
    assert (report.exit_code, said(report, "warning")) == (0, [])
