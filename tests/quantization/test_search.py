"""Rounding `mse`: the scale of the grid with the least squared error, held against a search written plainly."""

from functools import cache
from math import inf, nan

import pytest
import torch
from torch import Tensor

from wanconv.errors import NotFinite
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.quantization.rounding import FACTORS, LARGEST, candidates, scales_of
from wanconv.quantization.scaled import Scaler, bound, decode, encode

SCALED = sorted(FACTORS)
pytestmark = pytest.mark.usefixtures("one_thread")
each_way = pytest.mark.parametrize(
    ("storage", "scale"), [(storage, scale) for storage in SCALED for scale in ("tensor", "row")]
)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def kinds() -> dict[str, Tensor]:
    """Returns weights by what they are like; not to be changed."""
    gaussian = random(60, 500) * 0.02
    outliers, single, rare = gaussian.clone(), torch.zeros(60, 500), random(500, 500)
    outliers[::10, 3] = 1.0
    single[:, 7] = random(60, seed=2)
    rare[3, 3] = 40.0
    exponents = torch.randint(-140, 120, (60, 500), generator=torch.Generator().manual_seed(3))
    return {
        "Gaussian": gaussian,
        "Laplacian": gaussian.sign() * gaussian.abs().div(0.02).square() * 0.02,
        "uniform": torch.rand(60, 500, generator=torch.Generator().manual_seed(4)) - 0.5,
        "outliers": outliers,
        "one outlier": rare,
        "one number": single,
        "two values": gaussian.sign() * 0.37,
        "sparse": torch.where(random(60, 500, seed=5) > 1.5, gaussian, 0.0),
        "every exponent": random(60, 500).double().mul(2.0 ** exponents.double()).float(),
        "subnormal": (random(60, 500).double() * 2.0**-140).float(),
        "largest": random(60, 500).clamp(-1.9, 1.9) / 1.9 * torch.finfo(torch.float32).max,
        "short rows": random(300, 3),
    }


each_kind = pytest.mark.parametrize("kind", list(kinds()))


def squared_error(weight: Tensor, scales: Tensor, storage: str) -> Tensor:
    """Returns each row's squared error when it is divided, clamped, rounded by torch, and multiplied again."""
    column, largest = scales.view(-1, 1), LARGEST[storage]
    scaled = (weight / column).clamp(-largest, largest)
    rounded = scaled.round() if storage == "int8" else scaled.to(TORCH_DTYPES[storage]).float()
    return ((rounded * column).double() - weight.double()).square().sum(1)


def of_scales(weight: Tensor, scales: Tensor, storage: str, scale: str) -> Tensor:
    errors = squared_error(weight, scales, storage)
    return errors if scale == "row" else errors.sum(0, keepdim=True)


@each_kind
@each_way
def test_the_scale_is_the_best_of_the_grid_and_never_worse_than_the_nearest(
    storage: str, scale: str, kind: str
) -> None:
    weight = kinds()[kind]
    payload, scales = encode(weight, storage, scale, "w", "mse")
    _, nearest = encode(weight, storage, scale, "w")
    found = of_scales(weight, scales, storage, scale)
    tried = [of_scales(weight, (nearest * factor).clamp(min=2.0**-100), storage, scale) for factor in FACTORS[storage]]
    assert (found <= torch.stack(tried).amin(0) * (1 + 1e-6)).all()
    assert (found <= tried[0]).all()
    shown = (decode(payload, scales).double() - weight.double()).square().sum(1)
    assert torch.equal(shown if scale == "row" else shown.sum(0, keepdim=True), found)


@each_way
def test_it_gains_where_the_grid_has_something_to_gain(storage: str, scale: str) -> None:
    weight = kinds()["one outlier"]
    errors = [
        of_scales(weight, encode(weight, storage, scale, "w", rounding)[1], storage, scale).sum()
        for rounding in ("nearest", "mse")
    ]
    assert errors[1] < errors[0] * (0.5 if (storage, scale) == ("int8", "tensor") else 0.999)


def test_the_first_factor_is_one_and_floats_have_an_octave_of_them() -> None:
    for storage, factors in FACTORS.items():
        assert factors[0] == 1.0
        inside = (0.2, 1.0) if storage == "int8" else (1.0, 2 - 1 / 16)
        assert (min(factors), max(factors)) == inside
        assert len(set(factors)) == len(factors)


@each_way
def test_of_equal_scales_the_first_is_taken(storage: str, scale: str) -> None:
    """Powers of two times the largest number have no error at all."""
    weight = torch.full((5, 64), LARGEST[storage] * 2.0**-9)
    weight[2] = 0.0
    payload, scales = encode(weight, storage, scale, "w", "mse")
    assert torch.equal(scales, encode(weight, storage, scale, "w")[1])
    assert not payload[2].float().any()
    assert encode(torch.zeros(3, 8), storage, scale, "w", "mse")[1].tolist() == [1.0] * (3 if scale == "row" else 1)


@each_kind
@pytest.mark.parametrize("storage", SCALED)
def test_every_number_is_within_the_bound_of_a_scale_that_clips(storage: str, kind: str) -> None:
    weight = kinds()[kind]
    for scale in ("tensor", "row"):
        payload, scales = encode(weight, storage, scale, "w", "mse")
        violation, ratio = Scaler().first_violation(weight, payload, scales, clips=True)
        assert violation is None
        error, limit = (weight - decode(payload, scales)).abs(), bound(weight, scales, storage, clips=True)
        assert (error <= limit).all()
        assert (error.double() / limit.double()).max().item() == pytest.approx(ratio, rel=1e-5)


def test_floats_are_never_clipped() -> None:
    for storage in ("fp8_e4m3fn", "fp8_e5m2"):
        for weight in kinds().values():
            peaks = Scaler().peaks(weight, "w")
            assert (candidates(peaks, storage)[:, 0] == scales_of(peaks, storage)).all()
            payload, scales = encode(weight, storage, "row", "w", "mse")
            assert Scaler().first_violation(weight, payload, scales)[0] is None


@pytest.fixture(scope="module")
def clipped() -> tuple[Tensor, Tensor, Tensor]:
    """Its element [3, 3] is beyond the last number, 5 of its 500 rows are constant."""
    weight = kinds()["one outlier"].clone()
    weight[100:105] = 1.25
    return weight, *encode(weight, "int8", "tensor", "w", "mse")


def test_a_clipped_number_is_none_that_nearest_explains(clipped: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, payload, scales = clipped
    violation, _ = Scaler().first_violation(weight, payload, scales)
    assert violation is not None
    assert (violation.index, violation.source) == (3 * 500 + 3, 40.0)
    assert Scaler().first_violation(weight, payload, scales, clips=True)[0] is None


@pytest.mark.parametrize("factor", [2.0, 1.1, 0.9, 0.5, 0.1])
def test_a_wrong_scale_is_found_where_numbers_are_clipped(
    clipped: tuple[Tensor, Tensor, Tensor], factor: float
) -> None:
    weight, payload, scales = clipped
    assert Scaler().first_violation(weight, payload, scales * factor, clips=True)[0] is not None


@pytest.mark.parametrize("place", [(3, 3), (17, 5)])
def test_one_step_is_found_at_a_clipped_number_and_at_others(
    clipped: tuple[Tensor, Tensor, Tensor], place: tuple[int, int]
) -> None:
    weight, payload, scales = clipped
    payload = payload.clone()
    payload[place] -= 1
    violation, _ = Scaler().first_violation(weight, payload, scales, start=1000, clips=True)
    assert violation is not None
    assert violation.index == 1000 + place[0] * 500 + place[1]


def test_what_no_factor_of_the_grid_clips_is_a_violation() -> None:
    weight = torch.full((2, 64), 1.0)
    payload = torch.full((2, 64), 127, dtype=torch.int8)
    for factor, allowed in ((0.2, True), (0.199, False)):
        scales = scales_of(torch.ones(2), "int8") * factor
        assert (Scaler().first_violation(weight, payload, scales, clips=True)[0] is None) is allowed


@each_way
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_nan_and_infinity_are_refused_with_their_place(storage: str, scale: str, bad: float) -> None:
    weight = random(60, 100)
    weight[43, 21] = bad
    with pytest.raises(NotFinite, match=r"^w\[4321\] is -?(nan|inf)"):
        encode(weight, storage, scale, "w", "mse")


@pytest.mark.parametrize("storage", SCALED)
@pytest.mark.parametrize("source", ["fp32", "bf16", "fp16"])
def test_what_is_found_does_not_depend_on_how_the_rows_are_cut_or_what_holds_them(storage: str, source: str) -> None:
    weight = random(140, 900).to(TORCH_DTYPES[source])
    peaks, wide = Scaler().peaks(weight, "w"), weight.float()
    scaler, grid = Scaler(), candidates(peaks.max().view(1), storage)
    whole = scaler.search(wide, peaks, storage), scaler.squared_errors(wide, grid, storage)
    for step in (1, 37):
        spans = [slice(at, at + step) for at in range(0, 140, step)]
        assert torch.equal(whole[0], torch.cat([scaler.search(weight[one], peaks[one], storage) for one in spans]))
        assert torch.equal(whole[1], torch.cat([scaler.squared_errors(weight[one], grid, storage) for one in spans]))
