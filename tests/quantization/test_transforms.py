"""A rotated weight: the rotation is the regular Hadamard matrix, and the inner codec's bound holds in its basis."""

import pytest
import torch
from torch import Tensor

from wanconv.errors import NotFinite
from wanconv.quantization import ROUNDINGS
from wanconv.quantization.codec import Codec, Fit, Held, Numbers, Scales
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.quantization.rounding import STRATEGIES
from wanconv.quantization.scaled import Scaled
from wanconv.quantization.transforms import GROUPS, Rotated, rotate

SHAPE = (6, 512)


def hadamard(order: int) -> Tensor:
    """Returns the matrix by its definition, a Kronecker power, in float64."""
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64) / 2
    return four if order == 4 else torch.kron(four, hadamard(order // 4))


def weight_with_outliers() -> Tensor:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    weight[::2, 7] = 40.0
    return weight


def stored(codec: Codec, numbers: Numbers, rounding: str, dtype: str) -> tuple[Tensor, Scales]:
    fit, numel = Fit(SHAPE, rounding), SHAPE[0] * SHAPE[1]
    scales = codec.scales(fit, 0, numel, numbers)
    out = torch.empty(numel, dtype=TORCH_DTYPES[dtype])
    codec.encode(numbers.run(0, numel), scales, out, "weight", 0)
    return out, scales


@pytest.mark.parametrize("group", GROUPS)
def test_a_rotation_is_the_product_with_the_regular_hadamard_matrix_and_undoes_itself(group: int) -> None:
    weight, matrix = weight_with_outliers(), hadamard(group)
    expected = (weight.double().view(-1, group) @ matrix).view(SHAPE)
    assert torch.equal(matrix @ matrix, torch.eye(group, dtype=torch.float64))
    assert len({float(row) for row in matrix.sum(0)}) == 1
    torch.testing.assert_close(rotate(weight, group).double(), expected, rtol=0, atol=4e-5)
    torch.testing.assert_close(rotate(rotate(weight, group), group), weight, rtol=0, atol=4e-5)


def test_a_rotation_gives_the_same_bits_whatever_run_it_is_read_in() -> None:
    weight = weight_with_outliers().view(-1)
    whole = rotate(weight, 256)
    parts = torch.cat([rotate(weight[at : at + 256], 256) for at in range(0, len(weight), 256)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("dtype", "scale"), [("int8", "row"), ("int8", "tensor"), ("fp8_e4m3fn", "row")])
def test_every_element_is_within_the_bound_of_the_codec_within(dtype: str, scale: str, rounding: str) -> None:
    weight, codec = weight_with_outliers(), Rotated(Scaled(dtype, scale), 64)
    payload, scales = stored(codec, Held("weight", weight), rounding, dtype)
    judge = codec.judge(scales, SHAPE[1], rounding == "mse")
    violation, ratio = judge.run(weight.view(-1), payload, 0)
    assert (violation, judge.fault()) == (None, "")
    assert 0.5 < ratio <= 1.0
    spoiled = payload.clone()
    spoiled.view(torch.uint8)[100] += 2
    found, _ = codec.judge(scales, SHAPE[1], rounding == "mse").run(weight.view(-1), spoiled, 0)
    assert found is not None
    assert found.index == 100


def test_the_error_is_that_of_the_rotated_weight_and_less_than_without_where_there_are_outliers() -> None:
    weight = weight_with_outliers()
    plain, rotated = Scaled("int8", "row"), Rotated(Scaled("int8", "row"), 256)
    errors = []
    for codec in (plain, rotated):
        payload, scales = stored(codec, Held("weight", weight), "nearest", "int8")
        errors.append((codec.decode(payload, scales, 0, SHAPE[1]).view(SHAPE) - weight).norm().item())
    assert errors[1] < 0.5 * errors[0]
    payload, scales = stored(rotated, Held("weight", weight), "nearest", "int8")
    in_its_basis = plain.decode(payload, scales, 0, SHAPE[1]).view(SHAPE) - rotate(weight, 256)
    assert in_its_basis.norm().item() == pytest.approx(errors[1], rel=1e-4)


def test_a_run_of_rows_has_the_scales_and_the_payload_that_it_has_in_the_whole_weight() -> None:
    weight, codec = weight_with_outliers(), Rotated(Scaled("int8", "row"), 16)
    payload, scales = stored(codec, Held("weight", weight), "nearest", "int8")
    first, count = 2 * SHAPE[1], 3 * SHAPE[1]
    some = codec.scales(Fit(SHAPE, "nearest"), first, count, Held("weight", weight))
    assert torch.equal(some.factors, scales.factors[2:5])
    out = torch.empty(count, dtype=torch.int8)
    codec.encode(weight.view(-1)[first : first + count], some, out, "weight", first)
    assert torch.equal(out, payload[first : first + count])


def test_a_number_that_is_not_finite_is_refused() -> None:
    weight = weight_with_outliers()
    weight[1, 1] = torch.inf
    with pytest.raises(NotFinite, match="weight"):
        stored(Rotated(Scaled("int8", "row"), 4), Held("weight", weight), "nearest", "int8")


def test_a_group_that_has_no_such_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of 4, 16, 64, 256"):
        Rotated(Scaled("int8", "row"), 8)


def test_a_row_that_groups_do_not_fill_is_refused_and_not_rotated_into_the_next() -> None:
    codec, weight = Rotated(Scaled("int8", "row"), 64), torch.ones(4, 96)  # six whole groups, but not in a row
    scales = Scales(torch.ones(4))
    for use in (
        lambda: codec.scales(Fit((4, 96), "nearest"), 0, 384, Held("weight", weight)),
        lambda: codec.read(torch.ones(4).view(torch.uint8), None, (4, 96)),
        lambda: codec.decode(torch.ones(384, dtype=torch.int8), scales, 0, 96),
        lambda: codec.judge(scales, 96, False),
    ):
        with pytest.raises(ValueError, match="rows of 96 numbers are not whole groups of 64"):
            use()


def test_every_rounding_that_a_recipe_names_has_its_strategy() -> None:
    assert tuple(STRATEGIES) == ROUNDINGS
