"""The same bytes from every torch: a conversion clamps and rounds by its own rules, and not by a version's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

RECIPES = (
    ("experts-bf16-rest-fp16", "diffusers"),
    ("fp8-plain", "official"),
    ("fp8-scaled", "comfyui"),
    ("int8-row", "lightx2v"),
)

CONVERT = """
import sys
from pathlib import Path
import torch
from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions
source, folder, *jobs = sys.argv[1:]
for job in jobs:
    recipe, layout = job.split("/")
    convert(Path(source), ConvertOptions(recipe, layout=layout, out=Path(folder) / recipe))
print(torch.__version__)
"""


def converted(source: Path, folder: Path, *before: Path) -> tuple[str, list[dict[str, str]]]:
    """Returns the version of torch that a new process found, and what it wrote."""
    folder.mkdir()
    paths = os.pathsep.join([*map(str, before), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CONVERT, str(source), str(folder), *map("/".join, RECIPES)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this torch does not start here: {done.stderr.splitlines()[-1]}")
    return done.stdout.strip(), [tiny.contents(folder / recipe) for recipe, _ in RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.11.0", "2.12.0"])
def test_another_torch_writes_the_same_bytes(version: str, tmp_path: Path) -> None:
    """Installed beside this one, with what it needs, from the index of CPU builds where that can be reached."""
    source = tiny.make(tmp_path / "source", "wan2.2-t2v-a14b")
    place = tmp_path / "torch"
    index = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(place), *index, f"torch=={version}"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip(f"torch {version} cannot be installed here")
    found, others = converted(source, tmp_path / "other", place)
    assert found.partition("+")[0] == version
    ours, expected = converted(source, tmp_path / "ours")
    assert (ours, others) == (torch.__version__, expected)
