"""Verbs called as a library leave torch's number of threads as it was."""

from collections.abc import Callable, Iterator
from operator import floordiv as divide
from pathlib import Path

import pytest
import torch

from wanconv.commands import convert, validate, verify
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import WanconvError
from wanconv.types.progress import ProgressStep
from wanconv.weights.threads import single_threaded


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_is_for_as_long_as_the_block_even_where_it_fails() -> None:
    with pytest.raises(ZeroDivisionError), single_threaded():
        divide(1, torch.get_num_threads() - 1)  # by none
    assert torch.get_num_threads() == 3


def test_convert_and_verify_and_validate_restore_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, out = tiny("wan2.1-t2v-1.3b"), tmp_path / "out"
    options = ConvertOptions("bf16", out=out)
    convert.convert(source, options)
    assert torch.get_num_threads() == 3
    assert convert.convert(source, options).figures["outcome"]  # finished before: compared with a sample
    assert torch.get_num_threads() == 3
    assert verify.verify(out, verify.VerifyOptions(against=source)).exit_code == 0
    assert torch.get_num_threads() == 3
    validate.validate(
        out, validate.ValidateOptions(profile="quick", numerics="official", steps=1, size=(32, 32), frames=5)
    )
    assert torch.get_num_threads() == 3


def test_a_conversion_that_fails_restores_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, seen = tiny("wan2.1-t2v-1.3b"), []

    def stop(step: ProgressStep) -> None:
        seen.append(torch.get_num_threads())
        raise WanconvError("stopped", "")

    with pytest.raises(WanconvError, match=r"^stopped$"):
        convert.convert(source, ConvertOptions("fp16", out=tmp_path / "out"), stop)
    assert seen
    assert torch.get_num_threads() == 3
