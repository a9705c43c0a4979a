"""Scaled formats: their bound, against data that is delicate, and what they make of zeros, extremes and bad numbers."""

from math import inf, nan

import pytest
import torch
from torch import Tensor

from wanconv.errors import NotFinite
from wanconv.quantization import FORMATS, MAX_ROW
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.quantization.rounding import LARGEST, scales_of
from wanconv.quantization.scaled import Scaler, bound, decode, encode

SCALED = sorted(name for name, each in FORMATS.items() if "row" in each.scales)
GRANULARITIES = ["tensor", "row"]
each_way = pytest.mark.parametrize(("storage", "scale"), [(one, scale) for one in SCALED for scale in GRANULARITIES])


pytestmark = pytest.mark.usefixtures("one_thread")  # as in a worker of the converter


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(numel: int, seed: int = 2) -> Tensor:
    """Returns random float32 bit patterns, finite, all exponents alike."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(0x7F7FFFFF + 1, (numel,), generator=generator, dtype=torch.int32).view(torch.float32)
    return magnitude * (torch.randint(2, (numel,), generator=generator) * 2 - 1)


@pytest.fixture(scope="module")
def ten_million() -> Tensor:
    return bits(10 * 1000 * 1024).sort().values.view(-1, 1000)


def worst(weight: Tensor, storage: str, scale: str) -> float:
    payload, scales = encode(weight, storage, scale, "w")
    violation, ratio = Scaler().first_violation(weight, payload, scales)
    assert violation is None
    return ratio


@each_way
@pytest.mark.parametrize("source", ["fp32", "bf16", "fp16"])
def test_the_bound_is_nearly_reached_and_never_broken_on_random_weights(storage: str, scale: str, source: str) -> None:
    weight = (random(512, 3000) * 0.02).to(TORCH_DTYPES[source])
    assert 0.99 < worst(weight, storage, scale) <= 1.0


@pytest.mark.exhaustive
@each_way
def test_the_bound_holds_for_ten_million_numbers_of_every_exponent(
    storage: str, scale: str, ten_million: Tensor
) -> None:
    """Rows of like exponents, so that each has numbers in the last binade of the storage and in its subnormals."""
    for rows in torch.split(ten_million, 2048):
        violation, _ = _compared(rows.contiguous(), storage, scale)
        assert violation is None


def _compared(weight: Tensor, storage: str, scale: str) -> tuple[object, float]:
    payload, scales = encode(weight, storage, scale, "w")
    assert torch.isfinite(scales).all()
    assert torch.isfinite(decode(payload, scales)).all()
    return Scaler().first_violation(weight, payload, scales)


@each_way
@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -110, -101, -100, -99, 0, 100, 127])
def test_the_bound_holds_from_float32_subnormals_to_its_largest_numbers(
    storage: str, scale: str, exponent: int
) -> None:
    weight = (random(64, 1000).clamp(-1.9, 1.9).double() * 2.0**exponent).float()
    assert worst(weight, storage, scale) <= 1.0


@each_way
def test_the_bound_of_an_element_is_what_the_comparison_uses(storage: str, scale: str) -> None:
    weight = random(40, 700)
    payload, scales = encode(weight, storage, scale, "w")
    ratio = ((weight.double() - decode(payload, scales).double()).abs() / bound(weight, scales, storage)).max().item()
    assert ratio == pytest.approx(worst(weight, storage, scale), rel=1e-5)


@each_way
def test_the_payload_is_that_of_float64_arithmetic(storage: str, scale: str) -> None:
    weight = random(200, 333)
    payload, scales = encode(weight, storage, scale, "w")
    exact = weight.double() / scales.double().view(-1, 1)
    rounded = exact.round() if storage == "int8" else exact.float().to(TORCH_DTYPES[storage]).double()
    error = (payload.double() - exact).abs()
    assert (error <= (rounded - exact).abs() + 1e-4).all()


@each_way
def test_zeros_stay_zeros_under_scale_one(storage: str, scale: str) -> None:
    weight = random(5, 64)
    weight[2] = 0.0
    payload, scales = encode(weight, storage, scale, "w")
    assert not payload[2].float().any()
    if scale == "row":
        assert scales[2] == 1.0
    _, scales = encode(torch.zeros(3, 8), storage, scale, "w")
    assert scales.tolist() == [1.0] * (3 if scale == "row" else 1)


@each_way
def test_the_largest_magnitude_takes_the_largest_number_and_none_is_beyond(storage: str, scale: str) -> None:
    weight = bits(300 * 500, seed=5).view(300, 500).clamp(-1e30, 1e30)
    payload, _ = encode(weight, storage, scale, "w")
    assert payload.float().abs().max() == LARGEST[storage]
    if storage == "int8":
        assert payload.min() >= -127


@pytest.mark.parametrize("storage", SCALED)
def test_one_outlier_costs_its_own_row_only(storage: str) -> None:
    weight = random(50, 400) * 0.02
    clean, _ = encode(weight, storage, "row", "w")
    weight[7, 3] = 50.0
    spoilt, _ = encode(weight, storage, "row", "w")
    same = (clean.view(torch.uint8) == spoilt.view(torch.uint8)).all(1)
    assert same.sum() == 49
    assert not same[7]


@each_way
@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("source", ["fp32", "bf16", "fp16"])
def test_nan_and_infinity_are_refused_with_their_place(storage: str, scale: str, bad: float, source: str) -> None:
    weight = random(600, 1000).to(TORCH_DTYPES[source])
    weight[433, 21] = bad
    with pytest.raises(NotFinite, match=r"^w\[433021\] is -?(nan|inf)"):
        encode(weight, storage, scale, "w")


@each_way
@pytest.mark.parametrize("spoil", ["double", "halve", "drop", "nan"])
def test_a_wrong_scale_is_a_violation(storage: str, scale: str, spoil: str) -> None:
    weight = random(30, 200)
    payload, scales = encode(weight, storage, scale, "w")
    scales[-1] *= {"double": 2.0, "halve": 0.5, "drop": 1 / float(scales[-1]), "nan": nan}[spoil]
    violation, ratio = Scaler().first_violation(weight, payload, scales)
    assert violation is not None
    assert ratio > 1.0
    assert violation.index >= (0 if scale == "tensor" else 29 * 200)


@each_way
def test_one_step_is_a_violation_at_its_place(storage: str, scale: str) -> None:
    weight = random(30, 200)
    payload, scales = encode(weight, storage, scale, "w")
    payload.view(torch.uint8)[17, 5] ^= 1
    violation, _ = Scaler().first_violation(weight, payload, scales, start=1000)
    assert violation is not None
    assert violation.index == 1000 + 17 * 200 + 5


@pytest.mark.parametrize("storage", SCALED)
def test_scales_do_not_depend_on_how_the_rows_are_cut(storage: str) -> None:
    weight = random(700, 900)
    whole = Scaler().peaks(weight, "w")
    parts = torch.cat([Scaler().peaks(part.contiguous(), "w") for part in torch.split(weight, 37)])
    assert torch.equal(scales_of(whole, storage), scales_of(parts, storage))


@pytest.mark.parametrize("storage", SCALED)
def test_rows_that_others_wrote_may_be_longer_than_ours_and_have_their_numbers_and_places(storage: str) -> None:
    weight, scales = random(2, 2 * MAX_ROW + 7), torch.tensor([0.25, 0.5])
    payload = torch.empty(weight.shape, dtype=TORCH_DTYPES[storage])
    Scaler().encode(weight[:, :1000], scales, payload[:, :1000])
    payload[:, 1000:] = (weight[:, 1000:] / scales.view(-1, 1)).clamp(-127, 127).round().to(payload.dtype)
    assert torch.equal(decode(payload, scales), payload.float() * scales.view(-1, 1))
    exact = payload.float() * scales.view(-1, 1)
    assert Scaler().first_violation(exact, payload, scales) == (None, 0.0)
    exact[1, MAX_ROW + 5] += 1000.0
    violation, _ = Scaler().first_violation(exact, payload, scales, start=1000)
    assert violation is not None
    assert violation.index == 1000 + 3 * MAX_ROW + 7 + 5


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("bias", (3,), "only the 2-D weight of a linear layer takes a scale, and this is bias of shape [3]"),
        (
            "conv",
            (4, 3, 1, 2, 2),
            "only the 2-D weight of a linear layer takes a scale, and this is conv of shape [4, 3, 1, 2, 2]",
        ),
        ("embed", (4, 3), "only the 2-D weight of a linear layer takes a scale, and this is embed of shape [4, 3]"),
        ("linear", (2, MAX_ROW + 1), f"its rows have {MAX_ROW + 1} elements, more than the {MAX_ROW} that one scale"),
    ],
)
def test_only_the_weights_of_linear_layers_take_a_scale(
    name: str, kind: str, shape: tuple[int, ...], reason: str
) -> None:
    said = FORMATS[name].refuses("bf16", kind, shape, "row")  # type: ignore[arg-type]  # a Kind, from the table above
    assert said is not None
    assert said.startswith(reason)
    assert FORMATS[name].refuses("bf16", "linear", (3, MAX_ROW), "row") is None
