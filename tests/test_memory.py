"""Checkpoints of 14B width under a memory limit that is set from outside: planned whole, and converted."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import sparse
from battery import Scale
from command import COMMAND

from wanconv.verbs.verify import Options, verify

A14B = "wan2.2-t2v-a14b"
LIMIT_KIB = 3 << 19  # 1.5 GiB of data: heap, stacks and every private mapping that may be written to


def limited(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    words = ["bash", "-c", f'ulimit -d {LIMIT_KIB} && exec "$@"', "-", *command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=3600, check=False)


def test_the_limit_holds(tmp_path: Path) -> None:
    done = limited(sys.executable, "-c", f"bytearray({LIMIT_KIB << 10})", cwd=tmp_path)
    assert (done.returncode, "MemoryError" in done.stderr) == (1, True)


def test_a_14b_checkpoint_is_planned_within_the_limit(tmp_path: Path) -> None:
    source = sparse.make(tmp_path / "source", A14B, components=["expert.high"])
    assert sum(path.stat().st_size for path in source.rglob("*.safetensors")) > 57e9
    done = limited(*COMMAND, "convert", "source", "-r", "fp8-plain", "--dry-run", cwd=tmp_path)
    assert done.returncode in (0, 7), done.stderr  # 7: this disk has no room for the output, as the plan says


def test_blocks_of_14b_width_are_converted_within_the_limit(
    scale: Scale, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """As many as the scale asks for and a quarter of the free disk takes; of holes, which read as zeros."""
    block_nbytes = 360_000_000  # in fp8
    blocks = min(scale.blocks, shutil.disk_usage(tmp_path).free // 4 // block_nbytes)
    source = sparse.make(tmp_path / "source", A14B, components=["expert.high"], blocks=blocks)
    done = limited(*COMMAND, "convert", str(source), "-r", "fp8-plain", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "out", Options()).exit_code == 0
    shutil.rmtree(tmp_path / "out")
    record_property("cases", blocks)
