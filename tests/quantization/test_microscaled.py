"""MXFP8 and NVFP4 against comfy-kitchen and torchao, bit for bit, and against the bound that they state."""

from math import inf, isfinite, nan

import comfy_kitchen.tensor as kitchen
import pytest
import torch
from comfy_kitchen.float_utils import swap_nibbles, to_blocked
from torch import Tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

from wanconv.errors import NotFinite, Overflow
from wanconv.quantization import FORMATS
from wanconv.quantization.microscaled import (
    Microscaler,
    bound,
    check_payload,
    covers,
    decode,
    encode,
    odd_scale,
    tiled,
    untiled,
    whole_of,
)
from wanconv.quantization.plain import CHUNK
from wanconv.types.architecture import Kind
from wanconv.types.dtypes import DTYPES

STORAGES = ("mxfp8", "nvfp4")
INFINITE = 0xFF
LARGEST = 240 * 2.0**120


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ties() -> Tensor:
    """Returns halves of steps of either grid, and what lies right beside them, in blocks whose scale is one."""
    steps = torch.randint(-255, 256, (1024, 32), generator=seeded(1)) / 8.0
    near = torch.stack((steps, torch.nextafter(steps, steps + 1), torch.nextafter(steps, steps - 1)), 1).view(-1, 32)
    near[:, 0] = 448.0
    near[:, 16] = 448.0
    return near


WEIGHTS = {
    "small numbers": torch.randn(512, 256, generator=seeded(2)) * 0.02,
    "very small numbers": torch.randn(512, 256, generator=seeded(3)) * 1e-8,
    "numbers of very different size": torch.exp(torch.randn(512, 256, generator=seeded(4)) * 6),
    "ties": ties(),
    "blocks of zeros": torch.randn(64, 256, generator=seeded(5)).masked_fill_(torch.arange(256) < 64, 0.0),
    "the largest": torch.full((32, 32), LARGEST),
    "more than a chunk": torch.randn(96, CHUNK // 64, generator=seeded(6)),
    "no multiple of a tile": torch.randn(160, 96, generator=seeded(7)),
}


def by_kitchen(weight: Tensor, storage: str) -> tuple[Tensor, Tensor, float, Tensor]:
    """Returns payload, tiles of scales, the scale of the tensor, and the decoded weight, as comfy-kitchen has them."""
    layout = kitchen.TensorCoreMXFP8Layout if storage == "mxfp8" else kitchen.TensorCoreNVFP4Layout
    payload, params = layout.quantize(weight)
    scales = params.scale if storage == "mxfp8" else params.block_scale
    whole = 1.0 if storage == "mxfp8" else params.scale.item()
    return payload.view(torch.uint8), scales.view(torch.uint8).view(-1), whole, layout.dequantize(payload, params)


@pytest.mark.parametrize("what", WEIGHTS)
@pytest.mark.parametrize("storage", STORAGES)
def test_bytes_are_those_of_comfy_kitchen_and_decode_as_it_decodes_them(storage: str, what: str) -> None:
    payload, codes, whole = encode(WEIGHTS[what], storage, "w")
    theirs, tiles, their_whole, values = by_kitchen(WEIGHTS[what], storage)
    assert torch.equal(payload, theirs)
    assert torch.equal(tiled(codes), tiles)
    assert whole == their_whole
    assert torch.equal(decode(payload, codes, storage, whole).view(WEIGHTS[what].shape), values)


@pytest.mark.parametrize("what", WEIGHTS)
def test_mxfp8_bytes_are_those_of_torchao(what: str) -> None:
    payload, codes, _ = encode(WEIGHTS[what], "mxfp8", "w")
    scales, numbers, *_ = to_mx(WEIGHTS[what], torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)
    assert torch.equal(scales.view(torch.uint8), codes)
    assert torch.equal(numbers.view(torch.uint8), payload)


@pytest.mark.parametrize("what", ["small numbers", "ties", "no multiple of a tile", "more than a chunk"])
def test_nvfp4_bytes_are_those_of_torchao_but_for_ties_that_it_rounds_through_a_reciprocal(what: str) -> None:
    payload, codes, whole = encode(WEIGHTS[what], "nvfp4", "w")
    scale = per_tensor_amax_to_scale(WEIGHTS[what].abs().max())
    theirs = NVFP4Tensor.to_nvfp4(WEIGHTS[what], per_tensor_scale=scale)
    assert scale.item() == whole
    assert torch.equal(theirs.scale.view(torch.uint8), codes)
    alike = swap_nibbles(theirs.qdata) == payload  # the first number in the lower half of a byte
    assert alike.double().mean() > (0.95 if what == "ties" else 0.9999)


def test_a_scale_of_mxfp8_is_the_next_power_of_two_where_a_logarithm_falls_on_the_one_before() -> None:
    for exponent in (-90, -30, -7, 0, 5, 40, 100):
        power = torch.full((1, 32), 448.0 * 2.0**exponent)
        above = power * (1 + 2.0**-22)
        assert encode(power, "mxfp8", "w")[1].item() == exponent + 127
        assert encode(above, "mxfp8", "w")[1].item() == exponent + 128
    theirs = to_mx(above, torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)[0]
    assert theirs.view(torch.uint8).item() == exponent + 127


@pytest.mark.parametrize("what", WEIGHTS)
@pytest.mark.parametrize("storage", STORAGES)
def test_every_error_is_within_the_bound(storage: str, what: str) -> None:
    weight = WEIGHTS[what]
    payload, codes, whole = encode(weight, storage, "w")
    error = (decode(payload, codes, storage, whole).view(weight.shape) - weight).abs()
    assert (error <= bound(weight, storage, whole)).all()
    violation, ratio = Microscaler(storage).first_violation(weight.view(-1), payload.view(-1), codes.view(-1), whole)
    assert violation is None
    assert 0.0 <= ratio <= 1.0
    assert storage == "mxfp8" or covers(whole, weight.abs().max().item())


@pytest.mark.parametrize("storage", STORAGES)
def test_the_bound_is_tight(storage: str) -> None:
    weight = torch.randn(1 << 10, 1 << 10, generator=seeded(8)) * 0.02
    payload, codes, whole = encode(weight, storage, "w")
    ratio = Microscaler(storage).first_violation(weight.view(-1), payload.view(-1), codes.view(-1), whole)[1]
    assert ratio > 0.999


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrow_sources_are_widened_exactly(storage: str, dtype: torch.dtype) -> None:
    weight = (torch.randn(64, 96, generator=seeded(9)) * 0.1).to(dtype)
    for ours, theirs in zip(encode(weight, storage, "w"), encode(weight.float(), storage, "w"), strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


@pytest.mark.parametrize("storage", STORAGES)
def test_zeros_stay_zeros(storage: str) -> None:
    payload, codes, whole = encode(torch.zeros(32, 64), storage, "w")
    assert (int(payload.count_nonzero()), int(codes.count_nonzero()), whole) == (0, 0, 1.0)
    assert torch.equal(decode(payload, codes, storage, whole), torch.zeros(2048))


def test_numbers_near_the_smallest_of_float32_keep_their_size_in_mxfp8() -> None:
    weight = torch.full((32, 32), 2.0**-130)
    payload, codes, _ = encode(weight, "mxfp8", "w")
    assert torch.equal(decode(payload, codes, "mxfp8").view(weight.shape), weight)
    assert by_kitchen(weight, "mxfp8")[3].count_nonzero() == 0  # not there


def test_a_block_far_below_the_largest_number_becomes_zeros_in_nvfp4_within_its_bound() -> None:
    weight = torch.full((32, 64), 1e-3)
    weight[0, 0] = 1000.0
    payload, codes, whole = encode(weight, "nvfp4", "w")
    assert decode(payload, codes, "nvfp4", whole)[64:].count_nonzero() == 0
    assert Microscaler("nvfp4").first_violation(weight.view(-1), payload.view(-1), codes.view(-1), whole)[0] is None


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_is_refused_by_name(storage: str, bad: float) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 5] = bad
    with pytest.raises(NotFinite, match=rf"^w\[69\] is {bad}"):
        encode(weight, storage, "w")


@pytest.mark.parametrize("storage", STORAGES)
def test_what_float32_could_not_hold_when_it_is_read_back_is_refused_by_name(storage: str) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 5] = 3.3e38
    with pytest.raises(
        Overflow, match=rf"^w\[69\] is 3.29.*e\+38, above 3.19014719e\+38, the largest {storage} number"
    ):
        encode(weight, storage, "w")


@pytest.mark.parametrize("storage", STORAGES)
def test_a_number_or_a_scale_off_by_one_step_is_a_violation_and_has_its_place(storage: str) -> None:
    weight, block = torch.randn(32, 64, generator=seeded(10)), DTYPES[storage].block
    scaler = Microscaler(storage)
    for spoilt in ("payload", "codes"):
        payload, codes, whole = (torch.as_tensor(each).reshape(-1).clone() for each in encode(weight, storage, "w"))
        if spoilt == "payload":
            payload[DTYPES[storage].nbytes(128)] ^= 16  # the first number of a block, or its neighbour's sign
        else:
            codes[128 // block] += 1 if storage == "mxfp8" else 8  # twice the scale
        violation, ratio = scaler.first_violation(weight.view(-1), payload, codes, whole.item(), start=1000)
        assert violation is not None
        assert 1128 <= violation.index < 1128 + block
        assert ratio > 1.0
        assert abs(violation.source - violation.stored) > violation.bound


@pytest.mark.parametrize("factor", [2.0, 0.5, 1e-6, 1e6])
def test_a_wrong_scale_of_the_tensor_is_a_violation(factor: float) -> None:
    weight = torch.randn(32, 64, generator=seeded(11))
    payload, codes, whole = encode(weight, "nvfp4", "w")
    run = weight.view(-1), payload.view(-1), codes.view(-1), whole * factor
    assert Microscaler("nvfp4").first_violation(*run)[1] > 1.0


def test_a_scale_of_the_tensor_that_makes_zeros_of_everything_is_none() -> None:
    weight = torch.randn(32, 64, generator=seeded(12))
    peak = weight.abs().max().item()
    assert covers(whole_of(peak), peak)
    assert covers(whole_of(peak) / 2, peak)
    for whole in (whole_of(peak) * 2, 1e30, 0.0, -1.0):
        assert not covers(whole, peak)


@pytest.mark.parametrize("storage", STORAGES)
def test_scales_that_are_nan_are_violations_and_are_none(storage: str) -> None:
    weight = torch.randn(32, 64, generator=seeded(13))
    payload, codes, whole = encode(weight, storage, "w")
    check_payload(payload.view(-1), storage, "w")
    assert odd_scale(codes, storage, whole) is None
    codes[0, 0] = INFINITE
    assert Microscaler(storage).first_violation(weight.view(-1), payload.view(-1), codes.view(-1), whole)[1] == inf
    odd = odd_scale(codes, storage)
    assert odd is not None
    assert not isfinite(odd)


def test_a_scale_of_a_block_may_be_zero_and_not_below() -> None:
    codes = torch.tensor([0x00, 0x80, 0x01, 0x7E], dtype=torch.uint8)  # 0, -0, the smallest and the largest
    assert odd_scale(codes, "nvfp4") is None
    assert odd_scale(torch.arange(255, dtype=torch.uint8), "mxfp8") is None  # all are exponents
    assert odd_scale(torch.tensor([0x38, 0xBC, 0xB8], dtype=torch.uint8), "nvfp4") == -1.5
    for whole in (0.0, -1.0, inf):
        assert odd_scale(codes, "nvfp4", whole) == whole


def test_nan_in_a_payload_fails_the_check() -> None:
    payload = torch.zeros(64, dtype=torch.uint8)
    payload[40] = INFINITE
    with pytest.raises(NotFinite, match=r"^w\[1040\] is nan$"):
        check_payload(payload, "mxfp8", "w", start=1000)
    check_payload(payload, "nvfp4", "w")  # which has none


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (129, 5), (300, 48)])
def test_tiles_are_those_of_comfy_kitchen_and_come_back(shape: tuple[int, int]) -> None:
    codes = torch.randint(256, shape, generator=seeded(14), dtype=torch.uint8)
    assert torch.equal(tiled(codes), to_blocked(codes))
    assert torch.equal(untiled(tiled(codes), *shape), codes)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("kind", "shape"), [("linear", (32, 40)), ("linear", (0, 32)), ("linear", (32,)), ("norm", (32, 32))]
)
def test_what_is_no_matrix_with_rows_of_whole_blocks_is_refused(
    storage: str, kind: Kind, shape: tuple[int, ...]
) -> None:
    said = FORMATS[storage].refuses("bf16", kind, shape, "block")
    assert said == (
        f"only the 2-D weight of a linear layer takes it, in rows of whole blocks of {DTYPES[storage].block}: "
        f"this is {kind} of shape {list(shape)}"
    )
    assert FORMATS[storage].refuses("bf16", "linear", (32, 32), "block") is None


@pytest.mark.parametrize("storage", STORAGES)
def test_a_matrix_that_clients_would_pad_is_refused(storage: str) -> None:
    said = FORMATS[storage].refuses("bf16", "linear", (40, 32), "block")
    block = DTYPES[storage].block
    assert said == f"its row count is not a multiple of {block}: wanconv writes no padding, its shape is [40, 32]"
