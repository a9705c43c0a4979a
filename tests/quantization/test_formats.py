"""The format table: what is stored how, and what it refuses, from headers alone."""

import subprocess
import sys
from typing import get_args

import pytest

from wanconv.quantization import FORMATS, Format
from wanconv.types.architecture import Kind
from wanconv.types.dtypes import DTYPES

INTEGERS = sorted(name for name, dtype in DTYPES.items() if not dtype.is_float and dtype.block == 1)
CASTS = sorted(name for name, each in FORMATS.items() if each.storage)  # scaled ones are refused the same sources


def test_the_format_table_is_imported_without_torch() -> None:
    code = "import sys, wanconv.quantization; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_format_is_found_by_its_own_name_and_a_plain_cast_stores_a_known_float_dtype() -> None:
    for name, each in FORMATS.items():
        assert each.name == name
        dtype = DTYPES[each.storage or "fp32"]
        assert dtype.is_float or dtype.block > 1 or "none" not in each.scales


@pytest.mark.parametrize("source", sorted(DTYPES))
def test_keep_stores_every_dtype_as_it_is(source: str) -> None:
    assert FORMATS["keep"].refuses(source, "constant", (3,)) is None
    assert FORMATS["keep"].stored(source) == source


def test_a_format_that_needs_statistics_is_refused_while_a_conversion_has_none() -> None:
    needy = Format("needy", "int8", ("row",), needs=frozenset({"second_moment", "largest"}))
    assert needy.refuses("bf16", "linear", (4, 32), "row") == (
        "needy needs a calibration's largest, second_moment, and a conversion has none"
    )
    assert not any(each.needs for each in FORMATS.values())


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("source", INTEGERS)
def test_a_cast_refuses_integers_and_booleans(name: str, source: str) -> None:
    reason = f"{source} numbers are not weights: only keep stores them"
    assert FORMATS[name].refuses(source, "constant", (3,)) == reason


@pytest.mark.parametrize("name", CASTS)
def test_a_cast_refuses_fp64(name: str) -> None:
    assert FORMATS[name].refuses("fp64", "linear", (3, 3)) == (
        "fp64 is only stored by keep: a cast of it would be rounded twice"
    )


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("source", ["fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2"])
def test_a_cast_takes_every_other_float(name: str, source: str) -> None:
    assert FORMATS[name].refuses(source, "linear", (3, 32)) is None
    assert FORMATS[name].stored(source) == FORMATS[name].storage


# Those of blocks say more of what they are for.
@pytest.mark.parametrize("name", [name for name in CASTS if DTYPES[FORMATS[name].storage or ""].block == 1])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_fp8_is_for_weights_of_linear_layers_and_embeddings(name: str, kind: Kind) -> None:
    refusal = FORMATS[name].refuses("fp32", kind, (3,))
    if name in ("fp32", "bf16", "fp16") or kind in ("linear", "embed"):
        assert refusal is None
    else:
        assert refusal == f"clients read {name} in the weights of linear layers and embeddings, and this is {kind}"
