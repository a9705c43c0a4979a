"""Plain casts against ml_dtypes and numpy, bit for bit, and against the bound that they state."""

from collections.abc import Callable, Iterator
from math import inf, nan

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from wanconv.errors import NotFinite, Overflow, Refused
from wanconv.quantization import FORMATS
from wanconv.quantization.plain import TORCH_DTYPES, Caster, bound, decode, encode
from wanconv.types.dtypes import DTYPES

CASTS = sorted(name for name, each in FORMATS.items() if each.storage and DTYPES[each.storage].is_float)
SOURCES = ["fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2"]
NARROWING = [(source, name) for source in SOURCES for name in CASTS if not DTYPES[name].holds(DTYPES[source])]
ORACLES = {
    "fp64": np.float64,
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PIECE = 1 << 20
PIECES = 10  # 10 * 2**20 random bit patterns: over 10**7


pytestmark = pytest.mark.usefixtures("one_thread")  # as in a worker of the converter


def patterns(dtype: str) -> Tensor:
    """Returns every number of a dtype of one or two bytes, NaN and infinity included."""
    itemsize = DTYPES[dtype].itemsize
    return torch.arange(256**itemsize).to(torch.uint8 if itemsize == 1 else torch.int16).view(TORCH_DTYPES[dtype])


def random_bits(largest: float) -> Iterator[Tensor]:
    """Yields random float32 bit patterns with |w| <= largest: all exponents alike, either sign."""
    generator = torch.Generator().manual_seed(2)
    end = int(torch.tensor(largest).view(torch.int32)) + 1
    for _ in range(PIECES):
        magnitude = torch.randint(end, (PIECE,), generator=generator, dtype=torch.int32).view(torch.float32)
        yield magnitude * (torch.randint(2, (PIECE,), generator=generator) * 2 - 1)


def near(largest: float, min_exponent: int, mantissa: int) -> Iterator[Tensor]:
    """Yields random float32 numbers where a target is delicate: its subnormals, its first normals, its last binade."""
    generator = torch.Generator().manual_seed(3)
    smallest = 2.0 ** (min_exponent - mantissa)
    for scale in (smallest / 2, smallest, 2.0**min_exponent, 2.0 ** (min_exponent + 1), largest):
        uniform = torch.rand(PIECE // 4, generator=generator) * 2 - 1
        yield (uniform.double() * scale).float()


def as_numpy(values: Tensor) -> np.ndarray:
    name = next(name for name, dtype in TORCH_DTYPES.items() if dtype == values.dtype)
    return values.view(BITS[values.itemsize]).numpy().view(ORACLES[name])


def astype(values: Tensor, dtype: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN is cast on purpose
        return as_numpy(values).astype(ORACLES[dtype])


def same_bits(ours: Tensor, oracle: np.ndarray) -> bool:
    return ours.view(BITS[ours.itemsize]).numpy().tobytes() == oracle.tobytes()


@pytest.mark.parametrize("name", CASTS)
def test_random_float32_patterns_are_rounded_as_ml_dtypes_rounds_them_and_stay_within_a_tight_bound(name: str) -> None:
    target, caster, worst, count = DTYPES[name], Caster(), 0.0, 0
    out = torch.empty(PIECE, dtype=TORCH_DTYPES[name])
    assert target.mantissa is not None
    for make in (random_bits(target.largest), near(target.largest, target.min_exponent, target.mantissa)):
        for values in make:
            part = out[: values.numel()]
            caster.cast(values, part, "w")
            assert same_bits(part, astype(values, name))
            violation, ratio = caster.first_violation(values, part)
            assert violation is None
            worst, count = max(worst, ratio), count + values.numel()
    assert count > 10**7
    assert worst <= 1.0
    assert worst >= 0.99 or target.holds(DTYPES["fp32"])


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("source", SOURCES[1:])
def test_every_number_of_a_narrow_source_is_rounded_as_ml_dtypes_rounds_it(source: str, name: str) -> None:
    every = patterns(source)
    values = astype(every, "fp64")
    legal = torch.from_numpy(np.isfinite(values) & (np.abs(values) <= DTYPES[name].largest))
    weights = every.view(BITS[every.itemsize])[legal].view(every.dtype)
    stored = encode(weights, name, "w")
    # float32 holds every number of the source: ml_dtypes rounds once
    assert same_bits(stored, astype(torch.from_numpy(astype(weights, "fp32")), name))
    assert Caster().first_violation(weights, stored)[0] is None


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_number_that_a_format_cannot_hold_is_refused_one_by_one(source: str, name: str) -> None:
    every = patterns(source) if source != "fp32" else torch.tensor([nan, inf, -inf, 65505.0, 448.5, -57345.0, 3.4e38])
    caster, largest = Caster(), DTYPES[name].largest
    values = astype(every, "fp64")
    finite, out = np.isfinite(values), torch.empty(1, dtype=TORCH_DTYPES[name])
    refused = 0
    for index in np.flatnonzero(~finite | (np.abs(np.nan_to_num(values)) > largest))[::7]:
        with pytest.raises(Overflow if finite[index] else NotFinite):
            caster.cast(every[index].view(1), out, "w")
        refused += 1
    assert refused


@pytest.mark.parametrize("source", ["fp64", *SOURCES])
def test_keep_copies_every_finite_number_bit_by_bit_and_refuses_each_other_one(source: str) -> None:
    every = (
        patterns(source)
        if DTYPES[source].itemsize < 4
        else torch.tensor([0.0, -0.0, 5e-324, 1e-45, -1.5, 3e38, nan, inf, -inf], dtype=TORCH_DTYPES[source])
    )
    finite = torch.from_numpy(np.isfinite(astype(every, "fp64")))
    bits = every.view(BITS[every.itemsize])
    weights = bits[finite].view(every.dtype)
    assert torch.equal(encode(weights, source, "w").view(bits.dtype), bits[finite])
    caster = Caster()
    for bad in bits[~finite].view(every.dtype).unbind():
        with pytest.raises(NotFinite):
            caster.check(bad.view(1), "w")
        assert caster.first_violation(bad.view(1), bad.view(1))[0] is not None


@pytest.mark.parametrize("dtype", sorted(name for name, each in DTYPES.items() if not each.is_float))
def test_keep_copies_integers_untouched_and_a_changed_one_is_found(dtype: str) -> None:
    values = torch.tensor([0, 1, 1, 0, 1]).to(TORCH_DTYPES[dtype])
    stored = encode(values, dtype, "w")
    assert stored.tolist() == values.tolist()
    assert Caster().first_violation(values, stored) == (None, 0.0)
    stored.view(BITS[stored.itemsize])[3] = 1
    violation, ratio = Caster().first_violation(values, stored, start=100)
    assert violation is not None
    assert (violation.index, violation.source, violation.stored, violation.bound, ratio) == (103, 0.0, 1.0, 0.0, inf)


@pytest.mark.parametrize("dtype", SOURCES[1:])
def test_decode_gives_the_float32_value_of_every_pattern(dtype: str) -> None:
    every = patterns(dtype)
    ours, oracle = decode(every), astype(every, "fp32")
    nans = np.isnan(oracle)
    assert np.array_equal(np.isnan(ours.numpy()), nans)
    assert ours.numpy()[~nans].tobytes() == oracle[~nans].tobytes()


def test_decode_keeps_the_shape_of_a_transposed_tensor() -> None:
    weight = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
    assert decode(weight).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert encode(weight, "fp8_e5m2", "w").float().tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("index", [0, 1, 262143, 262144, 299999])
def test_nan_and_infinity_are_refused_wherever_they_stand(name: str, bad: float, index: int) -> None:
    weights = torch.ones(300000)
    weights[index] = bad
    with pytest.raises(NotFinite, match=rf"^w\[{index + 7}\] is {bad} \(1 of 300000 elements from 7 on\)$"):
        Caster().cast(weights, torch.empty(300000, dtype=TORCH_DTYPES[name]), "w", start=7)


@pytest.mark.parametrize(("source", "name"), NARROWING)
def test_nan_is_refused_wherever_it_stands_in_a_vector_of_any_source(source: str, name: str) -> None:
    caster, out = Caster(), torch.empty(131, dtype=TORCH_DTYPES[name])
    for index in range(131):
        weights = torch.ones(131)
        weights[index] = nan
        with pytest.raises(NotFinite, match=rf"^w\[{index}\] is nan"):
            caster.cast(weights.to(TORCH_DTYPES[source]), out, "w")


def test_an_overflow_says_where_how_large_how_many_and_what_would_hold_it() -> None:
    weights = torch.ones(10)
    weights[3], weights[8] = -65505.0, 7e4
    with pytest.raises(Overflow) as caught:
        encode(weights, "fp16", "blocks.0.ffn.up.weight")
    assert caught.value.message == (
        "blocks.0.ffn.up.weight[3] is -65505, above 65504, the largest fp16 number (2 of 10 elements from 0 on)"
    )
    assert caught.value.hint == "store it as fp32 or bf16, for instance by its rule's fallback"


def test_nan_behind_an_overflow_is_named_first_because_no_fallback_helps_it() -> None:
    weights = torch.ones(600000)
    weights[3], weights[599999] = 7e4, nan
    with pytest.raises(NotFinite, match=r"^w\[599999\] is nan") as caught:
        encode(weights, "fp16", "w")
    assert not isinstance(caught.value, Overflow)


@pytest.mark.parametrize("name", CASTS)
def test_the_largest_number_is_stored_and_the_next_float32_is_refused(name: str) -> None:
    largest = torch.tensor([DTYPES[name].largest, -DTYPES[name].largest])
    assert decode(encode(largest, name, "w")).equal(largest)
    for beyond in torch.nextafter(largest, torch.tensor([inf, -inf])).unbind():
        with pytest.raises(NotFinite):
            encode(beyond, name, "w")


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("dtype", ["fp64", "int32", "bool"])
def test_what_a_header_would_refuse_is_refused_by_the_cast_too(name: str, dtype: str) -> None:
    weights = torch.ones(3).to(TORCH_DTYPES[dtype])
    with pytest.raises(Refused, match=f"^{dtype} is never cast"):
        encode(weights, name, "w")
    with pytest.raises(Refused, match=f"^{dtype} is never cast"):
        Caster().first_violation(weights, torch.ones(3, dtype=TORCH_DTYPES[name]))


@pytest.mark.parametrize(("source", "name"), NARROWING)
def test_the_bound_is_half_the_spacing_of_the_target_around_each_number(source: str, name: str) -> None:
    every = patterns(name)
    grid = astype(every, "fp64")
    grid = np.unique(grid[np.isfinite(grid) & (grid >= 0)])
    # a quarter of the way to the next number is in the same binade, for zero and the subnormals too
    low, spacing = grid[:-1], np.diff(grid)
    weights = torch.from_numpy(low + spacing / 4).float()
    assert np.array_equal(bound(weights, source, name).double().numpy(), spacing / 2)
    assert np.array_equal(bound(-weights, source, name).double().numpy(), spacing / 2)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", CASTS)
def test_the_bound_is_zero_exactly_where_the_target_holds_the_source(source: str, name: str) -> None:
    zeros = bound(torch.ones(2, 3), source, name)
    assert zeros.shape == (2, 3)
    assert (zeros == 0).all() == DTYPES[name].holds(DTYPES[source])


SPOILERS: dict[str, Callable[[Tensor], Tensor]] = {
    "one step up": lambda bits: bits + 1,
    "one step down": lambda bits: bits - 1,
    "the sign": lambda bits: bits ^ -(2**7 if bits.itemsize == 1 else 2 ** (8 * bits.itemsize - 1)),
}


@pytest.mark.parametrize("spoiler", sorted(SPOILERS))
@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("source", SOURCES)
def test_one_changed_element_is_found_with_its_index_values_and_bound(source: str, name: str, spoiler: str) -> None:
    weights = encode(torch.full((300000,), 1.25), source, "w")
    stored = encode(weights, name, "w")
    bits = stored.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[stored.itemsize])
    bits[270000] = SPOILERS[spoiler](bits[270000])
    violation, ratio = Caster().first_violation(weights, stored, start=50)
    assert violation is not None
    assert violation.index == 270050
    assert (violation.source, violation.stored) == (1.25, decode(stored)[270000].item())
    assert violation.bound == bound(torch.tensor(1.25), source, name).item()
    assert ratio > 1.0


@pytest.mark.parametrize("name", ["fp16", "fp32", "bf16"])
def test_a_lost_sign_of_zero_is_found_where_nothing_may_be_rounded(name: str) -> None:
    zeros, stored = torch.zeros(5, dtype=torch.float8_e5m2), torch.zeros(5, dtype=TORCH_DTYPES[name])
    stored[3] = -0.0
    violation, _ = Caster().first_violation(zeros, stored)
    assert violation is not None
    assert (violation.index, str(violation.stored)) == (3, "-0.0")


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("bad", [nan, inf])
def test_numbers_that_are_not_finite_are_violations_on_either_side(name: str, bad: float) -> None:
    good, spoiled = torch.ones(5), torch.tensor([1.0, 1.0, bad, 1.0, 1.0])
    stored = encode(good, name, "w")
    for source, target in ((spoiled, stored), (good, spoiled.to(stored.dtype)), (spoiled, spoiled.to(stored.dtype))):
        violation, _ = Caster().first_violation(source, target)
        assert violation is not None
        assert violation.index == 2


@pytest.mark.parametrize("dtype", ["fp64", *SOURCES])
def test_the_range_scan_gives_the_largest_magnitude_and_refuses_nan(dtype: str) -> None:
    weights = torch.full((300000,), 0.5)
    weights[270000] = -1.5
    assert Caster().amax(weights.to(TORCH_DTYPES[dtype]), "w") == 1.5
    weights[5] = nan
    with pytest.raises(NotFinite, match=r"^w\[5\] is nan"):
        Caster().amax(weights.to(TORCH_DTYPES[dtype]), "w")


@pytest.mark.parametrize("name", CASTS)
def test_an_empty_run_is_nothing_to_refuse(name: str) -> None:
    empty = torch.empty(0)
    stored = encode(empty, name, "w")
    assert Caster().first_violation(empty, stored) == (None, 0.0)
    assert Caster().amax(empty, "w") == 0.0
