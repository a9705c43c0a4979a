"""demo: the whole way in seconds, as often as one likes."""

import json
from pathlib import Path

from command import run


def test_the_demo_says_where_to_look_and_may_be_run_again(tmp_path: Path) -> None:
    first = run("demo", "--dir", "a folder", cwd=tmp_path)  # what scripts/demo calls
    assert first.returncode == 0
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
