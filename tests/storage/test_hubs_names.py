"""Names that a hub may not give to files: refused before a byte is asked for, with nothing outside touched."""

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub.server import Hub, running

from wanconv.commands.download import DownloadOptions, download
from wanconv.errors import InputError, UsageError
from wanconv.storage.hubs import parse
from wanconv.storage.hubs.names import check_names

PAYLOAD = b"attack" * 2000
ATTACKS = {
    "parent": "../canary/file",
    "parent far up": "../" * 20 + "tmp/wanconv-attack",
    "parent inside": "a/../../canary/file",
    "parent that comes back": "a/../b",
    "parent at the end": "a/..",
    "the folder itself": ".",
    "here": "./a",
    "here inside": "a/./b",
    "absolute": "/canary/file",
    "two slashes in front": "//canary/file",
    "nothing between slashes": "a//b",
    "slash at the end": "a/",
    "empty": "",
    "NUL": "a\0b",
    "NUL after a good name": "config.json\0.txt",
    "backslash": "..\\canary\\file",
    "backslash inside": "a\\b",
    "drive": "C:\\canary",
    "drive without a root": "C:canary",
    "drive with slashes": "C:/canary",
    "stream": "a.txt:stream",
    "UNC": "\\\\server\\share",
    "device": "con",
    "device in capitals": "NUL",
    "device with a suffix": "aux.json",
    "device in a folder": "a/COM1.safetensors",
    "device as a folder": "lpt9/a",
    "device with a superscript": "com¹",
    "newline": "a\nb",
    "escape": "\x1b[2Ja",
    "delete": "a\x7f",
    "C1 control": "a\x9bb",
    "right-to-left override": "a\u202etxt.exe",
    "zero width": "config\u200b.json",
    "lone surrogate": "a\ud800",
    "dot at the end": "a.",
    "blank at the end": "a ",
    "blank in front": " a",
    "folder with a blank at the end": "a /b",
    "git's own": ".git/hooks/post-checkout",
    "git's own in capitals": "a/.GIT/config",
    "git's own in wide letters": ".ｇｉｔ/config",
    "our record": ".wanconv-download.json",
    "another file on its way": ".a.safetensors.0123456789abcdef.part",
    "long name": "a" * 300,
    "long path": "/".join(["a" * 100] * 20),
}
COLLISIONS = {
    "case": ("Config.json", "config.json"),
    "case of a folder": ("VAE/a", "vae/b"),
    "sharp s": ("straße", "STRASSE"),
    "Unicode forms": ("caf\u00e9", "cafe\u0301"),
    "file and folder": ("a", "a/b"),
    "file and folder by case": ("A", "a/b/c"),
}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Yields a folder beside the target and sees to it that it is as it was."""
    folder = tmp_path / "canary"
    folder.mkdir()
    (folder / "file").write_text("alive")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"file": "alive"}
    assert {path.name for path in tmp_path.iterdir()} <= {"canary", "target", "home"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running({}) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read once, at import
        yield server


@pytest.mark.parametrize("name", ATTACKS.values(), ids=ATTACKS)
def test_an_unsafe_name_is_refused_before_anything_is_written(hub: Hub, canary: Path, name: str) -> None:
    hub.commit({"config.json": b"{}", name: PAYLOAD})
    hub.log.clear()
    with pytest.raises(InputError, match="under names that are not safe to write") as caught:
        download("owner/name", DownloadOptions(local_dir=canary.parent / "target"))
    assert caught.value.details
    assert all(line.isprintable() for line in caught.value.details)
    assert hub.payload_requests() == []
    assert not (canary.parent / "target").exists()


@pytest.mark.parametrize("names", COLLISIONS.values(), ids=COLLISIONS)
def test_names_that_are_one_file_elsewhere_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="not safe to write"):
        check_names(names, "the hub")


def test_modelscopes_list_is_trusted_no_more(
    hub: Hub, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    hub.commit({"config.json": b"{}", "../canary/file": PAYLOAD})
    with pytest.raises(InputError, match="not safe to write"):
        download("ms://owner/name", DownloadOptions(local_dir=tmp_path / "target"))


def test_an_unsafe_name_that_is_not_wanted_does_no_harm(hub: Hub, canary: Path) -> None:
    from wanconv.downloads.selection import Wish

    hub.commit({"config.json": b"{}", "../canary/file": PAYLOAD})
    download("owner/name", DownloadOptions(wish=Wish(include=("config.json",)), local_dir=canary.parent / "target"))
    assert (canary.parent / "target" / "config.json").read_bytes() == b"{}"


def test_names_that_real_models_have_are_fine() -> None:
    names = (
        ".gitattributes", "README.md", "google/umt5-xxl/tokenizer.json", "assets/a b (1).png", "模型/说明.md",
        "Wan2.1_VAE.pth", "high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors", "console.txt", "a,b",
    )  # fmt: skip
    check_names(names, "the hub")


# Links on the way


def test_a_link_in_place_of_a_folder_is_not_followed(hub: Hub, canary: Path) -> None:
    target = canary.parent / "target"
    target.mkdir()
    (target / "vae").symlink_to(canary)
    hub.commit({"vae/file": PAYLOAD})
    with pytest.raises(UsageError, match="is a link"):
        download("owner/name", DownloadOptions(local_dir=target, force=True))


@pytest.mark.parametrize("where", ["file", "nowhere"])
def test_a_link_in_place_of_a_file_is_not_followed(hub: Hub, canary: Path, where: str) -> None:
    target = canary.parent / "target"
    target.mkdir()
    (target / "file").symlink_to(canary / where)
    hub.commit({"file": PAYLOAD})
    with pytest.raises(UsageError, match="is a link"):
        download("owner/name", DownloadOptions(local_dir=target, force=True))


def part_of(hub: Hub, path: Path) -> Path:
    from hub.server import sha256

    return path.with_name(f".{path.name}.{sha256(hub.files[path.name])[:16]}.part")


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_link_in_place_of_a_beginning_is_not_written_through(hub: Hub, canary: Path, make: object) -> None:
    target = canary.parent / "target"
    target.mkdir()
    hub.commit({"file": PAYLOAD})
    assert callable(make)
    make(canary / "file", part_of(hub, target / "file"))
    download("owner/name", DownloadOptions(local_dir=target))
    assert (target / "file").read_bytes() == PAYLOAD
    assert not (target / "file").is_symlink()


def test_a_fifo_in_place_of_a_file_or_a_beginning_hangs_nobody(hub: Hub, canary: Path) -> None:
    target = canary.parent / "target"
    target.mkdir()
    hub.commit({"file": PAYLOAD})
    os.mkfifo(part_of(hub, target / "file"))
    download("owner/name", DownloadOptions(local_dir=target))
    (target / "file").unlink()
    os.mkfifo(target / "file")
    with pytest.raises(UsageError, match="is in the way"):
        download("owner/name", DownloadOptions(local_dir=target))


def test_a_hard_linked_file_elsewhere_keeps_its_bytes(hub: Hub, canary: Path) -> None:
    target = canary.parent / "target"
    target.mkdir()
    hub.commit({"file": PAYLOAD})
    os.link(canary / "file", target / "file")
    download("owner/name", DownloadOptions(local_dir=target, force=True))
    assert (target / "file").read_bytes() == PAYLOAD


def test_the_record_is_not_written_through_a_link(hub: Hub, canary: Path) -> None:
    target = canary.parent / "target"
    target.mkdir()
    hub.commit({"file": PAYLOAD})
    (target / ".wanconv-download.json.tmp").symlink_to(canary / "file")
    download("owner/name", DownloadOptions(local_dir=target))


# How a repository is named


@pytest.mark.parametrize(
    ("text", "source", "revision", "found"),
    [
        ("Wan-AI/Wan2.2-T2V-A14B", None, None, ("hf", "Wan-AI/Wan2.2-T2V-A14B", None)),
        ("Wan-AI/Wan2.2-T2V-A14B", "modelscope", "v1", ("ms", "Wan-AI/Wan2.2-T2V-A14B", "v1")),
        ("hf://o/n@refs/pr/1", None, None, ("hf", "o/n", "refs/pr/1")),
        ("ms://o/n@v1", "ms", "v1", ("ms", "o/n", "v1")),
    ],
)
def test_a_repository_is_named_by_owner_and_name(
    text: str, source: str | None, revision: str | None, found: tuple[str, str, str | None]
) -> None:
    reference = parse(text, source, revision)
    assert (reference.hub, reference.repository, reference.revision) == found


@pytest.mark.parametrize(
    ("text", "source", "revision", "message"),
    [
        ("Wan2.2", None, None, "is not a valid repository name"),
        ("../x/y", None, None, "is not a valid repository name"),
        ("o/..", None, None, "is not a valid repository name"),
        ("o/n/m", None, None, "is not a valid repository name"),
        ("s3://o/n", None, None, "^s3:// is not supported yet: s3://o/n$"),
        ("https://huggingface.co/o/n", None, None, "^https:// is not supported yet: https://huggingface.co/o/n$"),
        ("hf:/o/n", None, None, "^hf:/o/n lacks a slash$"),
        ("o/n", "github", None, "there is no hub 'github'"),
        ("hf://o/n", "modelscope", None, "name two hubs"),
        ("o/n@v1", None, "v2", "name two revisions"),
    ],
)
def test_what_is_no_repository_is_a_usage_error(
    text: str, source: str | None, revision: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text, source, revision)
