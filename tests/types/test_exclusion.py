"""What is left out of a folder: what --exclude takes, what it says, and files of others beside a model."""

import itertools
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import copy

from wanconv.cli.flags import as_flags
from wanconv.commands import convert, verify
from wanconv.commands.inspect import inspect
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.downloads.selection import Wish, select
from wanconv.errors import InputError, Unrecognised
from wanconv.models import identify
from wanconv.report import Report
from wanconv.storage.hubs import RemoteFile
from wanconv.types.exclusion import excluded_by, excluding, unmatched

T2V = "wan2.1-t2v-1.3b"


# fmt: off
@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("loras/a.safetensors",   "loras/*",               True),
        ("loras/a.safetensors",   "a.safetensors",         True),   # its name
        ("loras/a.safetensors",   "a.*",                   True),
        ("loras/a.safetensors",   "loras",                 True),   # a folder above it
        ("loras/a.safetensors",   "loras/",                True),
        ("x/loras/a.safetensors", "loras",                 True),   # by its name
        ("x/loras/a.safetensors", "./loras",               False),  # by its whole path
        ("vae/model.safetensors", "./model.safetensors",   False),
        ("model.safetensors",     "./model.safetensors",   True),
        ("a/b/c.pth",             "*.pth",                 True),
        ("a/b/c.pth",             "a/*.pth",               True),   # a star crosses slashes
        ("a/b/c.pth",             "c",                     False),  # a name is whole
        ("a/b/c.pth",             "b/c.pth",               False),  # and so is a path
        ("a[1]/c.pth",            "a[[]1]/*",              True),
    ],
)
def test_a_glob_takes_paths_names_and_what_is_below_folders(path: str, glob: str, expected: bool) -> None:
    assert excluded_by(path, (glob,)) == (glob if expected else None)
    assert unmatched([glob], [path]) == (() if expected else (glob,))


@pytest.mark.parametrize(
    ("paths", "kept", "expected"),
    [
        (["a.pth"], [], ["./a.pth"]),
        (["x y/it's [1].pth"], [], ["x y/it's [[]1].pth"]),
        ([f"loras/{number}.pth" for number in range(9)], ["dit/a.pth"], ["loras/*"]),
        ([f"a/{number}.pth" for number in range(5)], ["a/mine.pth"], [f"a/{number}.pth" for number in range(4)]),
        ([f"a/{number}.pth" for number in range(5)], ["a/b/mine.pth"], [f"a/{number}.pth" for number in range(4)]),
    ],
)
def test_the_options_that_leave_files_out_leave_out_no_others(
    paths: list[str], kept: list[str], expected: list[str]
) -> None:
    words = shlex.split(as_flags(excluding(paths, kept)))
    globs = [value for word, value in itertools.pairwise(words) if word == "--exclude"]
    assert globs == expected
    assert all(excluded_by(path, globs) for path in paths[:4])
    assert not any(excluded_by(path, globs) for path in kept)


def test_a_hubs_files_are_excluded_as_those_of_a_folder_are() -> None:
    files = [RemoteFile(path, 1, "sha256", "0" * 64) for path in ("a.safetensors", "x/loras/b.safetensors")]
    assert [file.path for file in select(files, Wish(exclude=("loras",)))[0]] == ["a.safetensors"]
    assert [file.path for file in select(files, Wish(exclude=("b.*",)))[0]] == ["a.safetensors"]


def warnings(report: Report) -> list[tuple[str, str]]:
    return [(one.where, one.message) for one in report.findings if one.severity == "warning"]


def test_a_glob_that_matches_nothing_is_warned_of(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, globs = tiny(T2V), ("*.onnx", "*VAE*")
    idle = ("*.onnx", "excludes nothing: no path or name matches")
    assert warnings(inspect(source, exclude=globs)) == [idle]
    assert idle in warnings(convert.preview(source, ConvertOptions("bf16", exclude=globs, out=tmp_path / "out")))
    assert idle in warnings(convert.convert(source, ConvertOptions("bf16", exclude=globs, out=tmp_path / "out")))
    assert idle in warnings(verify.verify(source, verify.VerifyOptions(exclude=globs)))
    file = source / "diffusion_pytorch_model.safetensors"
    assert [one.where for one in inspect(file, exclude=("*.pth",)).findings if one.severity == "warning"] == ["*.pth"]


@pytest.fixture(scope="module")
def comfyui(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comfyui") / "out"
    convert.convert(tiny(T2V), ConvertOptions("keep", layout="comfyui", out=out))
    (out / "wanconv.json").unlink()
    return out


@pytest.fixture
def models(comfyui: Path, tmp_path: Path) -> Path:
    """ComfyUI's models folder with a model in it and what lies beside one there."""
    folder = copy(comfyui, tmp_path / "models")
    for path, tensors in {
        "loras/style.safetensors": {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 8)},
        "controlnet/canny.safetensors": {"zero_convs.0.0.weight": torch.zeros(4)},
    }.items():
        (folder / path).parent.mkdir()
        save_file(tensors, folder / path)
    (folder / "upscale_models").mkdir()
    torch.save({"model.0.weight": torch.zeros(3, 3)}, folder / "upscale_models" / "4x.pth")
    return folder


def test_files_of_others_beside_a_model_are_left_out_with_a_note(models: Path, tmp_path: Path) -> None:
    expected = [
        ("note", "controlnet/canny.safetensors", "left out: not a network that wanconv knows"),
        ("note", "loras/style.safetensors", "left out: a LoRA, which `loras` merges"),
        ("note", "upscale_models/4x.pth", "left out: not a network that wanconv knows"),
    ]
    found = [(one.severity, one.where, one.message) for one in inspect(models).findings]
    assert [one for one in found if one[2].startswith("left out")] == expected
    out = tmp_path / "out"
    made = convert.convert(models, ConvertOptions("bf16", out=out))
    found = [(one.severity, one.where, one.message) for one in made.findings]
    assert [one for one in found if one[2].startswith("left out")] == expected
    assert verify.verify(out, verify.VerifyOptions(against=models)).exit_code == 0
    text = (out / "wanconv.json").read_text()
    assert "canny" not in text
    assert not (out / "loras").exists()


def test_files_of_others_without_a_model_are_an_error_that_names_them(models: Path) -> None:
    shutil.rmtree(models / "diffusion_models")
    with pytest.raises(Unrecognised, match=r"3 files fit none$") as raised:
        identify(open_checkpoint(models))
    words = shlex.split(as_flags(raised.value.hint))
    globs = [words[number + 1] for number, word in enumerate(words) if word == "--exclude"]
    assert globs == ["controlnet/canny.safetensors", "loras/style.safetensors", "upscale_models/4x.pth"]
    assert identify(open_checkpoint(models, globs)).components.keys() == {"text_encoder", "vae"}


def spoilt(models: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    (file,) = (models / "vae").iterdir()
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: one for name, one in tensors.items() if name != "conv1.bias"},
        lambda tensors: dict(list(tensors.items())[:5]),
        lambda tensors: tensors | {"more": torch.zeros(1)},
        lambda tensors: {name: torch.zeros(3) for name in tensors},
        lambda tensors: {f"first_stage_model.{name}": one for name, one in tensors.items()},
        lambda tensors: {f"a.b.{name}": one for name, one in list(tensors.items())[3:]},
        lambda tensors: {},
    ],
    ids=["one missing", "a few left", "one more", "other shapes", "prefix", "unknown prefix, some missing", "empty"],
)
def test_what_may_be_a_network_of_the_model_is_never_left_out(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], models: Path
) -> None:
    spoilt(models, change)
    with pytest.raises(Unrecognised, match="vae/") as raised:
        identify(open_checkpoint(models))
    words = shlex.split(as_flags(raised.value.hint))
    assert "vae" not in identify(open_checkpoint(models, [words[words.index("--exclude") + 1]])).components


def test_a_file_beside_a_model_that_cannot_be_read_is_named_with_the_way_to_leave_it_out(models: Path) -> None:
    (models / "upscale_models" / "broken.safetensors").write_bytes(b"<html>")
    with pytest.raises(InputError, match="is a web page") as raised:
        open_checkpoint(models)
    words = shlex.split(as_flags(raised.value.hint))
    glob = words[words.index("--exclude") + 1]
    assert glob == "upscale_models/broken.safetensors"
    assert prepare(models, ConvertOptions("bf16", exclude=(glob,))).images


def test_two_of_a_kind_are_told_apart_by_the_options_that_leave_one_out(models: Path) -> None:
    (file,) = (models / "vae").iterdir()
    shutil.copy(file, models / "vae" / "it's another.safetensors")
    with pytest.raises(InputError, match=r"are both vae$") as raised:
        identify(open_checkpoint(models))
    words = shlex.split(as_flags(raised.value.hint).replace(";", " ;"))
    glob = words[words.index("--exclude") + 1]
    assert identify(open_checkpoint(models, [glob])).components.keys() == {"dit", "text_encoder", "vae"}
