"""A model on disk as the engine's weights: what stays, what is read again, what is read ahead."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wanconv.containers import open_checkpoint
from wanconv.evaluation.forced import compare_tensor
from wanconv.models import identify
from wanconv.types.model import Model
from wanconv.weights.model import ModelWeights

CPU = torch.device("cpu")
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Model:
    return identify(open_checkpoint(tiny("wan2.1-t2v-1.3b")))


def test_what_fits_is_read_once_and_what_does_not_each_time(model: Model) -> None:
    read = {}
    for memory in (PLENTY, 0):
        with ModelWeights(model, memory, CPU) as weights:
            for number in (0, 1, 2, 0, 1, 2):
                weights.tensors("dit", f"blocks.{number}")
            read[memory] = weights.read_nbytes
    assert read[0] == 2 * read[PLENTY]


def test_reading_ahead_changes_no_number_and_reads_no_block_twice(model: Model) -> None:
    with ModelWeights(model, 0, CPU) as plain, ModelWeights(model, 0, CPU, ahead=True) as ahead:
        for prefix in ("patch_embedding", "blocks.0", "blocks.1", "blocks.2", "head"):
            one, other = plain.tensors("dit", prefix), ahead.tensors("dit", prefix)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
        assert ahead.read_nbytes == plain.read_nbytes


def test_a_block_that_was_read_ahead_and_is_not_wanted_does_no_harm(model: Model) -> None:
    with ModelWeights(model, PLENTY, CPU, ahead=True) as weights:
        weights.tensors("dit", "blocks.0")
        assert weights.tensors("dit", "blocks.2").keys() == {
            name.replace("blocks.1", "blocks.2") for name in weights.tensors("dit", "blocks.1")
        }


def test_numbers_that_storing_made_zero_are_counted_and_those_that_were_zero_are_not(model: Model) -> None:
    nan = float("nan")
    tensor = model.tensors["dit/patch_embedding.bias"]
    source = torch.tensor([0.0, 1.0, 2.0**-30, -0.0, nan, 3.0], dtype=torch.float32)
    stored = torch.tensor([0.0, 0.0, 0.0, 1.0, -0.0, nan], dtype=torch.float16)
    runs = [(source, stored), (source, source), (source[:2].view(2, 1), stored[:2].view(2, 1))]
    assert compare_tensor(tensor, tensor, runs).flushed_share * tensor.numel == pytest.approx(3 + 0 + 1)
