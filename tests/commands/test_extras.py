"""What works without the extra `wanconv[validate]`, and what is said where it is missing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wanconv.errors import UsageError
from wanconv.types.extras import EXTRAS, need

# Hides modules as if they were not installed, then runs each command in the one process.
_WITHOUT = """
import contextlib, io, json, sys

hidden, commands = json.load(sys.stdin)
sys.modules |= dict.fromkeys(hidden)
from wanconv.cli import main

results = []
for arguments in commands:
    sys.argv = ["wanconv", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as ending:
            results.append([ending.code, output.getvalue(), errors.getvalue()])
print(json.dumps(results))
"""


def test_headers_conversion_and_proof_do_without_the_extra_and_a_validation_says_what_is_missing(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = str(tiny("wan2.1-t2v-1.3b"))
    (tmp_path / "results.json").write_text("{}")
    commands = [
        ["inspect", source],
        ["recipes"],
        ["convert", source, "-r", "bf16", "--layout", "comfyui", "-o", "out"],
        ["verify", "out", "--against", source],
        ["validate", "out", "--against", source],
        ["demo", "--dir", "demo"],
        ["validate", "--recheck", "results.json"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT],
        input=json.dumps([list(EXTRAS["validate"]), commands]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads(done.stdout)
    assert [code for code, _, _ in results] == [0, 0, 0, 0, 2, 2, 3], results
    libraries = "pillow, av, diffusers, jinja2, transformers"
    hint = 'hint: pip install "wanconv[validate]"\n'
    assert results[4][2] == f"error[usage]: validate needs {libraries}, which are not installed\n{hint}"
    assert results[5][2] == f"error[usage]: the demo needs {libraries}, which are not installed\n{hint}"
    assert "results.json" in results[6][2]
    assert not (tmp_path / "demo").exists()


def test_one_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    need("validate", "validate")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"^validate needs av, which is not installed$") as raised:
        need("validate", "validate")
    assert raised.value.hint == 'pip install "wanconv[validate]"'
