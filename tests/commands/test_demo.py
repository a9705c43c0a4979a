"""demo: the whole way in a minute, as often as one likes."""

import json
import re
import sys
from pathlib import Path

import pytest
from command import COMMAND, run
from isolation import namespace, run_isolated
from tiny import digests
from validation_samples import sides

from wanconv.commands import demo
from wanconv.errors import UsageError


@pytest.mark.exhaustive
def test_the_demo_asks_no_network_and_says_where_to_look_and_may_be_run_again(tmp_path: Path) -> None:
    """It converts, verifies, validates, breaks and compares; what a stopped run left is made again."""
    folder = tmp_path / "a folder"
    (folder / ".wanconv-demo-0a1b2c3d").mkdir(parents=True)
    (folder / ".wanconv-demo-0a1b2c3d" / "model.safetensors").write_bytes(b"half")
    command = [*COMMAND, "demo", "--dir", "a folder"]  # what scripts/demo calls
    first, attempts = run_isolated(command, tmp_path, tmp_path / "notes")
    assert (first.returncode, attempts, "error" in first.stderr) == (0, "", False), first.stdout + first.stderr
    look_at = next(line for line in first.stdout.splitlines() if line.strip().startswith("look at"))
    for path in look_at.strip().removeprefix("look at").strip().split(", "):
        assert (tmp_path / path).is_file()
    assert first.stdout.startswith("4 of 4 conversions passed, and the broken one was caught\n")
    assert "tensors within their bounds" in first.stdout
    assert "broken FAIL" in first.stdout
    for baked in demo.CONVERSIONS[:-1]:
        made = json.loads((folder / "converted" / baked.name / "wanconv.json").read_bytes())
        named = (made["family"], made["layout"], made["recipe"]["name"])
        assert named == ("wan2.2-t2v-a14b", baked.layout, baked.recipe)
    assert sorted(path.name for path in folder.iterdir()) == ["broken", "converted", "demo.html", "reports", "source"]
    page = (folder / "demo.html").read_text()
    links = re.findall(r'href="(reports/[^"]+)"', page)
    assert len(links) == len(demo.CONVERSIONS)
    assert all((folder / link).is_file() for link in links)
    again = run("demo", "--dir", "a folder", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert (folder / "demo.html").read_text() == page


def test_a_demo_whose_broken_one_passes_or_whose_good_one_fails_has_exit_code_1(tmp_path: Path) -> None:
    for names, said in (
        (("passed", "passed"), "broken: one scale is doubled, and verify and validate do not both say so"),
        (("failed", "failed"), "fp8-scaled: FAIL; "),
    ):
        report = demo.told(tmp_path, "a model", sides(*names))
        told = [f"{finding.where}: {finding.message}" for finding in report.findings]
        assert report.exit_code == 1
        assert len(told) == 1
        assert told[0].startswith(said)
    report = demo.told(tmp_path, "a model", sides("passed", "failed"))
    assert (report.exit_code, report.title) == (0, "1 of 1 conversions passed, and the broken one was caught")


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


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("demo", "--dir", "file/demo", cwd=tmp_path)
    assert done.returncode == 7
    assert done.stderr.startswith("error[output]: cannot write file/demo/source: Not a directory\nhint: ")


@pytest.mark.parametrize("name", ["converted", "broken", "reports", "demo.html"])
@pytest.mark.parametrize("kind", ["somebody's", "a link"])
def test_what_no_demo_made_is_not_written_over(tmp_path: Path, name: str, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "model.safetensors").write_text("precious")
    folder = tmp_path / "demo"
    folder.mkdir()
    if kind == "a link":
        (folder / "source").mkdir()
        (folder / name).symlink_to(precious)
    else:
        precious.rename(folder / name)
    before = digests(tmp_path)
    with pytest.raises(UsageError, match=f"demo/{name} (is a link|was not made by a demo)") as refused:
        demo.demo(folder)
    assert refused.value.hint == "name another folder, or move it away by hand"
    assert digests(tmp_path) == before


def test_a_link_in_what_a_demo_made_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "demo" / "source").mkdir(parents=True)
    (tmp_path / "demo" / "broken").mkdir()
    (tmp_path / "demo" / "broken" / "vae.safetensors").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match=r"broken/vae\.safetensors is a link"):
        demo.demo(tmp_path / "demo")
    assert (tmp_path / "precious").read_text() == "precious"
