"""The tokenizer that ComfyUI reads as a tensor of its UMT5: carried along, made of a sidecar, or missed."""

import os
from collections.abc import Callable
from pathlib import Path

import comfyui
import pytest
import tiny as tools
import torch
from hub.server import files_below, leading
from safetensors.torch import save_file

from wanconv.commands.convert import convert, convert_remote, preview_remote
from wanconv.commands.inspect import inspect
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, Unrecognised
from wanconv.layouts import LAYOUTS
from wanconv.models import identify
from wanconv.planning import plan
from wanconv.quantization.packings import TOKENIZER_NBYTES
from wanconv.recipe import load
from wanconv.report import Report

Tiny = Callable[..., Path]
T2V = "wan2.1-t2v-1.3b"
UMT5 = "text_encoders/umt5_xxl.safetensors"
PIECES = bytes(range(256)) * 20  # more than a comfy_quant tensor may have


def carrying(tiny: Tiny, folder: Path, pieces: torch.Tensor) -> Path:
    """Returns a text encoder of ComfyUI, a lone file, with this tokenizer in it."""
    report = convert(
        tiny(T2V), ConvertOptions("keep", layout="comfyui", out=folder / "plain", exclude=("*VAE*", "diff*"))
    )
    assert report.exit_code == 0
    (folder / "source").mkdir()
    save_file(
        {**comfyui.contents(folder / "plain" / UMT5), "spiece_model": pieces}, folder / "source" / "umt5.safetensors"
    )
    return folder / "source" / "umt5.safetensors"


@pytest.fixture(scope="module")
def source(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carrying(tiny, tmp_path_factory.mktemp("source"), torch.tensor(list(PIECES), dtype=torch.uint8))


def about_tokenizer(report: Report) -> list[tuple[str, str, str]]:
    found = [one for one in report.findings if "tokenizer" in one.message]
    return [(one.severity, one.where, one.message) for one in found]


@pytest.mark.parametrize("layout", ["comfyui", "comfyui-legacy", "gguf"])
def test_a_tokenizer_that_is_a_tensor_stays_one(layout: str, source: Path, tmp_path: Path) -> None:
    report = convert(source, ConvertOptions("fp16", layout=layout, out=tmp_path / "out"))
    assert about_tokenizer(report) == []
    assert bytes(comfyui.contents(tmp_path / "out" / UMT5)["spiece_model"].tolist()) == PIECES
    checked = verify(tmp_path / "out", VerifyOptions(against=source, client=layout))
    assert (checked.exit_code, about_tokenizer(checked)) == (0, [])


def test_it_comes_from_a_hub_with_the_headers(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ConvertOptions("fp16", layout="comfyui", out=tmp_path / "out")
    with leading(files_below(source.parent), monkeypatch, tmp_path / "modelscope"):
        preview_remote("hf://owner/name", options)
        convert_remote("hf://owner/name", options)
    convert(source, ConvertOptions("fp16", layout="comfyui", out=tmp_path / "here"))
    assert (tmp_path / "out" / UMT5).read_bytes() == (tmp_path / "here" / UMT5).read_bytes()
    assert bytes(comfyui.contents(tmp_path / "out" / UMT5)["spiece_model"].tolist()) == PIECES


def test_a_layout_without_a_place_for_it_says_so(source: Path, tmp_path: Path) -> None:
    report = convert(source, ConvertOptions("keep", layout="official", out=tmp_path / "out"))
    message = "its tokenizer, the tensor spiece_model, has no place in the official layout and is left out"
    assert about_tokenizer(report) == [("note", "text_encoder", message)]


def test_a_sidecar_becomes_one_and_is_not_said_to_be_left_out(tiny: Tiny, tmp_path: Path) -> None:
    source = tools.copy(tiny(T2V), tmp_path / "source")
    (source / "google" / "umt5-xxl" / "spiece.model").write_bytes(PIECES)
    report = convert(source, ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))
    assert bytes(comfyui.contents(tmp_path / "out" / UMT5)["spiece_model"].tolist()) == PIECES
    assert not [one for one in report.findings if "spiece" in one.where + one.message]


def test_without_one_comfyui_encodes_no_prompt_which_convert_and_verify_tell(tiny: Tiny, tmp_path: Path) -> None:
    report = convert(tiny(T2V), ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))
    message = "comfyui takes its tokenizer from a tensor, spiece_model, and "
    without = ("warning", "text_encoder", f"{message}the source has no spiece.model")
    assert about_tokenizer(report) == [without]
    checked = verify(tmp_path / "out", VerifyOptions(client="comfyui"))
    assert about_tokenizer(checked) == [("warning", UMT5, f"{message}without it encodes no prompt")]
    assert "comfyui" in inspect(tmp_path / "out").text("clients")


def test_the_t5_of_cogvideox_needs_none(tiny: Tiny, tmp_path: Path) -> None:
    source = tools.copy(tiny("cogvideox-2b"), tmp_path / "source")
    (source / "tokenizer" / "spiece.model").write_bytes(PIECES)
    report = convert(source, ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))
    assert "spiece_model" not in comfyui.contents(tmp_path / "out" / "text_encoders" / "t5xxl.safetensors")
    assert about_tokenizer(report) == []
    assert about_tokenizer(verify(tmp_path / "out", VerifyOptions(client="comfyui"))) == []


@pytest.mark.parametrize(
    "pieces", [torch.zeros(TOKENIZER_NBYTES + 1, dtype=torch.uint8), torch.zeros(9)], ids=["too large", "no bytes"]
)
def test_what_is_no_tokenizer_is_not_dropped(pieces: torch.Tensor, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Unrecognised) as raised:
        identify(open_checkpoint(carrying(tiny, tmp_path, pieces)))
    why = "no tokenizer that wanconv reads: uint8 of at most 16.8 MB"
    assert raised.value.details == (f"unknown: spiece_model ({why})",)


def test_a_sidecar_too_large_for_a_tokenizer_is_not_read(tiny: Tiny, tmp_path: Path) -> None:
    source = tools.copy(tiny(T2V), tmp_path / "source")
    path = source / "google" / "umt5-xxl" / "spiece.model"
    path.touch()
    os.truncate(path, 1 << 40)
    said = f"^{path} has 1.1 TB .1,099,511,627,776 bytes., and a tokenizer that becomes a tensor at most 16.8 MB$"
    with pytest.raises(InputError, match=said):
        convert(source, ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))


def test_a_sidecar_that_is_gone_when_it_is_read_is_named(tiny: Tiny, tmp_path: Path) -> None:
    source = tools.copy(tiny(T2V), tmp_path / "source")
    path = source / "google" / "umt5-xxl" / "spiece.model"
    path.write_bytes(PIECES)
    model = identify(open_checkpoint(source))
    path.unlink()
    with pytest.raises(InputError, match=f"^{path} does not exist$"):
        plan(model, load("keep"), LAYOUTS["comfyui"])
