"""Every family through the command line: inspected, converted and verified against its source."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wanconv.cli.app import run
from wanconv.families import FAMILIES
from wanconv.tensors import Family


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_inspected_converted_and_verified(
    family: Family,
    tiny: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def wanconv(*arguments: object) -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            run([*map(str, arguments), "--json"])
        output, errors = capfd.readouterr()
        assert (ended.value.code or 0, errors) == (0, "")
        report: dict[str, Any] = json.loads(output)
        return report

    source, out = tiny(family.releases[-1].name), tmp_path / "out"
    wanconv("convert", source, "--recipe", "fp8-plain", "--out", out)
    figures = wanconv("inspect", out)["figures"]
    assert figures["family"] == family.name
    assert "fp8_e4m3fn" in figures["dtypes"]
    wanconv("verify", out, "--against", source)
