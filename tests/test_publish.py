"""publish: a converted folder goes up whole, is refused when it does not verify, and is compared with what arrived."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from command import run
from hub.server import Hub, running

from wanconv.errors import CheckFailed, DigestMismatch, UsageError
from wanconv.verbs.convert import convert
from wanconv.verbs.publish import Options, publish
from wanconv.workshop.job import Options as Job


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """Returns a conversion; not to be changed."""
    out = tmp_path_factory.mktemp("publish") / "baked"
    convert(tiny("wan2.1-t2v-1.3b"), Job("fp16", layout="diffusers", out=out))
    return out


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running({".gitattributes": b""}) as server:
        server.faults.token = "hf_secret"
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # both are read once, at import
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_conversion_arrives_whole_and_comes_back(hub: Hub, baked: Path, tmp_path: Path) -> None:
    environment = {**hub.environment(), "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "home")}
    done = run("publish", baked, "owner/name", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert f"hf://owner/name@{hub.head}" in done.stdout
    assert hub.files == contents(baked) | {".gitattributes": b""}
    done = run("download", "owner/name", "--local-dir", "back", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert run("verify", "back", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "back").items() >= contents(baked).items()


def test_what_no_manifest_lists_stays_here(hub: Hub, baked: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(baked, tmp_path / "out"))
    (out / "notes.txt").write_text("mine")
    publish(out, "owner/name", Options("hf_secret"))
    assert hub.files.keys() == contents(baked).keys() | {".gitattributes"}


def test_a_folder_that_does_not_verify_is_not_published(hub: Hub, baked: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(baked, tmp_path / "out"))
    os.truncate(out / "README.md", 3)
    with pytest.raises(CheckFailed, match="does not verify, and nothing was published") as caught:
        publish(out, "owner/name", Options("hf_secret"))
    assert caught.value.details[0].startswith("README.md: is 3 bytes long")
    assert hub.log == []


def test_bytes_that_change_on_the_way_are_found(hub: Hub, baked: Path) -> None:
    hub.faults.wrong_bytes = 1
    with pytest.raises(DigestMismatch, match="does not hold what"):
        publish(baked, "owner/name", Options("hf_secret"))


def test_without_a_token_nothing_is_sent(hub: Hub, baked: Path, tmp_path: Path) -> None:
    done = run("publish", baked, "owner/name", cwd=tmp_path, **hub.environment(), HF_HOME=str(tmp_path / "home"))
    assert (done.returncode, "publishing needs a token that may write" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("repository", "message"), [("owner/name@v1", "names a revision"), ("ms://owner/name", "to ModelScope yet")]
)
def test_where_it_cannot_go_is_told(
    hub: Hub, baked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str, message: str
) -> None:
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=message):
        publish(baked, repository, Options("hf_secret"))


def test_what_is_no_conversion_is_not_published(hub: Hub, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"has no wanconv\.json"):
        publish(tiny("wan2.1-t2v-1.3b"), "owner/name", Options("hf_secret"))
