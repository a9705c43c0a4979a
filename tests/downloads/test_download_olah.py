"""Against olah, a hub that others wrote, over a real git and git-lfs repository: download, verify, convert, verify."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import run

pytestmark = pytest.mark.tools

_OLAH = shutil.which(os.environ.get("OLAH", "olah-cli"))
_MISSING = [name for name, found in (("olah-cli", _OLAH), ("git-lfs", shutil.which("git-lfs"))) if found is None]


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=wanconv", "-c", "user.email=wanconv@example.invalid", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """Returns the tiny Wan 2.1 as a git repository with its weights in LFS."""
    folder = tmp_path / "mirrors" / "models" / "owner" / "name"
    shutil.copytree(tiny("wan2.1-t2v-1.3b"), folder)
    _git(folder, "init", "-q")
    _git(folder, "lfs", "install", "--local")
    _git(folder, "lfs", "track", "*.safetensors", "*.pth")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", "a model")
    return folder


@pytest.fixture
def endpoint(repository: Path, tmp_path: Path) -> Iterator[str]:
    assert _OLAH is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    config = tmp_path / "olah.toml"
    config.write_text(
        f"""
        [basic]
        host = "127.0.0.1"
        port = {port}
        repos-path = "{tmp_path / "repos"}"
        mirrors-path = ["{tmp_path / "mirrors"}"]
        mirror-scheme = "http"
        mirror-netloc = "{address}"
        mirror-lfs-netloc = "{address}"

        [accessibility]
        offline = true
        """
    )
    with (tmp_path / "olah.log").open("w") as log:
        server = subprocess.Popen([_OLAH, "-c", str(config)], cwd=tmp_path, stdout=log, stderr=log)
        try:
            _wait(port, server)
            yield f"http://{address}"
        finally:
            server.terminate()
            server.wait(30)


def _wait(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("olah does not start")


@pytest.mark.skipif(bool(_MISSING), reason=f"no {', '.join(_MISSING)}: no hub of others has been downloaded from")
def test_a_model_from_a_hub_of_others(repository: Path, endpoint: str, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def wanconv(*arguments: str) -> str:
        done = run(*arguments, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    wanconv("download", "owner/name", "--local-dir", "model")
    assert _git(repository, "rev-parse", "HEAD") in (tmp_path / "model" / ".wanconv-download.json").read_text()
    for path in _git(repository, "ls-files").split("\n"):
        assert (tmp_path / "model" / path).read_bytes() == (repository / path).read_bytes()
    assert "files by .wanconv-download.json" in wanconv("verify", "model")
    assert "files by hf://owner/name@" in wanconv("verify", "model", "--hub", "recorded")
    wanconv("convert", "model", "--recipe", "fp16", "--layout", "diffusers", "--out", "baked")
    wanconv("verify", "baked", "--against", "model")
