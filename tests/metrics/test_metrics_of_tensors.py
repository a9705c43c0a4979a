"""How far two tensors are apart: figures against numpy's float64, and no bad number that passes."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from wanconv.metrics import METRICS, tensors
from wanconv.metrics.tensors import Agreement, Comparison, NonFinite, compare


def pair(*shape: int, dtype: torch.dtype = torch.float32, noise: float = 0.01) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    reference = torch.randn(shape, generator=generator)
    return reference.to(dtype), (reference + noise * torch.randn(shape, generator=generator)).to(dtype)


def agreement(reference: Tensor, candidate: Tensor) -> Agreement:
    result = compare(reference, candidate)
    assert isinstance(result, Agreement)
    return result


def by_numpy(reference: Tensor, candidate: Tensor) -> dict[str, float]:
    r, c = reference.double().numpy().ravel(), candidate.double().numpy().ravel()
    error, norm, other = np.linalg.norm(c - r), np.linalg.norm(r), np.linalg.norm(c)
    return {
        "relative_l2": float(error / norm),
        "sqnr_db": float(20 * np.log10(norm / error)),
        "cosine": float(r @ c / (norm * other)),
        "max_abs_error": float(np.abs(c - r).max()),
    }


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (700, 1000)], ids=str)
def test_the_figures_are_those_of_numpy_in_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    reference, candidate = pair(*shape, dtype=dtype, noise=0.5)
    result = asdict(agreement(reference, candidate))
    assert {name: result[name] for name in by_numpy(reference, candidate)} == pytest.approx(
        by_numpy(reference, candidate), rel=1e-12
    )


def test_the_dtypes_of_reference_and_candidate_may_differ() -> None:
    reference, _ = pair(64, 64)
    rounded = reference.bfloat16()
    assert agreement(reference, rounded).relative_l2 == pytest.approx(by_numpy(reference, rounded)["relative_l2"])


# fmt: off
STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed":     lambda wide: wide.T,
    "every second":   lambda wide: wide[:, ::2],
    "expanded":       lambda wide: wide[:1].expand(900, -1),
    "leading ones":   lambda wide: wide.T[None, None],
    "a row of rows":  lambda wide: wide.reshape(-1, 1).T,
}
# fmt: on


@pytest.mark.parametrize("view", STRIDES.values(), ids=STRIDES)
def test_strides_do_not_change_the_figures_nor_the_order(view: Callable[[Tensor], Tensor]) -> None:
    reference, candidate = (view(each) for each in pair(900, 800))
    assert asdict(agreement(reference, candidate)) == pytest.approx(
        asdict(agreement(reference.contiguous(), candidate.contiguous())), rel=1e-12
    )
    broken = candidate.clone(memory_format=torch.preserve_format)
    broken[..., -1, -3] = math.nan
    assert compare(reference, broken) == compare(reference.contiguous(), broken.contiguous())


def test_a_cosine_over_many_elements_does_not_pass_one() -> None:
    reference = torch.full((20_000_000,), 0.1)
    assert agreement(reference, reference).cosine == pytest.approx(1.0, abs=1e-12)
    assert agreement(reference, -reference).cosine == pytest.approx(-1.0, abs=1e-12)


def test_runs_and_merged_runs_come_to_the_same_as_the_whole() -> None:
    reference, candidate = pair(1_000_003)
    halves = Comparison(), Comparison()
    cuts = [0, 1, 300_000, 300_000, 999_999, 1_000_003]
    for number, (start, end) in enumerate(pairwise(cuts)):
        halves[number > 1].add(reference[start:end], candidate[start:end])
    halves[0].merge(halves[1])
    result = halves[0].result()
    assert isinstance(result, Agreement)
    assert asdict(result) == pytest.approx(asdict(agreement(reference, candidate)), rel=1e-12)


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", [each for each in DTYPES if each != torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("index", [0, 262_144])
def test_one_bad_element_on_either_side_is_found_and_nothing_is_compared(
    index: int, dtype: torch.dtype, value: float
) -> None:
    reference, candidate = pair(262_200, dtype=dtype)
    broken = candidate.clone()
    broken[index] = value
    assert compare(reference, broken) == NonFinite(262_200, reference=0, candidate=1, first=index)
    assert compare(broken, reference) == NonFinite(262_200, reference=1, candidate=0, first=index)
    assert compare(broken, broken) == NonFinite(262_200, reference=1, candidate=1, first=index)


def test_nan_in_float8_e4m3fn_is_found() -> None:
    reference = torch.ones(8).to(torch.float8_e4m3fn)
    candidate = reference.clone()
    candidate.view(torch.uint8)[5] = 0x7F
    assert compare(reference, candidate) == NonFinite(8, reference=0, candidate=1, first=5)


def test_a_bad_element_of_a_later_run_counts_from_the_first_run() -> None:
    first, later = Comparison(), Comparison()
    first.add(torch.ones(10), torch.ones(10))
    later.add(torch.ones(3), torch.tensor([1.0, math.nan, math.nan]))
    first.merge(later)
    first.add(torch.tensor([math.inf]), torch.ones(1))
    assert first.result() == NonFinite(14, reference=1, candidate=2, first=11)


def test_equal_tensors_are_identical_and_json_can_hold_the_result() -> None:
    reference, _ = pair(100)
    result = agreement(reference, reference.clone())
    assert (result.identical, result.relative_l2, result.sqnr_db, result.max_abs_error) == (True, 0.0, None, 0.0)
    json.dumps(asdict(result), allow_nan=False)


def test_zero_norms_give_none_instead_of_a_division_by_zero() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    assert agreement(zero, one) == Agreement(4, False, relative_l2=None, sqnr_db=None, cosine=None, max_abs_error=1.0)
    assert agreement(one, zero) == Agreement(4, False, relative_l2=1.0, sqnr_db=0.0, cosine=None, max_abs_error=1.0)
    assert agreement(zero, zero) == Agreement(4, True, relative_l2=0.0, sqnr_db=None, cosine=None, max_abs_error=0.0)


def test_the_largest_and_smallest_float32_are_compared_without_overflow_or_loss() -> None:
    for size in (3.4e38, 1e-45):
        reference = torch.full((1000,), size)
        result = agreement(reference, -reference)
        assert (result.relative_l2, result.cosine) == pytest.approx((2.0, -1.0))


@pytest.mark.parametrize(
    ("reference", "candidate", "sentence"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), r"the shapes differ: reference \[2, 3\], candidate \[3, 2\]"),
        (torch.ones(2), torch.ones(2).int(), r"the candidate is torch.int32: only float tensors are compared"),
        (torch.ones(2), torch.ones(2, device="meta"), r"the devices differ: reference on cpu, candidate on meta"),
        (torch.ones(0), torch.ones(0), r"there is nothing to compare"),
        (torch.ones(2).double() * 1e200, torch.ones(2).double(), r"the squares of these float64 numbers overflow"),
    ],
)
def test_what_cannot_be_compared_is_refused(reference: Tensor, candidate: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare(reference, candidate)


def test_every_figure_of_an_agreement_is_in_the_table_with_its_unit_direction_and_source() -> None:
    figures = {field.name for field in fields(tensors.Agreement)} - {"count", "identical"}
    assert figures <= METRICS.keys()
    assert all(metric.unit and metric.source for metric in METRICS.values())
