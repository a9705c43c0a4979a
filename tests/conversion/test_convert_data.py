"""What the numbers of a source may forbid: NaN, infinity, overflow, tied copies that differ, a file that changes."""

import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from covering import covering
from safetensors.torch import load_file, save_file

from wanconv.commands.convert import EXISTING, convert
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.errors import InputError, NotFinite, Overflow, Refused
from wanconv.recipe import load
from wanconv.recipe import names as recipe_names
from wanconv.report import Report
from wanconv.types.names import matches
from wanconv.types.progress import ProgressStep

FAMILY = "wan2.2-t2v-a14b"
RECIPES = [name for name in recipe_names() if any(matches(glob, FAMILY) for glob in load(name).families)]
HIGH = "high_noise_model/diffusion_pytorch_model.safetensors"
UP, DOWN = "blocks.1.ffn.0.weight", "blocks.0.ffn.2.weight"
BLOCK = 1 << 14


@pytest.fixture(scope="module")
def a14b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("data") / "a14b", FAMILY, "expert.high", "text_encoder")


@pytest.fixture
def source(a14b: Path, tmp_path: Path) -> Path:
    return tiny.copy(a14b, tmp_path / "source")


@pytest.fixture
def options(tmp_path: Path) -> ConvertOptions:
    return ConvertOptions("fp16", out=tmp_path / "out", block_nbytes=BLOCK)


def recipe(folder: Path, storage: str, fallback: str | None) -> str:
    """Writes a recipe of one rule, or of fp8 for what may have it."""
    file = folder / f"{storage}-{fallback}.toml"
    rule = f'match = "**"\nformat = "{storage}"\n' + (f'fallback = "{fallback}"\n' if fallback else "")
    if storage.startswith("fp8") and not fallback:
        rule += 'kind = ["linear", "embed"]\n[[rule]]\nmatch = "**"\nformat = "bf16"\n'
    file.write_text(f'schema = 1\nsummary = "one rule"\n\n[[rule]]\n{rule}')
    return str(file)


def fallbacks(report: Report) -> list[str]:
    return [finding.message for finding in report.findings if "a value exceeds" in finding.message]


def taking(source: Path, recipe: str) -> str:
    """Returns a layout that does not refuse a recipe."""
    for layout in ("diffusers", "comfyui", "gguf"):
        with suppress(Refused):
            prepare(source, ConvertOptions(recipe, layout=layout))
            return layout
    raise AssertionError(f"no client reads {recipe}")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("source", "recipes"))


@covering(("name", "value"), RECIPES, [math.nan, math.inf, -math.inf], strength=1)
def test_nan_and_infinity_are_refused_in_every_recipe_and_leave_nothing(
    source: Path, options: ConvertOptions, tmp_path: Path, name: str, value: float
) -> None:
    said = str(value)
    index = int({"nan": 0, "inf": 0.5, "-inf": 1}[said] * (load_file(source / HIGH)[UP].numel() - 1))
    tiny.poke(source / HIGH, UP, index, value)
    with pytest.raises(NotFinite) as caught:
        convert(source, replace(options, recipe=name, layout=taking(source, name)))
    assert caught.value.exit_code == 5
    assert caught.value.message.startswith(f"expert.high/blocks.1.ffn.up.weight[{index}] is {said}")
    assert left(tmp_path) == []


@covering(("storage", "jobs"), ["fp16", "fp8_e4m3fn", "fp8_e5m2"], [1, 2, 5], strength=1)
def test_an_overflow_without_a_fallback_is_refused_and_leaves_nothing(
    source: Path, options: ConvertOptions, tmp_path: Path, storage: str, jobs: int
) -> None:
    tiny.poke(source / HIGH, UP, 1001, -70000.0)
    tiny.poke(source / HIGH, UP, -1, 80000.0)  # the first one is named, whichever thread is quicker
    with pytest.raises(Overflow, match=r"expert\.high/blocks\.1\.ffn\.up\.weight\[1001\] is -70000, above") as caught:
        convert(source, replace(options, recipe=recipe(tmp_path.parent, storage, None), jobs=jobs))
    assert caught.value.exit_code == 5
    assert left(tmp_path) == []


@pytest.mark.parametrize("fallback", ["bf16", "fp32"])
def test_overflows_take_their_fallback_and_are_reported(
    source: Path, options: ConvertOptions, tmp_path: Path, fallback: str
) -> None:
    tiny.poke(source / HIGH, UP, 5, 70000.0)
    tiny.poke(source / HIGH, DOWN, -1, -1e38)
    options = replace(options, recipe=recipe(tmp_path.parent, "fp16", fallback))
    made = []
    for jobs, block in ((1, BLOCK), (2, BLOCK), (5, 1 << 16)):
        report = convert(source, replace(options, out=tmp_path / f"out{jobs}", jobs=jobs, block_nbytes=block))
        assert fallbacks(report) == [f"stored as {fallback}: fallback from fp16: a value exceeds 65504"]
        made.append(tiny.contents(tmp_path / f"out{jobs}"))
    assert made[0] == made[1] == made[2]
    manifest = json.loads((tmp_path / "out1" / "wanconv.json").read_bytes())
    fallen = {name: entry for name, entry in manifest["tensors"].items() if "reason" in entry}
    assert fallen.keys() == {"expert.high/blocks.1.ffn.up.weight", "expert.high/blocks.0.ffn.down.weight"}
    assert {entry["format"] for entry in fallen.values()} == {fallback}
    stored = load_file(tmp_path / "out1" / HIGH)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[fallback]
    assert {name for name, tensor in stored.items() if tensor.dtype == dtype} == {UP, DOWN}
    assert stored[UP].view(-1)[5] == torch.tensor(70000.0).to(dtype)
    again = convert(source, replace(options, out=tmp_path / "out1"))
    assert again.figures["outcome"] == EXISTING
    assert (fallbacks(again), again.tables) == (fallbacks(report), report.tables)


def test_a_fallback_that_changes_the_number_of_shards_leaves_no_shard_behind(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    tiny.poke(source / HIGH, "head.head.weight", 5, 70000.0)
    half = sum(tensor.numel() for tensor in load_file(source / HIGH).values()) * 2
    options = replace(options, recipe=recipe(tmp_path.parent, "fp16", "fp32"), shard_nbytes=half)
    convert(source, options)
    index = json.loads((tmp_path / "out" / f"{HIGH}.index.json").read_bytes())
    shards = {path.name for path in (tmp_path / "out" / "high_noise_model").glob("*.safetensors")}
    assert shards == set(index["weight_map"].values())
    assert len(shards) == 2


def test_a_run_stopped_when_the_fallback_was_found_goes_on_from_there(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    tiny.poke(source / HIGH, UP, 5, 70000.0)
    options = replace(options, recipe=recipe(tmp_path.parent, "fp16", "fp32"), jobs=1)
    convert(source, replace(options, out=tmp_path / "undisturbed"))
    counts: list[int] = []

    def stop(step: ProgressStep) -> None:
        if step.done and counts and step.done < max(counts):  # the second attempt has begun
            raise KeyboardInterrupt
        counts.append(step.done)

    with pytest.raises(KeyboardInterrupt):
        convert(source, options, stop)
    state = json.loads((tmp_path / "out.partial" / ".wanconv" / "state.json").read_bytes())
    assert state["overflowing"] == ["expert.high/blocks.1.ffn.up.weight"]
    convert(source, options)
    assert tiny.contents(tmp_path / "out") == tiny.contents(tmp_path / "undisturbed")


def test_nan_behind_an_overflow_that_has_a_fallback_is_refused_and_leaves_nothing(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    """The pass that looks for every overflow finds it."""
    tiny.poke(source / HIGH, DOWN, 5, 70000.0)
    tiny.poke(source / HIGH, UP, 6, math.nan)
    with pytest.raises(NotFinite, match=r"blocks\.1\.ffn\.up\.weight\[6\] is nan"):
        convert(source, replace(options, recipe=recipe(tmp_path.parent, "fp16", "bf16")))
    assert left(tmp_path) == []


def test_a_fallback_that_overflows_as_well_is_refused_and_leaves_nothing(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    tiny.poke(source / HIGH, UP, 5, 70000.0)
    with pytest.raises(Overflow, match=r"above 65504, the largest fp16 number"):
        convert(source, replace(options, recipe=recipe(tmp_path.parent, "fp8_e4m3fn", "fp16")))
    assert left(tmp_path) == []


@pytest.mark.parametrize(("value", "passes"), [(65504.0, True), (65505.0, False)])
def test_the_largest_number_passes_and_the_next_one_does_not(
    source: Path, options: ConvertOptions, tmp_path: Path, value: float, passes: bool
) -> None:
    tiny.poke(source / HIGH, UP, 5, value)
    if passes:
        assert convert(source, options).exit_code == 0
    else:
        with pytest.raises(Overflow):
            convert(source, options)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - BLOCK)


def touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [(cut, "ends inside .*changed|ends inside"), (touch, "changed while"), (Path.unlink, "cannot")],
)
def test_a_source_that_changes_during_the_run_is_an_input_error(
    source: Path, options: ConvertOptions, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    changed: list[Path] = []

    def later(step: ProgressStep) -> None:
        if step.done and not changed:
            changed.append(source / HIGH)
            change(source / HIGH)

    with pytest.raises(InputError, match=message) as caught:
        convert(source, replace(options, jobs=1), later)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def hub_text_encoder(folder: Path, shared: torch.Tensor | None) -> Path:
    """Makes a diffusers folder whose text encoder holds its token embedding under both names."""
    tiny.make(folder, "wan2.1-t2v-1.3b", "dit", "text_encoder", layout="diffusers")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone() if shared is None else shared
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_equal_tied_copies_are_written_once_and_reported(tmp_path: Path, layout: str) -> None:
    source = hub_text_encoder(tmp_path / "source", None)
    report = convert(source, ConvertOptions("keep", layout=layout, out=tmp_path / "out"))
    assert any("a second time" in finding.message and "written once" in finding.message for finding in report.findings)
    manifest = json.loads((tmp_path / "out" / "wanconv.json").read_bytes())
    assert [name for name in manifest["tensors"] if "token_embedding" in name] == [
        "text_encoder/token_embedding.weight"
    ]
    if layout == "diffusers":
        names = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
        assert len({"shared.weight", "encoder.embed_tokens.weight"} & set(names)) == 1


@pytest.mark.parametrize("change", ["one bit", "nan"])
def test_tied_copies_that_differ_are_refused_and_leave_nothing(tmp_path: Path, change: str) -> None:
    source = hub_text_encoder(tmp_path / "source", None)
    file = source / "text_encoder" / "model.safetensors"
    shared = load_file(file)["shared.weight"].clone()
    shared[-1, -1] = math.nan if change == "nan" else shared[-1, -1] * 1.01 + 0.01
    shutil.rmtree(source)
    hub_text_encoder(source, shared)
    with pytest.raises(InputError, match="differs from") as caught:
        convert(source, ConvertOptions("keep", out=tmp_path / "out"))
    assert caught.value.exit_code == 3
    assert left(tmp_path) == []


def test_shards_of_torch_are_each_confirmed_by_torch(tmp_path: Path) -> None:
    source = tiny.make(tmp_path / "source", "wan2.1-t2v-1.3b", "dit")
    file = source / "diffusion_pytorch_model.safetensors"
    convert(source, ConvertOptions("bf16", out=tmp_path / "whole"))
    names = list(tensors := load_file(file))
    shards = {f"diffusion_pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in range(2)}
    for shard, inside in shards.items():
        torch.save({name: tensors[name] for name in inside}, source / shard)
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (source / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    file.unlink()
    convert(source, ConvertOptions("bf16", out=tmp_path / "out"))
    found, expected = (load_file(tmp_path / name / file.name) for name in ("out", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
