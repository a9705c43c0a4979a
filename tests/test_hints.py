"""Hints: commands in them can be pasted whatever a file or manifest is called, and do what the hint says."""

import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import copy

from wanconv.checkpoint import open_checkpoint
from wanconv.errors import CheckFailed, Refused, UsageError
from wanconv.families import identify
from wanconv.verbs import convert, publish, verify
from wanconv.workshop.job import Options, prepare

T2V = "wan2.1-t2v-1.3b"
NAME = "it's $(touch pwned) & `id` [1] *.safetensors"


def arguments(hint: str, option: str) -> list[str]:
    """Returns what a shell would take for the value of an option in a hint, each time that it stands there."""
    words = shlex.split(hint)
    return [value for word, value in pairwise(words) if word == option]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    file = tmp_path_factory.mktemp("lora") / NAME
    model = prepare(tiny(T2V), Options("bf16")).model
    width = model.components["dit"].tensors["dit/blocks.0.self_attn.q.weight"].shape[0]
    pair = {"A": torch.zeros(1, width), "B": torch.zeros(width, 1)}
    save_file({f"blocks.0.self_attn.q.lora_{side}.weight": one for side, one in pair.items()}, file)
    return file


def test_the_loras_of_a_manifest_are_quoted_for_the_shell(
    lora: Path, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = tiny(T2V), tmp_path / "out"
    convert.convert(source, Options("bf16", out=out, loras=(f"{lora}:0.5",)))
    with pytest.raises(UsageError, match="holds merged LoRAs") as raised:
        verify.verify(out, verify.Options(against=source))
    assert arguments(raised.value.hint, "--lora") == [f"dit={NAME}:0.5"]


def test_a_lora_whose_expert_is_open_is_quoted_for_the_shell(lora: Path, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="says which expert") as raised:
        prepare(tiny("wan2.2-t2v-a14b"), Options("bf16", loras=(str(lora),)))
    words = raised.value.hint.replace(",", " ,")
    assert arguments(words, "--lora") == [f"high={lora}", f"low={lora}"]


def test_the_glob_that_leaves_a_component_out_is_quoted_and_matches_it_alone(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(tiny("wan2.1-i2v-14b", "diffusers"), tmp_path / "model")
    (folder / "image_encoder").rename(folder / "it's [1] $(id)")
    with pytest.raises(Refused, match="the official layout needs") as raised:
        prepare(folder, Options("keep", layout="official"))
    (glob,) = arguments(raised.value.hint, "--exclude")
    left = identify(open_checkpoint(folder, (glob,)))
    assert left.components.keys() == {"dit", "text_encoder", "vae"}


def test_a_folder_that_does_not_verify_is_quoted_for_the_shell(tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "it's $(id)"
    convert.convert(tiny(T2V), Options("bf16", out=out))
    (out / "README.md").write_text("other")
    with pytest.raises(CheckFailed, match="does not verify") as raised:
        publish.publish(out, "o/n", publish.Options())
    assert shlex.split(raised.value.hint) == ["wanconv", "verify", str(out)]
