"""Scaled conversions of a tiny model are judged: good ones pass at their own limits, one wrong scale fails."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny as tools
import torch

from wanconv.commands.convert import convert
from wanconv.commands.validate import ValidateOptions, validate
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.models import identify

A14B = "wan2.2-t2v-a14b"


@pytest.fixture(
    scope="module",
    params=[
        ("lightx2v", "fp8-scaled"),
        ("diffusers", "int8-row"),
        ("comfyui", "nvfp4"),
        pytest.param(("diffusers", "fp8-scaled"), marks=pytest.mark.exhaustive),
        pytest.param(("comfyui", "mxfp8"), marks=pytest.mark.exhaustive),
    ],
)
def converted(
    request: pytest.FixtureRequest, tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    layout, recipe = request.param
    out = tmp_path_factory.mktemp("scaled") / "out"
    convert(tiny(A14B), ConvertOptions(recipe, layout=layout, out=out))
    return out


def judged(candidate: Path, against: Path | None) -> int:
    return validate(candidate, ValidateOptions(against=against, profile="quick", size=(64, 64))).exit_code


def test_a_scaled_conversion_passes_at_its_own_limits(converted: Path, tiny: Callable[..., Path]) -> None:
    assert judged(converted, tiny(A14B)) == 0


def test_a_scaled_conversion_is_safe_by_itself(converted: Path) -> None:
    assert judged(converted, None) == 0


@pytest.mark.parametrize(
    "factor",
    [pytest.param(2.0, id="doubled"), pytest.param(0.0, id="dropped", marks=pytest.mark.exhaustive)],
)
def test_a_wrong_scale_fails(converted: Path, factor: float, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """All scales of one weight: doubled, or as a client that drops them has it (one)."""
    out = tools.copy(converted, tmp_path / "out")
    tensor = identify(open_checkpoint(out)).tensors["expert.low/blocks.1.ffn.up.weight"]
    assert tensor.scales is not None
    if tensor.dtype == "mxfp8":
        with tensor.scales.file.open("r+b") as stream:
            stream.seek(tensor.scales.offset)
            stream.write(bytes(code + 1 if factor else 127 for code in tensor.scales.read()))
    else:
        scales = tensor.whole or tensor.scales
        for row, value in enumerate(torch.frombuffer(bytearray(scales.read()), dtype=torch.float32).tolist()):
            tools.poke(scales.file, scales.name, row, value * factor or 1.0)
    assert judged(out, tiny(A14B)) == 6
