"""Hints: commands in them can be pasted whatever a file or manifest is called, and do what the hint says."""

import json
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import copy

from wanconv.cli.flags import as_flags
from wanconv.commands import convert, publish, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.errors import CheckFailed, InputError, Refused, UsageError
from wanconv.models import identify

T2V = "wan2.1-t2v-1.3b"
NAME = "it's $(touch pwned) & `id` [1] *.safetensors"


def arguments(hint: str, option: str) -> list[str]:
    """Returns what a shell would take for the value of an option in a hint, each time that it stands there."""
    words = shlex.split(as_flags(hint))
    return [value for word, value in pairwise(words) if word == option]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    file = tmp_path_factory.mktemp("lora") / NAME
    model = prepare(tiny(T2V), ConvertOptions("bf16")).model
    width = model.components["dit"].tensors["dit/blocks.0.self_attn.q.weight"].shape[0]
    pair = {"A": torch.zeros(1, width), "B": torch.zeros(width, 1)}
    save_file({f"blocks.0.self_attn.q.lora_{side}.weight": one for side, one in pair.items()}, file)
    return file


def test_the_loras_of_a_manifest_are_quoted_for_the_shell(
    lora: Path, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = tiny(T2V), tmp_path / "out"
    convert.convert(source, ConvertOptions("bf16", out=out, loras=(f"{lora}:0.5",)))
    with pytest.raises(UsageError, match="holds merged LoRAs") as raised:
        verify.verify(out, verify.VerifyOptions(against=source))
    assert arguments(raised.value.hint, "--lora") == [f"dit={NAME}:0.5"]


def test_a_lora_whose_expert_is_open_is_quoted_for_the_shell(lora: Path, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="says which expert") as raised:
        prepare(tiny("wan2.2-t2v-a14b"), ConvertOptions("bf16", loras=(str(lora),)))
    words = as_flags(raised.value.hint).replace(",", " ,")
    assert arguments(words, "--lora") == [f"high={lora}", f"low={lora}"]


def test_the_glob_that_leaves_a_component_out_is_quoted_and_matches_it_alone(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(tiny("wan2.1-i2v-14b", "diffusers"), tmp_path / "model")
    (folder / "image_encoder").rename(folder / "it's [1] $(id)")
    with pytest.raises(Refused, match="the official layout needs") as raised:
        prepare(folder, ConvertOptions("keep", layout="official"))
    (glob,) = arguments(raised.value.hint, "--exclude")
    left = identify(open_checkpoint(folder, (glob,)))
    assert left.components.keys() == {"dit", "text_encoder", "vae"}


def test_a_folder_that_does_not_verify_is_quoted_for_the_shell(tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "it's $(id)"
    convert.convert(tiny(T2V), ConvertOptions("bf16", out=out))
    (out / "README.md").write_text("other")
    with pytest.raises(CheckFailed, match="does not verify") as raised:
        publish.publish(out, "o/n", publish.PublishOptions())
    assert shlex.split(raised.value.hint) == ["wanconv", "verify", str(out)]


def training(folder: Path, content: object, protocol: int = 2) -> Path:
    torch.save(content, folder / "model.pth", pickle_protocol=protocol)
    return folder / "model.pth"


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_later_pickle_protocol_is_no_damage(protocol: int, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        open_checkpoint(training(tmp_path, {"a": torch.zeros(2)}, protocol))
    assert f"is of pickle protocol {protocol} (it has " in raised.value.message
    assert raised.value.hint.startswith("re-save it")


@pytest.mark.parametrize("outer", ["generator_ema", "ema"])
def test_a_training_checkpoint_is_told_where_its_tensors_are(outer: str, tmp_path: Path) -> None:
    path = training(tmp_path, {outer: {"a": torch.zeros(2)}, "step": 3, "optimizer": {}})
    with pytest.raises(InputError) as raised:
        open_checkpoint(path)
    assert raised.value.message.endswith(f"a training run, and its tensors stand under {outer}: a dict of 1")
    assert raised.value.details == (f"{outer}: a dict of 1", "step: int '3'", "optimizer: a dict of 0")
    torch.save(torch.load(path, weights_only=True)[outer], path)  # what the hint says
    assert len(open_checkpoint(path).parts[0].tensors) == 1


def test_an_old_torch_file_is_named_once(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError) as raised:
        open_checkpoint(tmp_path / "a.pth")
    assert raised.value.message.endswith("is a torch file of before version 1.6, which wanconv does not read")


def test_tensors_that_share_some_bytes_are_no_damage(tmp_path: Path) -> None:
    both = torch.zeros(4, 2)
    with pytest.raises(InputError, match="share some of their bytes") as raised:
        open_checkpoint(training(tmp_path, {"qkv": both, "q": both[:2]}))
    assert raised.value.hint == "re-save it with .clone() on each tensor"


def test_shards_whose_index_has_a_variants_name_are_told_it(tmp_path: Path) -> None:
    shards = {f"m.fp16-0000{number}-of-00002.safetensors": {f"t{number}": torch.zeros(2)} for number in (1, 2)}
    for shard, tensors in shards.items():
        save_file(tensors, tmp_path / shard)
    index = tmp_path / "m.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, one in shards.items() for name in one}}))
    with pytest.raises(InputError, match=r"lists these shards is called m\.safetensors\.index\.fp16\.json$") as raised:
        open_checkpoint(tmp_path)
    name = raised.value.hint.removeprefix("rename it to ").partition(":")[0]
    index.rename(tmp_path / name)
    assert len(open_checkpoint(tmp_path).parts) == 1


def test_shards_with_an_index_of_others_beside_them_have_none(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(2)}, tmp_path / "m-00001-of-00002.safetensors")
    (tmp_path / "m.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": {"t": "other.safetensors"}}))
    with pytest.raises(InputError, match=r"no index lists these shards \(1 of them\)$"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("total", [1, 7.5])
def test_a_stale_total_size_is_no_reason_to_download(total: float, tmp_path: Path) -> None:
    save_file({"t": torch.zeros(2)}, tmp_path / "m.safetensors")
    content = {"metadata": {"total_size": total}, "weight_map": {"t": "m.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="promises a total_size") as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint.startswith("remove total_size from the index")


@pytest.mark.parametrize(
    "raw",
    [
        (8).to_bytes(8, "little") + b"xxxxxxxx" + bytes(range(128, 160)),  # no header
        (2**40).to_bytes(8, "little") + bytes(range(128, 160)),
        (2).to_bytes(8, "little") + b"{}" + b"",
    ],
)
def test_whole_files_of_another_kind_are_not_to_be_downloaded_again(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(InputError) as raised:
        identify(open_checkpoint(tmp_path / "a.safetensors"))
    assert "again" not in raised.value.hint


def test_what_is_cut_off_is_to_be_downloaded_again(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(64)}, tmp_path / "a.safetensors")
    torch.save({"t": torch.zeros(64)}, tmp_path / "a.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(InputError, match="is cut off") as raised:
            open_checkpoint(path)
        assert raised.value.hint == "download the file again"
