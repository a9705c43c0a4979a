"""publish: a converted folder goes up whole, is refused when it does not verify, and is compared with what arrived."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from command import run
from hub.server import Hub, files_below, leading
from modelscope_hub.constants import Visibility

from wanconv.commands.convert import convert
from wanconv.commands.publish import PublishOptions, publish
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import CheckFailed, DigestMismatch, InputError, UsageError


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """Returns a conversion; not to be changed."""
    out = tmp_path_factory.mktemp("publish") / "baked"
    convert(tiny("wan2.1-t2v-1.3b"), ConvertOptions("fp16", layout="diffusers", out=out))
    return out


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with leading({".gitattributes": b""}, monkeypatch, tmp_path / "modelscope") as server:
        server.faults.token = "hf_secret"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # read once, at import
        yield server


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_a_conversion_arrives_whole_and_comes_back(hub: Hub, baked: Path, tmp_path: Path, name: str) -> None:
    tokens = {"HF_TOKEN": "hf_secret", "MODELSCOPE_API_TOKEN": "hf_secret"}
    homes = {"HF_HOME": str(tmp_path / "home"), "MODELSCOPE_HOME": str(tmp_path / "home")}
    environment = {**hub.environment(), **tokens, **homes}
    before = files_below(baked)
    done = run("publish", baked, f"{name}://owner/name", "--json", cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)["figures"]
    assert figures["repository"] == f"{name}://owner/name@{hub.head if name == 'hf' else 'master'}"
    assert hub.files == before | {".gitattributes": b""}
    assert files_below(baked) == before
    done = run("download", f"{name}://owner/name", "--local-dir", "back", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert run("verify", "back", cwd=tmp_path).returncode == 0
    assert files_below(tmp_path / "back").items() >= files_below(baked).items()


def test_what_the_repository_holds_beside_it_is_told(hub: Hub, baked: Path) -> None:
    hub.commit({".gitattributes": b"", "old-00002-of-00002.safetensors": b"of another conversion"})
    (finding,) = publish(baked, "owner/name", PublishOptions("hf_secret")).findings
    assert (finding.severity, finding.where) == ("warning", f"hf://owner/name@{hub.head}")
    assert "1 file besides these, which comes with every download: old-00002-of-00002.safe" in finding.message


def test_what_no_manifest_lists_stays_here(hub: Hub, baked: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(baked, tmp_path / "out"))
    (out / "notes.txt").write_text("mine")
    publish(out, "owner/name", PublishOptions("hf_secret"))
    assert hub.files.keys() == files_below(baked).keys() | {".gitattributes"}


def test_a_folder_that_does_not_verify_is_not_published(hub: Hub, baked: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(baked, tmp_path / "out"))
    os.truncate(out / "README.md", 3)
    with pytest.raises(CheckFailed, match="does not verify, and nothing was published") as caught:
        publish(out, "owner/name", PublishOptions("hf_secret"))
    assert caught.value.details[0].startswith("README.md: is 3 bytes long")
    assert hub.log == []


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_bytes_that_change_on_the_way_are_found(hub: Hub, baked: Path, name: str) -> None:
    hub.faults.wrong_bytes = 1
    with pytest.raises(DigestMismatch, match="does not hold what"):
        publish(baked, f"{name}://owner/name", PublishOptions("hf_secret"))


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_without_a_token_nothing_is_sent(hub: Hub, baked: Path, tmp_path: Path, name: str) -> None:
    homes = {"HF_HOME": str(tmp_path / "home"), "MODELSCOPE_HOME": str(tmp_path / "home")}
    done = run("publish", baked, f"{name}://owner/name", cwd=tmp_path, **hub.environment(), **homes)
    assert (done.returncode, "publishing needs a token that may write" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_a_token_that_may_not_write_is_told(hub: Hub, baked: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"not for this token|needs a token that is allowed to"):
        publish(baked, f"{name}://owner/name", PublishOptions("hf_other"))
    assert hub.files == {".gitattributes": b""}


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_an_upload_that_is_refused_is_told(hub: Hub, baked: Path, name: str) -> None:
    hub.faults.full = True
    with pytest.raises(InputError, match=r"Error while uploading .*it answers 403|failed to upload"):
        publish(baked, f"{name}://owner/name", PublishOptions("hf_secret"))
    assert not any(path.endswith(".safetensors") for path in hub.files)


def test_a_new_repository_is_as_private_as_asked(hub: Hub, baked: Path) -> None:
    publish(baked, "ms://owner/name", PublishOptions("hf_secret", private=True))
    publish(baked, "ms://owner/name", PublishOptions("hf_secret"))  # it is there, and stays as it is
    assert hub.visibility == int(Visibility.PRIVATE)


def test_what_is_published_is_the_latest_revision(hub: Hub, baked: Path) -> None:
    with pytest.raises(UsageError, match="names a revision"):
        publish(baked, "owner/name@v1", PublishOptions("hf_secret"))


def test_what_is_no_conversion_is_not_published(hub: Hub, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"has no wanconv\.json"):
        publish(tiny("wan2.1-t2v-1.3b"), "owner/name", PublishOptions("hf_secret"))
