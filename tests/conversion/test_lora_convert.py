"""Conversions with LoRAs: planned, resumed, recorded, proven with the same LoRAs and with no others."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import tiny as tools
import torch
from command import call_all
from convert_server import Server
from safetensors.torch import load_file, save_file

from wanconv.commands.convert import EXISTING, WRITTEN, convert, preview
from wanconv.commands.validate import ValidateOptions, validate
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, NotFinite, Refused, UsageError
from wanconv.models import identify
from wanconv.provenance import manifest
from wanconv.report import Cell, Report

Tiny = Callable[..., Path]

T2V, A14B, TI2V = "wan2.1-t2v-1.3b", "wan2.2-t2v-a14b", "wan2.2-ti2v-5b"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def lora(
    folder: Path, name: str = "style.safetensors", seed: int = 0, more: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """Writes a LoRA of rank 4 for the first and the last linear layer of every block, and one difference of a bias."""
    made = torch.Generator().manual_seed(seed)
    keys = {"diffusion_model.blocks.1.ffn.0.diff_b": torch.randn(256, generator=made) * 0.1}
    for block in range(3):
        for leaf, columns in (("self_attn.q", 128), ("ffn.2", 256)):
            stem = f"diffusion_model.blocks.{block}.{leaf}"
            keys[f"{stem}.lora_down.weight"] = torch.randn(4, columns, generator=made) * 0.1
            keys[f"{stem}.lora_up.weight"] = torch.randn(128, 4, generator=made) * 0.1
            keys[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file({**keys, **(more or {})}, folder / name)
    return folder / name


CHANGED = {f"blocks.{n}.{leaf}.weight" for n in range(3) for leaf in ("self_attn.q", "ffn.down")} | {
    "blocks.1.ffn.up.bias"
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser alone."""
    return tools.make(tmp_path_factory.mktemp("lora") / "source", T2V, "dit")


def said(report: Report) -> list[str]:
    return [f"{one.severity} {one.where}: {one.message}" for one in report.findings]


def proof(out: Path, source: Path, *loras: object) -> Report:
    return verify(out, VerifyOptions(against=source, loras=tuple(map(str, loras))))


# bytes


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [("bf16", "diffusers"), ("int8-row", "lightx2v"), ("fp8-scaled", "comfyui"), ("nvfp4", "comfyui")],
)
def test_threads_and_blocks_do_not_show_in_merged_bytes(recipe: str, layout: str, source: Path, tmp_path: Path) -> None:
    file = lora(tmp_path)
    options = ConvertOptions(recipe, layout=layout, loras=(f"{file}:0.7",), out=tmp_path / "whole")
    convert(source, options)
    expected = tools.contents(tmp_path / "whole")
    for jobs, block in ((1, 1 << 16), (2, 1 << 20), (5, 12 << 10)):
        out = tmp_path / f"{jobs}-{block}"
        convert(source, replace(options, out=out, jobs=jobs, block_nbytes=block))
        assert tools.contents(out) == expected
    checked = proof(tmp_path / "whole", source, f"{file}:0.7")
    assert checked.exit_code == 0
    worst = [row[4].value for row in checked.tables[0].rows if isinstance(row[4], Cell)]
    assert all(isinstance(ratio, float) and 0.9 < ratio <= 1 for ratio in worst if ratio), worst


def test_a_killed_conversion_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    options = {"recipe": "fp16", "jobs": 2, "block_nbytes": 1 << 18, "loras": [str(lora(tmp_path))]}
    with Server() as server:
        assert server.convert(source, tmp_path / "whole", options).code == 0
        assert server.convert(source, tmp_path / "out", options, ["pwrite", 5, "SIGKILL"]).fired
        assert not (tmp_path / "out").exists()
        assert server.convert(source, tmp_path / "out", options).code == 0
    assert tools.contents(tmp_path / "out") == tools.contents(tmp_path / "whole")


def test_keep_has_the_dtypes_of_the_source_and_changes_what_the_lora_names_alone(source: Path, tmp_path: Path) -> None:
    convert(source, ConvertOptions("bf16", out=tmp_path / "bf16"))
    convert(tmp_path / "bf16", ConvertOptions("keep", out=tmp_path / "out", loras=(str(lora(tmp_path)),)))
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("bf16", "out"))
    names = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(after[name].dtype == before[name].dtype for name in before)
    model = identify(open_checkpoint(tmp_path / "out"))
    found = {tensor.pieces[0].ref.name: name.removeprefix("dit/") for name, tensor in model.tensors.items()}
    assert {found[name] for name in names} == CHANGED
    assert proof(tmp_path / "out", tmp_path / "bf16", tmp_path / "style.safetensors").exit_code == 0


def test_a_merged_number_too_large_takes_the_fallback(source: Path, tmp_path: Path) -> None:
    big = torch.zeros(256)
    big[3] = 70000.0
    file = lora(tmp_path, more={"diffusion_model.blocks.0.ffn.0.diff_b": big})
    recipe = tmp_path / "mine.toml"
    recipe.write_text('schema = 1\nsummary = "a test"\n[[rule]]\nmatch = "**"\nformat = "fp16"\nfallback = "bf16"\n')
    report = convert(source, ConvertOptions(str(recipe), out=tmp_path / "out", loras=(str(file),)))
    assert "note dit/blocks.0.ffn.up.bias: stored as bf16: fallback from fp16: a value exceeds 65504" in said(report)
    assert proof(tmp_path / "out", source, file).exit_code == 0


def test_of_a_quantized_source_what_is_merged_is_rounded_again_and_the_rest_carried_over(
    source: Path, tmp_path: Path
) -> None:
    convert(source, ConvertOptions("int8-row", layout="lightx2v", out=tmp_path / "int8"))
    options = ConvertOptions("keep", layout="comfyui", out=tmp_path / "out", loras=(str(lora(tmp_path)),))
    told = said(convert(tmp_path / "int8", options))
    again = (
        "and 5 more: was int8 row: that precision is lost already, and int8 row adds its own error, up to half a step"
    )
    assert [line for line in told if line.startswith("warning") and line.endswith(again)]
    carried = "and 23 more: was int8 row and stays so: payload and scales are carried over"
    assert [line for line in told if line.startswith("note") and line.endswith(carried)]
    before, after = (identify(open_checkpoint(tmp_path / name)).tensors for name in ("int8", "out"))
    changed = {name for name in before if before[name].pieces[0].ref.read() != after[name].pieces[0].ref.read()}
    assert changed == {f"dit/{name}" for name in CHANGED}
    assert proof(tmp_path / "out", tmp_path / "int8", tmp_path / "style.safetensors").exit_code == 0


def test_of_a_gguf_source_what_is_merged_is_rounded_again_and_the_rest_carried_over(
    source: Path, tmp_path: Path
) -> None:
    convert(source, ConvertOptions("gguf-q8_0", layout="gguf", out=tmp_path / "q8_0"))
    report = convert(tmp_path / "q8_0", ConvertOptions("keep", out=tmp_path / "out", loras=(str(lora(tmp_path)),)))
    told = [line for line in said(report) if "q8_0" in line]
    assert sorted(line.partition(" ")[0] for line in told) == ["note", "warning"]
    before, after = (identify(open_checkpoint(tmp_path / name)).tensors for name in ("q8_0", "out"))
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}
    changed = {name for name in before if before[name].pieces[0].ref.read() != after[name].pieces[0].ref.read()}
    assert changed == {f"dit/{name}" for name in CHANGED}
    assert proof(tmp_path / "out", tmp_path / "q8_0", tmp_path / "style.safetensors").exit_code == 0


# what is told and recorded


def test_the_plan_lists_each_lora(tiny: Tiny, tmp_path: Path) -> None:
    high, low = lora(tmp_path, "a_high_noise.safetensors"), lora(tmp_path, "b.safetensors", seed=1)
    plain = preview(tiny(A14B), ConvertOptions("bf16", out=tmp_path / "out"))
    report = preview(tiny(A14B), ConvertOptions("bf16", out=tmp_path / "out", loras=(f"{high}:0.5", f"low={low}")))
    assert [table.title for table in plain.tables] == ["components", "rules"]
    table = report.tables[2]
    assert table.columns == ("lora", "component", "tensors", "rank", "strength", "sha256")
    assert sorted(table.rows) == [
        ("a_high_noise.safetensors", "expert.high", 7, "4", 0.5, tools.digests(tmp_path)["a_high_noise.safetensors"]),
        ("b.safetensors", "expert.low", 7, "4", 1.0, tools.digests(tmp_path)["b.safetensors"]),
    ]
    assert "note a_high_noise.safetensors: goes to expert.high by its file name a_high_noise.safetensors" in said(
        report
    )
    memory = [one.figures["conversion_memory_nbytes"] for one in (plain, report)]
    assert memory[0] < memory[1]  # type: ignore[operator]  # two numbers
    assert not (tmp_path / "out").exists()


def test_a_word_that_is_no_component_and_the_name_of_the_other_expert_are_told(tiny: Tiny, tmp_path: Path) -> None:
    refused = ConvertOptions("bf16", out=tmp_path / "out", loras=("mid=b.safetensors",))
    with pytest.raises(UsageError, match="the file does not exist, and 'mid' is not a component"):
        preview(tiny(A14B), refused)
    high = lora(tmp_path, "a_high_noise.safetensors")
    report = preview(tiny(A14B), ConvertOptions("bf16", out=tmp_path / "out", loras=(f"low={high}",)))
    told = "warning a_high_noise.safetensors: goes to expert.low, and its name speaks of expert.high"
    assert told in said(report)


def test_manifest_and_card_record_the_loras(tiny: Tiny, tmp_path: Path) -> None:
    high, low = lora(tmp_path, "high.safetensors"), lora(tmp_path, "low.safetensors", seed=1)
    convert(
        tiny(A14B),
        ConvertOptions("bf16", out=tmp_path / "out", base_model="me/mine", loras=(f"high={high}:0.5", f"low={low}")),
    )
    digests, card = tools.digests(tmp_path), (tmp_path / "out" / "README.md").read_text()
    known = manifest.read(tmp_path / "out")
    assert known is not None
    entries = {
        name: {"file": name, "sha256": digests[name], "component": component, "strength": strength, "tensors": 7}
        for name, component, strength in (
            ("high.safetensors", "expert.high", 0.5),
            ("low.safetensors", "expert.low", 1.0),
        )
    }
    assert {str(entry["file"]): entry for entry in manifest.loras(known)} == entries
    assert str(tmp_path) not in json.dumps(known)
    assert f"| high.safetensors | expert.high | 0.5 | `{digests['high.safetensors']}` |" in card
    assert f"| low.safetensors | expert.low | 1 | `{digests['low.safetensors']}` |" in card
    assert "base_model_relation: merge" in card
    convert(tiny(A14B), ConvertOptions("keep", out=tmp_path / "plain"))
    assert "LoRA" not in (tmp_path / "plain" / "README.md").read_text()
    assert "loras" not in json.loads((tmp_path / "plain" / "wanconv.json").read_bytes())


def test_unmatched_keys_are_an_error_or_a_warning(source: Path, tmp_path: Path) -> None:
    file = lora(tmp_path, more={"diffusion_model.blocks.9.ffn.0.diff_b": torch.zeros(256)})
    options = ConvertOptions("bf16", out=tmp_path / "out", loras=(str(file),))
    with pytest.raises(Refused, match="1 of its 20 keys names no tensor there"):
        preview(source, options)
    report = convert(source, replace(options, lora_allow_unmatched=True))
    line = "style.safetensors: 1 of its keys names nothing in dit: diffusion_model.blocks.9.ffn.0.diff_b"
    assert f"warning {line}" in said(report)
    assert proof(tmp_path / "out", source, file).exit_code == 0


def test_another_lora_or_strength_is_another_conversion(source: Path, tmp_path: Path) -> None:
    file = lora(tmp_path)
    options = ConvertOptions("bf16", out=tmp_path / "out", loras=(f"{file}:0.5",))
    assert convert(source, options).figures["outcome"] == WRITTEN
    assert convert(source, options).figures["outcome"] == EXISTING
    for other in ((f"{file}:0.6",), (), (str(file), str(lora(tmp_path, "b.safetensors", 1)))):
        with pytest.raises(UsageError, match="or its source, `base_model` or `loras` has changed"):
            convert(source, replace(options, loras=other))
    lora(tmp_path, seed=2)
    with pytest.raises(UsageError, match="or its source, `base_model` or `loras` has changed"):
        convert(source, options)


@pytest.mark.parametrize(
    ("recipe", "layout"), [("int8-row", "lightx2v"), ("fp8-scaled", "comfyui"), ("mxfp8", "comfyui")]
)
def test_a_finished_out_with_scales_of_merged_numbers_is_left(
    recipe: str, layout: str, source: Path, tmp_path: Path
) -> None:
    options = ConvertOptions(recipe, layout=layout, out=tmp_path / "out", loras=(f"{lora(tmp_path)}:0.7",))
    convert(source, options)
    assert convert(source, options).figures["outcome"] == EXISTING


def test_nan_in_a_lora_leaves_no_out(source: Path, tmp_path: Path) -> None:
    bad = torch.zeros(256)
    bad[200] = float("nan")
    file = lora(tmp_path, more={"diffusion_model.blocks.0.ffn.0.diff_b": bad})
    with pytest.raises(NotFinite, match=r"blocks\.0\.ffn\.0\.diff_b holds NaN or infinity"):
        convert(source, ConvertOptions("bf16", out=tmp_path / "out", loras=(str(file),)))
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]


def test_out_is_not_the_folder_that_the_lora_lies_in(source: Path, tmp_path: Path) -> None:
    file = lora(tmp_path)
    with pytest.raises(UsageError, match="is, holds or lies in the source"):
        convert(source, ConvertOptions("bf16", out=tmp_path, force=True, loras=(str(file),)))
    assert file.exists()


# the proof


def test_the_proof_asks_for_the_same_loras(source: Path, tmp_path: Path) -> None:
    file, out = lora(tmp_path), tmp_path / "out"
    convert(source, ConvertOptions("bf16", out=out, loras=(f"{file}:0.5",)))
    convert(source, ConvertOptions("bf16", out=tmp_path / "plain"))
    assert verify(out, VerifyOptions()).exit_code == 0
    with pytest.raises(UsageError) as alone:
        proof(out, source)
    assert alone.value.message == f"{out} holds merged LoRAs, and cannot be compared with its source without them"
    assert alone.value.hint == 'give them with their paths: `loras=["dit=style.safetensors:0.5"]`'
    other = lora(tmp_path, "other.safetensors", 1)
    for wrong in ((file,), (f"{other}:0.5",), (f"{file}:0.5", other)):
        with pytest.raises(UsageError, match="was made with other LoRAs, or other strengths, than are given") as caught:
            proof(out, source, *wrong)
        assert caught.value.hint == 'it holds `loras=["dit=style.safetensors:0.5"]`'
    with pytest.raises(UsageError, match="plain holds no merged LoRA, and `loras` is given"):
        proof(tmp_path / "plain", source, file)
    with pytest.raises(UsageError, match="`loras` is about the source, and there is none"):
        verify(out, VerifyOptions(loras=(str(file),)))


def test_without_a_manifest_the_loras_are_taken_at_their_word(source: Path, tmp_path: Path) -> None:
    file, out = lora(tmp_path), tmp_path / "out"
    convert(source, ConvertOptions("bf16", out=out, loras=(f"{file}:0.5",)))
    (out / "wanconv.json").unlink()
    assert proof(out, source, f"{file}:0.5").exit_code == 0
    failed = [one.where for one in proof(out, source, f"{file}:0.6").findings if one.severity == "failure"]
    assert set(failed) == {f"dit/{name}" for name in CHANGED}


def test_a_validation_against_the_source_says_that_loras_are_merged(source: Path, tiny: Tiny, tmp_path: Path) -> None:
    convert(source, ConvertOptions("bf16", out=tmp_path / "out", loras=(str(lora(tmp_path)),)))
    line = "note validation: what its merged LoRAs change counts as the candidate's error: style.safetensors"
    # another family's: not judged, and so not run
    assert line in said(validate(tmp_path / "out", ValidateOptions(against=tiny(TI2V), profile="quick")))
    assert line not in said(validate(source, ValidateOptions(against=tiny(TI2V), profile="quick")))


@pytest.mark.parametrize(("loras", "fault"), [
    ({}, "its loras are not a list of objects"),
    ([1], "its loras are not a list of objects"),
    ([{}], "its entry of a LoRA is invalid"),
    ([{"file": "a", "sha256": "0", "component": "dit", "strength": "1"}], "its entry of a LoRA is invalid"),
])  # fmt: skip
def test_a_manifest_with_odd_loras_is_refused(loras: object, fault: str, source: Path, tmp_path: Path) -> None:
    convert(source, ConvertOptions("keep", out=tmp_path / "out"))
    value = json.loads((tmp_path / "out" / "wanconv.json").read_bytes())
    (tmp_path / "out" / "wanconv.json").write_text(json.dumps(value | {"loras": loras}))
    with pytest.raises(InputError, match=re.escape(fault)):
        verify(tmp_path / "out", VerifyOptions())


def test_the_command_line_takes_several(source: Path, tmp_path: Path) -> None:
    lora(tmp_path)
    lora(tmp_path, "b:c.safetensors", 1)
    both = ["--lora", "style.safetensors:0.5", "--lora", "dit=b:c.safetensors:2"]
    done = call_all(
        [
            ["convert", str(source), "-r", "bf16", "-o", "out", "--json", *both],
            ["verify", "out", "--against", str(source), *both],
            ["verify", "out", "--against", str(source)],
            ["convert", str(source), "-r", "bf16", "-o", "other", "--lora", "style.safetensors:strong"],
            ["convert", str(source), "-r", "bf16", "-o", "other", "--lora", "style.safetensors", "-n"],
        ],
        tmp_path,
    )
    assert [one.exit_code for one in done] == [0, 0, 2, 2, 0], done
    rows = json.loads(done[0].output)["tables"]["loras"]
    assert {(row["lora"], row["strength"]) for row in rows} == {("style.safetensors", 0.5), ("b:c.safetensors", 2.0)}
    assert "error[usage]: --lora style.safetensors:strong: 'strong' is not a valid strength" in done[3].errors
    assert "style.safetensors" in done[4].output
