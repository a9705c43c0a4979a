"""The same input gives the same bytes, and a manifest that holds neither time nor place."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from covering import covering

from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions
from wanconv.types.progress import ProgressStep


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both experts, a .pth text encoder and VAE, a tokenizer."""
    return tiny.make(tmp_path_factory.mktemp("bytes") / "source", "wan2.2-t2v-a14b")


def contents(source: Path, out: Path, options: ConvertOptions) -> dict[str, str]:
    assert convert(source, replace(options, out=out)).exit_code == 0
    return tiny.contents(out)


RECIPES = [
    ("experts-bf16-rest-fp16", "official"),
    ("experts-bf16-rest-fp16", "diffusers"),
    ("fp8-scaled", "comfyui"),  # one scale per tensor
    ("int8-row", "lightx2v"),
    ("searched", "comfyui"),  # rounding mse
    ("mxfp8", "comfyui"),
    ("nvfp4", "comfyui"),  # scales of blocks, and one of the tensor
]


@covering(("case", "jobs", "block"), RECIPES, [1, 2, 5], [1 << 16, 1 << 20, 12 << 10], strength=1)
def test_threads_and_blocks_do_not_show_in_the_bytes(
    source: Path, tmp_path: Path, case: tuple[str, str], jobs: int, block: int
) -> None:
    recipe, layout = case
    options = ConvertOptions(tiny.searched(tmp_path) if recipe == "searched" else recipe, layout=layout)
    expected = contents(source, tmp_path / "whole", options)
    assert contents(source, tmp_path / "cut", replace(options, jobs=jobs, block_nbytes=block)) == expected


def test_neither_the_place_nor_the_spelling_of_source_and_out_show_in_the_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ConvertOptions("experts-bf16-rest-fp16", layout="diffusers")
    expected = contents(source, tmp_path / "whole", options)
    moved = tiny.copy(source, tmp_path / "somewhere else" / "copy")
    (tmp_path / "link").symlink_to(moved)
    assert contents(moved, tmp_path / "moved", options) == expected
    assert contents(tmp_path / "link", tmp_path / "linked", options) == expected
    monkeypatch.chdir(moved)
    assert contents(Path(), Path("..") / "dotted", options) == expected
    monkeypatch.chdir(tmp_path)
    assert contents(Path("somewhere else/../link"), Path("relative"), options) == expected


@covering(("case", "stops"), RECIPES[1:], [(0.1, 0.5, 0.95), (0.99,)], strength=1)
def test_stops_do_not_show_in_the_bytes_and_cost_nothing_that_was_done(
    source: Path, tmp_path: Path, case: tuple[str, str], stops: Sequence[float]
) -> None:
    recipe, layout = case
    recipe = tiny.searched(tmp_path) if recipe == "searched" else recipe
    options = ConvertOptions(recipe, layout=layout, out=tmp_path / "out", block_nbytes=1 << 16)
    expected = contents(source, tmp_path / "whole", options)
    for share in stops:

        def stop(step: ProgressStep, share: float = share) -> None:
            if step.done > share * step.total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(source, options, stop)
        assert not (tmp_path / "out").exists()
    convert(source, replace(options, jobs=1))
    assert tiny.contents(tmp_path / "out") == expected


def test_the_manifest_holds_no_path_and_no_time(source: Path, tmp_path: Path) -> None:
    convert(source, ConvertOptions("keep", out=tmp_path / "out", hash_source=True))
    text = (tmp_path / "out" / "wanconv.json").read_text()
    assert str(tmp_path) not in text
    assert os.fspath(source) not in text
    assert not re.search(r'"/|\b20\d\d-\d\d|\d\d:\d\d', text)
    manifest = json.loads(text)
    assert manifest["tool"].keys() == {"wanconv", "torch", "python"}
    for entry in manifest["source"]:
        assert entry["sha256"] == tiny.digests(source)[entry["path"]]


def test_the_manifest_lists_every_file_with_its_true_digest(source: Path, tmp_path: Path) -> None:
    convert(
        source, ConvertOptions("experts-bf16-rest-fp16", layout="diffusers", out=tmp_path / "out", base_model="me/mine")
    )
    manifest = json.loads((tmp_path / "out" / "wanconv.json").read_bytes())
    listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    found = tiny.digests(tmp_path / "out")
    del found["wanconv.json"]
    assert listed == found
    assert all((tmp_path / "out" / entry["path"]).stat().st_size == entry["nbytes"] for entry in manifest["files"])
