"""What readers of GGUF make of ours: gguf itself, diffusers; and what becomes of GGUF files as sources."""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny as tools
import torch
from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from torch import Tensor

from wanconv.commands.convert import convert
from wanconv.commands.inspect import inspect
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.errors import NotFinite, Refused
from wanconv.layouts import LAYOUTS, source_layout
from wanconv.models import DENOISERS, identify
from wanconv.recipe import load
from wanconv.report import Report
from wanconv.samples import synthetic
from wanconv.weights.model import ModelWeights

Tiny = Callable[..., Path]
A14B, S2V = "wan2.2-t2v-a14b", "wan2.2-s2v-14b"
HIGH = f"diffusion_models/{A14B}_high_noise.gguf"
TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
MINE = """
schema = 1
summary = "a test"
[[rule]]
match = "{dit,expert.*}/**"
%s
[[rule]]
match = "**"
format = "keep"
"""


@pytest.fixture(scope="module")
def out(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "out"
    convert(tiny(A14B), ConvertOptions("gguf-q8_0", layout="gguf", out=folder))
    return folder


def decoded(folder: Path, component: str) -> Mapping[str, Tensor]:
    """Returns what wanconv reads of a component, by its names on disk."""
    model = identify(open_checkpoint(folder))
    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        return {
            tensor.pieces[0].ref.name: weights.tensors(component, path.partition("/")[2])[path.partition("/")[2]]
            for path, tensor in model.components[component].tensors.items()
        }


def said(report: Report, severity: str) -> dict[str, str]:
    return {each.where: each.message for each in report.findings if each.severity == severity}


# what others read


def test_gguf_reads_names_shapes_types_and_metadata_and_decodes_as_we_do(out: Path, tiny: Tiny) -> None:
    reader = gguf.GGUFReader(out / HIGH)
    values, source = decoded(out, "expert.high"), decoded(tiny(A14B), "expert.high")
    assert {key: reader.fields[key].contents() for key in reader.fields if key.startswith("general.")} == {
        "general.architecture": "wan",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    assert {tensor.name for tensor in reader.tensors} == values.keys() == source.keys()
    kinds: dict[str, set[str]] = {}
    for tensor in reader.tensors:
        assert tuple(reversed(tensor.shape.tolist())) == tuple(source[tensor.name].shape)
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(theirs.reshape(-1), values[tensor.name].float().numpy().reshape(-1))
        kinds.setdefault(tensor.tensor_type.name, set()).add(tensor.name)
        if tensor.tensor_type.name == "Q8_0":
            wanted = gguf.quantize(source[tensor.name].numpy(), tensor.tensor_type)
            assert np.array_equal(tensor.data, wanted)
    assert {name for name in source if name.startswith("blocks.") and source[name].dim() == 2} - kinds["Q8_0"] == set()
    assert all(source[name].dim() == 2 and not name.startswith("blocks.") for name in kinds["F16"])
    assert {"patch_embedding.weight", "blocks.0.modulation", "head.modulation", "blocks.0.ffn.0.bias"} < kinds["F32"]


def test_everything_but_the_denoisers_is_where_comfyui_looks_for_it(out: Path, tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(A14B), ConvertOptions("keep", layout="comfyui", out=tmp_path / "comfyui"))
    ours, theirs = tools.digests(out), tools.digests(tmp_path / "comfyui")
    assert {path for path in ours if path.endswith(".gguf")} == {HIGH, HIGH.replace("high", "low")}
    weights = [path for path in theirs if path.endswith(".safetensors") and not path.startswith("diffusion_models")]
    assert weights
    assert all(ours[path] == theirs[path] for path in weights)


@pytest.mark.parametrize("recipe", ["gguf-q8_0", "bf16"])
def test_diffusers_loads_it_and_decodes_every_weight_as_we_do(recipe: str, tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(A14B), ConvertOptions(recipe, layout="gguf", out=tmp_path / "out"))
    convert(tiny(A14B), ConvertOptions("keep", layout="diffusers", out=tmp_path / "hub"))
    model = WanTransformer3DModel.from_single_file(
        tmp_path / "out" / HIGH,
        config=str(tmp_path / "hub" / "transformer"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    convert(
        tmp_path / "out", ConvertOptions(mine(tmp_path, 'format = "fp32"'), layout="diffusers", out=tmp_path / "ours")
    )
    ours = decoded(tmp_path / "ours", "expert.high")
    loaded = dict(model.named_parameters())
    assert loaded.keys() == ours.keys()
    quantized = 0
    for name, parameter in loaded.items():
        values: Tensor = parameter
        if getattr(parameter, "quant_type", None) is not None:
            values, quantized = dequantize_gguf_tensor(parameter), quantized + 1  # Q8_0 in fp16, rounded once
        values = values.detach().as_subclass(Tensor)
        assert torch.equal(values, ours[name].to(values.dtype)), name
    assert quantized >= 30
    x, text = torch.randn(1, 16, 1, 8, 8), torch.randn(1, 12, 64)
    assert model(x, torch.tensor([500]), text).sample.isfinite().all()


def mine(folder: Path, rule: str) -> str:
    """Writes a recipe of one rule for denoisers; returns its path."""
    (folder / "mine.toml").write_text(MINE % rule)
    return str(folder / "mine.toml")


# the layout


@pytest.mark.parametrize("release", ["wan2.1-t2v-1.3b", "wan2.1-flf2v-14b", "wan2.2-ti2v-5b", S2V])
def test_every_denoiser_is_written_and_proven(release: str, tiny: Tiny, tmp_path: Path) -> None:
    convert(tiny(release), ConvertOptions("gguf-q8_0", layout="gguf", out=tmp_path / "out", exclude=("models_clip*",)))
    report = verify(tmp_path / "out", VerifyOptions(against=tiny(release), client="gguf"))
    assert (report.exit_code, said(report, "failure")) == (0, {})
    (file,) = (tmp_path / "out" / "diffusion_models").iterdir()
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            assert len(tensor.shape) == 2


def test_what_is_no_matrix_is_fp32_or_fp16_whatever_the_recipe_says_and_the_plan_tells(
    tiny: Tiny, tmp_path: Path
) -> None:
    source = synthetic.make(tmp_path / "bf16", synthetic.SampleOptions(A14B, dtype="bf16", components=("expert.low",)))
    for recipe in ("bf16", "keep"):
        made = prepare(source, ConvertOptions(recipe, layout="gguf", expert="low"))
        assert {step.dtype for step in made.steps if step.tensor.role.kind == "linear"} == {"bf16"}
        assert {step.dtype for step in made.steps if step.tensor.role.kind != "linear"} == {"fp32"}
        assert any(
            each.message == "stored as fp32: ComfyUI-GGUF decodes other types in linear layers only"
            for each in made.findings
        )


@pytest.mark.parametrize(
    ("recipe", "layout", "message"),
    [
        ("fp8-plain", "gguf", "GGUF files hold fp32, fp16, bf16, q8_0 alone"),
        ("fp8-scaled", "gguf", "gguf reads scales in the weights of text_encoder alone"),
        ("int8-row", "gguf", "gguf reads scales in the weights of text_encoder alone"),
        ("gguf-q8_0", "official", "only GGUF files hold q8_0"),
        ("gguf-q8_0", "comfyui", "only GGUF files hold q8_0"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(recipe: str, layout: str, message: str, tiny: Tiny) -> None:
    with pytest.raises(Refused) as raised:
        prepare(tiny(A14B), ConvertOptions(recipe, layout=layout))
    assert message in raised.value.message


def test_rows_that_are_no_whole_blocks_take_the_fallback_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, release = synthetic.releases()["wan2.1-t2v-1.3b"]
    monkeypatch.setitem(family.components["dit"].tiny, "text", 48)
    source = synthetic.make(tmp_path / "src", synthetic.SampleOptions(release.name, components=("dit",)))
    rest = '\n[[rule]]\nmatch = "{dit,expert.*}/**"\nformat = "fp32"'
    made = prepare(
        source,
        ConvertOptions(mine(tmp_path, 'kind = "linear"\nformat = "q8_0"\nfallback = "fp16"' + rest), layout="gguf"),
    )
    (fallen,) = (step for step in made.steps if step.dtype == "fp16")
    assert (fallen.tensor.name, fallen.tensor.shape) == ("dit/text_embedding.in.weight", (128, 48))
    assert "in rows of whole blocks of 32" in fallen.reason
    with pytest.raises(Refused) as raised:
        prepare(source, ConvertOptions(mine(tmp_path, 'kind = "linear"\nformat = "q8_0"' + rest), layout="gguf"))
    (detail,) = raised.value.details
    assert detail.startswith(f"{fallen.tensor.name} as q8_0: only the 2-D weight of a linear layer takes it")


def test_a_number_beyond_the_largest_scale_takes_the_fallback(tiny: Tiny, tmp_path: Path) -> None:
    source = tools.copy(tiny("wan2.1-t2v-1.3b"), tmp_path / "src")
    tools.poke(source / "diffusion_pytorch_model.safetensors", "blocks.1.ffn.0.weight", -1, 1e7)
    text = load("gguf-q8_0").text
    (tmp_path / "mine.toml").write_text(text.replace('fallback = "fp16"', 'fallback = "fp32"', 1))
    convert(source, ConvertOptions(str(tmp_path / "mine.toml"), layout="gguf", out=tmp_path / "out"))
    report = verify(tmp_path / "out", VerifyOptions(against=source, client="gguf"))
    assert said(report, "failure") == {}
    (row,) = (row for row in report.tables[0].rows if row[:2] == ("fp32", "q8_0"))
    assert row[2] == 29


def test_threads_and_block_sizes_do_not_change_a_byte(out: Path, tiny: Tiny, tmp_path: Path) -> None:
    for number, (jobs, block_nbytes) in enumerate([(1, 4096), (3, 12288)]):
        again = tmp_path / str(number)
        convert(tiny(A14B), ConvertOptions("gguf-q8_0", layout="gguf", out=again, jobs=jobs, block_nbytes=block_nbytes))
        assert tools.digests(again) == tools.digests(out)


# sources


def test_inspect_knows_it(out: Path) -> None:
    report = inspect(out)
    assert (report.figures["family"], report.figures["layout"]) == (A14B, "gguf")
    assert report.text("dtypes") == "fp32 314, q8_0 60, bf16 22, fp16 12"
    alone = inspect(out / HIGH)
    assert (alone.figures["layout"], alone.figures["tensors"]) == ("gguf", 96)


def test_for_the_same_client_it_is_carried_over_unchanged(out: Path, tmp_path: Path) -> None:
    report = convert(out, ConvertOptions("keep", layout="gguf", out=tmp_path / "keep"))
    assert any(each.message.startswith("was q8_0 and stays so") for each in report.findings)
    again = convert(out, ConvertOptions("gguf-q8_0", layout="gguf", out=tmp_path / "again"))
    assert said(again, "warning").keys() == {"text_encoder"}  # without a tokenizer, as its source
    for folder in ("keep", "again"):
        for file in (HIGH, HIGH.replace("high", "low")):
            assert (tmp_path / folder / file).read_bytes() == (out / file).read_bytes()
        assert said(verify(tmp_path / folder, VerifyOptions(against=out)), "failure") == {}


@pytest.mark.parametrize(
    ("recipe", "layout"), [("int8-row", "comfyui"), ("fp8-scaled", "lightx2v"), ("bf16", "diffusers")]
)
def test_another_client_gets_its_numbers_and_the_plan_warns(
    recipe: str, layout: str, out: Path, tmp_path: Path
) -> None:
    report = convert(out, ConvertOptions(recipe, layout=layout, out=tmp_path / "out"))
    (warning,) = (each for each in report.findings if each.message.startswith("was q8_0: that precision is lost"))
    assert warning.message.endswith(", up to half a step")
    checked = verify(tmp_path / "out", VerifyOptions(against=out, client=layout))
    assert said(checked, "failure") == {}


def test_kept_for_a_client_without_gguf_it_is_refused(out: Path) -> None:
    with pytest.raises(Refused, match="only GGUF files hold q8_0"):
        prepare(out, ConvertOptions("keep", layout="official"))


def test_files_that_gguf_wrote_are_sources_in_any_mixture(tiny: Tiny, tmp_path: Path) -> None:
    weights = decoded(tiny("wan2.1-t2v-1.3b"), "dit")
    path = tmp_path / "wan2.1-t2v-1.3b-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    written = {}
    for number, (name, weight) in enumerate(weights.items()):
        kind = ("F32", "F16", "BF16", "Q8_0")[number % 4 if weight.dim() == 2 else 0]
        written[name] = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
        writer.add_tensor(name, written[name], raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = decoded(path, "dit")
    reader = gguf.GGUFReader(path)
    assert len({tensor.tensor_type for tensor in reader.tensors}) == 4
    for tensor in reader.tensors:
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        assert np.array_equal(theirs, ours[tensor.name].float().numpy().reshape(-1))
    convert(path, ConvertOptions("fp32", layout="official", out=tmp_path / "out"))
    assert said(verify(tmp_path / "out", VerifyOptions(against=path)), "failure") == {}
    back = decoded(tmp_path / "out", "dit")
    assert all(torch.equal(back[name], ours[name].float()) for name in ours)


# verify


def test_a_flipped_bit_is_found_by_digest_and_by_bound(out: Path, tiny: Tiny, tmp_path: Path) -> None:
    bad = tools.copy(out, tmp_path / "bad")
    name = "blocks.2.ffn.2.weight"
    ref = open_checkpoint(bad / HIGH).parts[0].tensors[name]
    with (bad / HIGH).open("r+b") as stream:
        stream.seek(ref.offset + 34 * 5 + 2 + 7)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 2]))
    report = verify(bad, VerifyOptions(against=tiny(A14B)))
    failures = [each for each in report.findings if each.severity == "failure"]
    canonical = "expert.high/blocks.2.ffn.down.weight"
    assert [each.where for each in failures] == [HIGH, canonical, canonical]
    assert failures[1].message == f"its bytes in {HIGH} have changed"
    assert failures[2].message.startswith("element [0, 167] is ")
    same = verify(bad, VerifyOptions(against=out))
    assert said(same, "failure")[canonical].endswith("in the source: not the same")


def test_a_scale_that_is_not_finite_is_refused_where_it_would_be_carried(out: Path, tmp_path: Path) -> None:
    bad = tools.copy(out, tmp_path / "bad")
    ref = open_checkpoint(bad / HIGH).parts[0].tensors["blocks.0.self_attn.q.weight"]
    with (bad / HIGH).open("r+b") as stream:
        stream.seek(ref.offset + 34)
        stream.write(b"\x00\x7e")
    for recipe, layout in (("keep", "gguf"), ("bf16", "official")):
        with pytest.raises(NotFinite, match=r"expert\.high/blocks\.0\.self_attn\.q\.weight\[32\] is nan"):
            convert(bad, ConvertOptions(recipe, layout=layout, out=tmp_path / layout))


def test_another_client_does_not_find_what_it_reads(out: Path) -> None:
    for layout in LAYOUTS.values():
        failures = said(verify(out, VerifyOptions(client=layout.name)), "failure")
        assert bool(failures) == (layout.name != "gguf")


def test_a_lone_file_of_the_wrong_kind_is_found(out: Path, tiny: Tiny) -> None:
    official = tiny(A14B) / "high_noise_model" / "diffusion_pytorch_model.safetensors"
    found = [each.message for each in verify(official, VerifyOptions(client="gguf")).findings]
    assert "gguf looks for gguf in diffusion_models" in found
    assert said(verify(out / HIGH, VerifyOptions(client="gguf")), "failure") == {}


def test_the_source_of_a_gguf_file_is_known(out: Path) -> None:
    model = identify(open_checkpoint(out))
    assert source_layout(model).name == "gguf"
    assert {model.components[name].part.container for name in model.components if name in DENOISERS} == {"gguf"}
