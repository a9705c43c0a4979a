"""demo: the whole way in seconds, as often as one likes."""

import json
import sys
from pathlib import Path

import pytest
from command import COMMAND, run
from isolation import namespace, run_isolated


def test_the_demo_asks_no_network_and_says_where_to_look_and_may_be_run_again(tmp_path: Path) -> None:
    """It converts, verifies and validates."""
    command = [*COMMAND, "demo", "--dir", "a folder"]  # what scripts/demo calls
    first, attempts = run_isolated(command, tmp_path, tmp_path / "notes")
    assert (first.returncode, attempts) == (0, "")
    look_at = next(line for line in first.stdout.splitlines() if line.strip().startswith("look at"))
    for path in look_at.strip().removeprefix("look at").strip().split(", "):
        assert (tmp_path / path).is_file()
    assert "every element within its bound" in first.stdout
    assert "PASS by the profile standard" in first.stdout
    made = json.loads((tmp_path / "a folder" / "converted" / "wanconv.json").read_bytes())
    assert (made["family"], made["layout"], made["recipe"]["name"]) == (
        "wan2.2-t2v-a14b",
        "diffusers",
        "experts-bf16-rest-fp16",
    )
    again = run("demo", "--dir", "a folder", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert sorted(path.name for path in (tmp_path / "a folder").iterdir()) == ["converted", "report", "source"]
    assert "data:image" in (tmp_path / "a folder" / "report" / "validation.html").read_text()


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://localhost/')",
        "import huggingface_hub; huggingface_hub.HfApi().model_info('a/b')",
    ],
)
def test_an_attempt_to_reach_anybody_is_noted(attempt: str, tmp_path: Path) -> None:
    """What the test above proves is that there was none."""
    done, attempts = run_isolated([sys.executable, "-c", attempt], tmp_path, tmp_path / "notes")
    assert (done.returncode, attempts.startswith("socket.")) == (1, True)


@pytest.mark.skipif(not namespace(), reason="unshare --net is not allowed: a network that libraries in C could use")
def test_what_is_not_pythons_has_no_network_either(tmp_path: Path) -> None:
    devices = "import pathlib; print(*[line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])"
    done, _ = run_isolated([sys.executable, "-c", devices], tmp_path, tmp_path / "notes")
    assert done.stdout.split() == ["lo"]


def test_a_demo_that_was_stopped_or_spoilt_is_made_again(tmp_path: Path) -> None:
    half = tmp_path / "demo-output" / "source.partial"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    converted = tmp_path / "demo-output" / "converted"
    converted.mkdir()
    (converted / "wanconv.json").write_text("{}")
    done = run("demo", cwd=tmp_path)
    assert (done.returncode, "error" in done.stderr) == (0, False)
    assert not half.exists()
    assert json.loads((converted / "wanconv.json").read_bytes())["layout"] == "diffusers"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("demo", "--dir", "file/demo", cwd=tmp_path)
    assert done.returncode == 7
    assert done.stderr.startswith("error[output]: cannot write file/demo/source.partial: Not a directory\nhint: ")
