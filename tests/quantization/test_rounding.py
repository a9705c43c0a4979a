"""Rounding `mse` through the verbs: what the plan says, the manifest records, clients decode and verify proves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny as tools
import torch

from wanconv.commands.convert import convert, preview
from wanconv.commands.recipes import explain
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.models import identify
from wanconv.quantization import scaled
from wanconv.quantization.codecs import Codecs
from wanconv.report import Cell, Report
from wanconv.weights.reader import Reader, Sources, read_scales

Tiny = Callable[..., Path]
A14B, S2V = "wan2.2-t2v-a14b", "wan2.2-s2v-14b"
UP, Q, K, V = (
    f"expert.high/blocks.1.{path}.weight" for path in ("ffn.up", "self_attn.q", "cross_attn.k", "cross_attn.v")
)
LABELS = {UP: "int8 tensor mse", Q: "int8 row mse", K: "fp8_e5m2 tensor mse", V: "fp8_e4m3fn tensor mse"}
OUTLIER = 30.0


@pytest.fixture(scope="module")
def source(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every kind of weight has one outlier."""
    folder = tools.copy(tiny(A14B), tmp_path_factory.mktemp("rounding") / "source")
    for name in LABELS:
        ref = identify(open_checkpoint(folder)).tensors[name].pieces[0].ref
        tools.poke(ref.file, ref.name, 1234, OUTLIER * 0.02)
    return folder


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounding")
    convert(source, ConvertOptions(tools.searched(folder), layout="comfyui", out=folder / "out", block_nbytes=1 << 16))
    return folder / "out"


def values(folder: Path, name: str) -> torch.Tensor:
    tensor, sources = identify(open_checkpoint(folder)).tensors[name], Sources()
    try:
        return Reader(sources).values(tensor, 0, tensor.numel).view(tensor.shape).float().clone()
    finally:
        sources.close()


def scales(folder: Path, name: str) -> torch.Tensor:
    sources = Sources()
    try:
        return read_scales(sources, identify(open_checkpoint(folder)).tensors[name], Codecs()).factors.clone()
    finally:
        sources.close()


def failed(report: Report) -> set[str]:
    return {finding.where for finding in report.findings if finding.severity == "failure"}


def test_the_plan_and_the_recipe_explained_say_mse(source: Path, tmp_path: Path) -> None:
    recipe = tools.searched(tmp_path)
    plan = preview(source, ConvertOptions(recipe, layout="comfyui", out=tmp_path / "out"))
    for report in (plan, explain(recipe, source, "comfyui")):
        (rules,) = (table for table in report.tables if table.title == "rules")
        assert [row[3] for row in rules.rows[:4]] == list(LABELS.values())
    assert [row[4] for row in explain(recipe).tables[0].rows] == ["mse"] * 4 + ["nearest"]


def test_the_manifest_and_the_card_record_it(out: Path) -> None:
    tensors = json.loads((out / "wanconv.json").read_bytes())["tensors"]
    for name, label in LABELS.items():
        assert f"{tensors[name]['format']} {tensors[name]['scale']} {tensors[name]['rounding']}" == label
    assert "rounding" not in tensors["expert.high/blocks.1.self_attn.q.bias"]
    assert ", ".join(sorted(LABELS.values())) in (out / "README.md").read_text()


def test_the_file_holds_what_the_format_makes_of_the_whole_tensor(source: Path, out: Path) -> None:
    for name, label in LABELS.items():
        storage, scale, rounding = label.split()
        payload, found = scaled.encode(values(source, name), storage, scale, name, rounding)
        assert torch.equal(scales(out, name), found)
        assert torch.equal(values(out, name), scaled.decode(payload, found))
    assert values(out, UP).max() < 0.9 * OUTLIER * 0.02  # clipped
    assert (values(out, V).max() / (OUTLIER * 0.02) - 1).abs() < 1 / 16  # a float never is


@pytest.mark.parametrize("manifest", [True, False])
def test_every_number_is_proven_with_the_manifest_and_without(
    manifest: bool, source: Path, out: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    if not manifest:
        (folder / "wanconv.json").unlink()
    report = verify(folder, VerifyOptions(against=source))
    assert report.exit_code == 0
    worst = {row[1]: row[4].value for row in report.tables[0].rows if row[1] != "bf16" and isinstance(row[4], Cell)}
    assert len(worst) == 4
    assert all(isinstance(ratio, float) and 0.9 < ratio <= 1.0 for ratio in worst.values())


@pytest.mark.parametrize("name", list(LABELS))
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_wrong_scale_is_found(name: str, factor: float, source: Path, out: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    (folder / "wanconv.json").unlink()
    ref = identify(open_checkpoint(folder)).tensors[name].scales
    assert ref is not None
    tools.poke(ref.file, ref.name, 0, scales(folder, name)[0].item() * factor)
    assert failed(verify(folder, VerifyOptions(against=source))) == {name}


def test_what_the_manifest_calls_nearest_may_not_be_clipped(source: Path, out: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    text = (folder / "wanconv.json").read_text()
    (folder / "wanconv.json").write_text(text.replace('"rounding": "mse"', '"rounding": "nearest"'))
    found = failed(verify(folder, VerifyOptions(against=source)))
    assert UP in found
    assert not {K, V} & found


def test_a_quantized_source_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    convert(source, ConvertOptions("int8-row", layout="lightx2v", out=tmp_path / "one"))
    recipe = tools.searched(tmp_path)
    report = convert(tmp_path / "one", ConvertOptions(recipe, layout="comfyui", out=tmp_path / "other"))
    (rules,) = (table for table in report.tables if table.title == "rules")
    assert [row[3] for row in rules.rows[:2]] == ["int8 tensor mse", "int8 row"]
    assert torch.equal(values(tmp_path / "one", Q), values(tmp_path / "other", Q))
    entry = json.loads((tmp_path / "other" / "wanconv.json").read_bytes())["tensors"][Q]
    assert (entry["scale"], "rounding" in entry) == ("row", False)
    assert [
        note.message for note in report.findings if "int8 tensor mse adds its own error, up to half" in note.message
    ]
    assert verify(tmp_path / "other", VerifyOptions(against=tmp_path / "one")).exit_code == 0


def test_weights_that_follow_others_are_searched_as_those_are(tiny: Tiny, tmp_path: Path) -> None:
    text = 'schema = 1\nsummary = "a test"\n[[rule]]\nmatch = "dit/blocks.**"\nkind = "linear"\nformat = "int8"\n'
    text += 'scale = "row"\nrounding = "mse"\n[[rule]]\nmatch = "**"\nformat = "bf16"\n'
    (tmp_path / "mine.toml").write_text(text)
    out = tmp_path / "out"
    convert(tiny(S2V), ConvertOptions(str(tmp_path / "mine.toml"), layout="lightx2v", out=out))
    tensors = json.loads((out / "wanconv.json").read_bytes())["tensors"]
    assert tensors["dit/audio_injector.0.cross_attn.o.weight"]["rounding"] == "mse"
    assert verify(out, VerifyOptions(against=tiny(S2V))).exit_code == 0
