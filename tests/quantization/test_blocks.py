"""Q8_0 against gguf, bit for bit, and against the bound that it states."""

from math import inf, nan

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from wanconv.errors import NotFinite, Overflow
from wanconv.quantization import FORMATS
from wanconv.quantization.blocks import Blocker, bound, check, decode, encode
from wanconv.quantization.plain import CHUNK

Q8_0 = gguf.GGMLQuantizationType.Q8_0
LARGEST = 127 * 65504.0


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ties() -> Tensor:
    """Returns blocks whose scale is one, so that their numbers are halves and what lies right beside them."""
    halves = torch.randint(-253, 254, (4096, 32), generator=seeded(1)) / 2.0
    near = torch.stack((halves, torch.nextafter(halves, halves + 1), torch.nextafter(halves, halves - 1)), 1)
    near = near.view(-1, 32)
    near[:, 0] = 127.0
    return near


def all_exponents() -> Tensor:
    magnitudes = torch.randint(int(torch.tensor(LARGEST).view(torch.int32)) + 1, (1 << 15, 32), generator=seeded(2))
    # gguf itself makes nonsense of blocks whose scale has no reciprocal in float32
    values = magnitudes.to(torch.int32).view(torch.float32).clamp_(min=2.0**-120)
    return values * (torch.randint(2, values.shape, generator=seeded(3)) * 2 - 1)


WEIGHTS = {
    "small numbers": torch.randn(512, 256, generator=seeded(4)) * 0.02,
    "numbers whose scales are subnormal": torch.randn(512, 256, generator=seeded(5)) * 1e-5,
    "numbers whose scales vanish": torch.randn(512, 256, generator=seeded(6)) * 1e-8,
    "numbers of very different size": torch.exp(torch.randn(512, 256, generator=seeded(7)) * 6).clamp(max=LARGEST),
    "ties": ties(),
    "all exponents": all_exponents(),
    "zeros": torch.zeros(3, 64),
    "the largest": torch.full((1, 32), LARGEST),
    "more than a chunk": torch.randn(9, CHUNK // 8, generator=seeded(8)),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_blocks_are_those_of_gguf_and_decode_as_it_decodes_them(what: str) -> None:
    ours, theirs = encode(WEIGHTS[what], "w"), gguf.quantize(WEIGHTS[what].numpy(), Q8_0)
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.numpy(), theirs)
    assert np.array_equal(decode(ours).numpy(), gguf.dequantize(theirs, Q8_0).reshape(-1))


@pytest.mark.parametrize("what", WEIGHTS)
def test_every_error_is_within_the_bound(what: str) -> None:
    weight = WEIGHTS[what]
    stored = encode(weight, "w").view(-1)
    assert ((decode(stored).view(weight.shape) - weight).abs() <= bound(weight)).all()
    violation, ratio = Blocker().first_violation(weight.view(-1), stored)
    assert violation is None
    assert 0.0 <= ratio <= 1.0


def test_the_bound_is_tight() -> None:
    weight = torch.randn(1 << 20, generator=seeded(9)) * 0.02
    assert Blocker().first_violation(weight, encode(weight, "w"))[1] > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrow_sources_are_widened_exactly(dtype: torch.dtype) -> None:
    weight = (torch.randn(64, 96, generator=seeded(10)) * 0.1).to(dtype)
    assert torch.equal(encode(weight, "w"), encode(weight.float(), "w"))
    assert Blocker().first_violation(weight.view(-1), encode(weight, "w").view(-1))[0] is None


def test_a_scale_without_a_reciprocal_gives_zeros() -> None:
    stored = encode(torch.full((32,), 1e-38), "w")
    assert stored.eq(0).all()
    assert Blocker().first_violation(torch.full((32,), 1e-38), stored)[0] is None


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 5] = bad
    with pytest.raises(NotFinite, match=rf"^w\[69\] is {bad}"):
        encode(weight, "w")


def test_a_scale_that_overflows_fp16_is_refused_by_name() -> None:
    weight = torch.zeros(64)
    weight[40] = 8319009.0
    with pytest.raises(Overflow, match=r"^w\[40\] is 8319009, above 8319008, the largest q8_0 number") as raised:
        encode(weight, "w")
    assert raised.value.hint.startswith("store it as fp32 or bf16,")


def test_a_number_or_a_scale_off_by_one_step_is_a_violation_and_has_its_place() -> None:
    weight = torch.randn(128, generator=seeded(11))
    for byte in (34 * 2 + 2 + 5, 34 * 2 + 1):
        stored = encode(weight, "w")
        stored[byte] += 1
        violation, ratio = Blocker().first_violation(weight, stored, start=1000)
        assert violation is not None
        assert 1064 <= violation.index < 1096
        assert ratio > 1.0
        assert abs(violation.source - violation.stored) > violation.bound
    assert Blocker().first_violation(weight, encode(weight, "w"))[0] is None


def test_a_scale_that_is_not_finite_is_a_violation_and_fails_the_check() -> None:
    weight = torch.randn(96, generator=seeded(12))
    stored = encode(weight, "w")
    check(stored, "w")
    stored[34 : 34 + 2] = torch.tensor([0x00, 0x7C], dtype=torch.uint8)  # infinity
    assert Blocker().first_violation(weight, stored)[1] == inf
    with pytest.raises(NotFinite, match=r"^the scale of w\[1032\] is inf"):
        check(stored, "w", start=1000)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("linear", (4, 48)), ("linear", (0, 32)), ("linear", (32,)), ("norm", (4, 32)), ("conv", (4, 32))],
)
def test_what_is_no_matrix_with_rows_of_whole_blocks_is_refused(kind: str, shape: tuple[int, ...]) -> None:
    said = FORMATS["q8_0"].refuses("bf16", kind, shape)  # type: ignore[arg-type]  # a Kind, from the table above
    assert said == (
        "only the 2-D weight of a linear layer takes it, in rows of whole blocks of 32: "
        f"this is {kind} of shape {list(shape)}"
    )
    assert FORMATS["q8_0"].refuses("bf16", "linear", (4, 32)) is None
