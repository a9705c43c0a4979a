"""One expert under both names: told before anything is converted, of a hub by its list, and of what was written."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub.server import Hub, files_below, leading
from safetensors.torch import load_file, save_file

from wanconv.commands.convert import convert, convert_remote, preview, preview_remote
from wanconv.commands.inspect import inspect, inspect_remote
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError
from wanconv.models import identify
from wanconv.provenance import twins
from wanconv.storage.hubs import Patience

Tiny = Callable[..., Path]

A14B, VACE = "wan2.2-t2v-a14b", "wan2.2-vace-fun-a14b"
FILE = "diffusion_pytorch_model.safetensors"
HIGH, LOW = f"high_noise_model/{FILE}", f"low_noise_model/{FILE}"
MESSAGE = f"{HIGH} and {LOW} are the same expert, under both names"


def pair(source: Path, folder: Path) -> Path:
    """Returns a copy of a model's two experts in which the high one stands under both names."""
    for expert in (HIGH, LOW):
        (folder / expert).parent.mkdir(parents=True)
        shutil.copy(source / HIGH, folder / expert)
    return folder


@pytest.fixture
def twice(tiny: Tiny, tmp_path: Path) -> Path:
    return pair(tiny(A14B), tmp_path / "twice")


@pytest.mark.parametrize("release", [A14B, VACE])
def test_one_file_under_both_names_is_an_error_before_anything_is_written(
    release: str, tiny: Tiny, tmp_path: Path
) -> None:
    source, out = pair(tiny(release), tmp_path / "twice"), tmp_path / "out"
    for run in (preview, convert):
        with pytest.raises(InputError) as refused:
            run(source, ConvertOptions("bf16", out=out))
        assert (refused.value.message, refused.value.exit_code) == (MESSAGE, 3)
        assert refused.value.details[0].endswith(
            "tensors that are not zero is the same in both, as samples of them show"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["twice"]


def test_inspect_warns_of_it_and_verify_fails(twice: Path) -> None:
    (warning,) = [each for each in inspect(twice).findings if each.where == "expert.low" and each.severity == "warning"]
    assert warning.message.startswith(MESSAGE)
    report = verify(twice, VerifyOptions())
    assert report.exit_code == 1
    assert [each.message.startswith(MESSAGE) for each in report.findings if each.severity == "failure"] == [True]


def test_the_same_numbers_in_other_shards_and_a_wider_dtype_are_the_same(twice: Path, tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in load_file(twice / HIGH).items()}
    save_file(weights, twice / HIGH)
    save_file({name: tensor.float() for name, tensor in weights.items()}, twice / LOW)
    with pytest.raises(InputError, match="are the same expert"):
        preview(twice, ConvertOptions("keep", out=tmp_path / "out"))
    save_file({name: (tensor * 1.01).float() for name, tensor in weights.items()}, twice / LOW)
    preview(twice, ConvertOptions("keep", out=tmp_path / "out"))


@pytest.mark.parametrize("changed", ["blocks.1.ffn.0.weight", "head.head.bias"])
def test_experts_that_share_all_weights_but_one_are_two(changed: str, twice: Path, tmp_path: Path) -> None:
    weights = load_file(twice / LOW)
    weights[changed] = weights[changed] * 1.5
    save_file(weights, twice / LOW)
    assert convert(twice, ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "out")).exit_code == 0


def test_files_of_zeros_are_not_compared(twice: Path) -> None:
    weights = {name: torch.zeros_like(tensor) for name, tensor in load_file(twice / HIGH).items()}
    for expert in (HIGH, LOW):
        save_file(weights, twice / expert)
    assert twins.sampled(identify(open_checkpoint(twice))) is None


def test_what_was_written_is_compared_digest_by_digest(
    twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "sampled", lambda model: None)
    for recipe, layout in (("bf16", "official"), ("fp8-scaled", "comfyui"), ("gguf-q8_0", "gguf")):
        with pytest.raises(InputError) as refused:
            convert(twice, ConvertOptions(recipe, layout=layout, out=tmp_path / "out"))
        assert refused.value.message == MESSAGE
        assert "tensors are the same in both" in refused.value.details[0]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["twice"]


# On a hub


@pytest.fixture
def hub(twice: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with leading(files_below(twice), monkeypatch, tmp_path / "modelscope") as server:
        yield server


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_a_hub_that_lists_one_digest_for_both_is_told_from_its_list(hub: Hub, name: str, tmp_path: Path) -> None:
    options = ConvertOptions("bf16", out=tmp_path / "out")
    for run in (preview_remote, convert_remote):
        with pytest.raises(InputError) as refused:
            run(f"{name}://owner/name", options)
        assert refused.value.message == MESSAGE
        assert refused.value.details == ("their repository lists the same digests for both",)
    assert any(each.message.startswith(MESSAGE) for each in inspect_remote(f"{name}://owner/name").findings)
    assert all(request.range for request in hub.payload_requests())  # no weight file came whole


def test_the_same_numbers_in_another_file_are_told_when_they_have_come(
    twice: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_file(load_file(twice / LOW), twice / LOW, {"format": "pt", "note": "the same in another file"})
    hub.commit(files_below(twice))
    out, patience = tmp_path / "out", Patience(attempts=1)
    with pytest.raises(InputError, match="are the same expert") as refused:
        convert_remote("hf://owner/name", replace(ConvertOptions("bf16"), out=out), patience=patience)
    assert "tensors are the same in both" in refused.value.details[0]
    assert not out.exists()
