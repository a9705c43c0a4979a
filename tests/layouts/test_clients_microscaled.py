"""What ComfyUI makes of MXFP8 and NVFP4, by comfy-kitchen's own decoding; and what becomes of such files as sources."""

import json
from collections.abc import Callable
from pathlib import Path

import comfyui
import pytest
import tiny as tools
import torch
from comfy_kitchen.tensor import QuantizedTensor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from wanconv.commands.convert import convert
from wanconv.commands.inspect import inspect
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.errors import InputError, Refused, Unrecognised
from wanconv.layouts import LAYOUTS
from wanconv.models import identify
from wanconv.planning import contents
from wanconv.report import Cell, Report
from wanconv.types.dtypes import DTYPES
from wanconv.weights.model import ModelWeights

Tiny = Callable[..., Path]
A14B, T2V = "wan2.2-t2v-a14b", "wan2.1-t2v-1.3b"
HIGH = f"diffusion_models/{A14B}_high_noise.safetensors"
FILE = "diffusion_models/wan2.1-t2v.safetensors"
FORMATS = ("mxfp8", "nvfp4")
CLASSES = {"mxfp8": "TensorCoreMXFP8Layout", "nvfp4": "TensorCoreNVFP4Layout"}
UP = "dit/blocks.1.ffn.up.weight"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", params=FORMATS)
def storage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def out(storage: str, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a conversion of both experts, which no test changes."""
    folder = tmp_path_factory.mktemp(storage) / "out"
    convert(tiny(A14B), ConvertOptions(storage, layout="comfyui", out=folder))
    return folder


@pytest.fixture
def spoilt(storage: str, tiny: Tiny, tmp_path: Path) -> Path:
    """Returns a conversion of one denoiser, for a test to change."""
    convert(tiny(T2V), ConvertOptions(storage, layout="comfyui", out=tmp_path / "spoilt"))
    return tmp_path / "spoilt"


def decoded(folder: Path, component: str) -> dict[str, Tensor]:
    """Returns what wanconv reads of a component's weights with scales, by the names of its file."""
    model = identify(open_checkpoint(folder))
    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        return {
            tensor.pieces[0].ref.name: weights.tensors(component, path)[path]
            for name, tensor in model.components[component].tensors.items()
            if tensor.packing
            for path in [name.partition("/")[2]]
        }


def failures(report: Report) -> dict[str, str]:
    return {finding.where: finding.message for finding in report.findings if finding.severity == "failure"}


def turn(folder: Path, scales: str) -> float:
    """Gives scales of a tensor the other sign, the one of the tensor or those of its blocks; returns the first."""
    tensor = identify(open_checkpoint(folder)).tensors[UP]
    assert tensor.whole is not None
    assert tensor.scales is not None
    ref, dtype = (tensor.whole, torch.float32) if scales == "tensor" else (tensor.scales, torch.float8_e4m3fn)
    values = torch.frombuffer(bytearray(ref.read()), dtype=dtype).float()
    with ref.file.open("r+b") as stream:
        stream.seek(ref.offset)
        stream.write(bytes((-values).to(dtype).view(torch.uint8).tolist()))
    return -values[0].item()


# written


def test_comfy_kitchen_decodes_every_weight_as_we_do(storage: str, out: Path) -> None:
    for component, role in (("expert.high", "high_noise"), ("expert.low", "low_noise")):
        tensors = comfyui.contents(out / HIGH.replace("high_noise", role))
        ours = decoded(out, component)
        theirs = {name: (values, says) for name, values, says in comfyui.read(tensors)}
        assert theirs.keys() == ours.keys()
        assert len(ours) == 10 * 3
        for name, (values, says) in theirs.items():
            assert says == {"format": storage}
            assert torch.equal(values, ours[name]), name


def test_its_numbers_are_those_that_comfy_kitchen_makes_of_the_source(storage: str, out: Path, tiny: Tiny) -> None:
    tensors = comfyui.contents(out / HIGH)
    model = identify(open_checkpoint(tiny(A14B)))
    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        for name, tensor in model.components["expert.high"].tensors.items():
            if tensor.role.kind != "linear" or tensor.block is None:
                continue
            path = name.partition("/")[2]
            quantized = QuantizedTensor.from_float(weights.tensors("expert.high", path)[path], CLASSES[storage])
            on_disk = tensor.pieces[0].ref.name
            for leaf, values in quantized.state_dict(on_disk).items():
                ours = tensors[leaf]
                assert ours.shape == values.shape
                assert torch.equal(ours.reshape(-1).view(torch.uint8), values.reshape(-1).view(torch.uint8)), leaf


def test_a_file_holds_payload_and_scales_as_the_loader_views_them(storage: str, out: Path, tiny: Tiny) -> None:
    rows, columns = identify(open_checkpoint(tiny(A14B))).tensors["expert.high/blocks.0.ffn.up.weight"].shape
    tensors, name = comfyui.contents(out / HIGH), "blocks.0.ffn.0.weight"
    payload, scales = tensors[name], tensors[f"{name}_scale"]
    assert scales.shape == (-(-rows // 128) * 128, -(-columns // DTYPES[storage].block // 4) * 4)
    if storage == "mxfp8":
        assert (payload.dtype, payload.shape, scales.dtype) == (torch.float8_e4m3fn, (rows, columns), torch.uint8)
    else:
        assert (payload.dtype, payload.shape, scales.dtype) == (torch.uint8, (rows, columns // 2), torch.float8_e4m3fn)
        assert (tensors[f"{name}_scale_2"].dtype, tensors[f"{name}_scale_2"].shape) == (torch.float32, ())
    assert json.loads(bytes(tensors["blocks.0.ffn.0.comfy_quant"].tolist())) == {"format": storage}


def test_the_plan_counts_every_byte_and_says_what_a_card_adds(storage: str, tiny: Tiny) -> None:
    plan = prepare(tiny(A14B), ConvertOptions(storage, layout="comfyui"))
    held = sum(slot.nbytes for slots in contents(plan.model, plan.recipe, plan.layout).slots.values() for slot in slots)
    assert sum(step.nbytes for step in plan.steps) == held
    (said,) = [each for each in plan.findings if "Blackwell" in each.message]
    assert (said.severity, said.where) == ("note", storage)
    assert said.message == (
        f"on cards that multiply in {storage} (Blackwell), ComfyUI rounds what a layer is given as well, which "
        "validate does not imitate; on others it decodes the weights"
    )


@pytest.mark.exhaustive
def test_threads_and_block_sizes_do_not_change_a_byte(storage: str, out: Path, tiny: Tiny, tmp_path: Path) -> None:
    for number, (jobs, block_nbytes) in enumerate([(1, 4096), (3, 12288)]):
        again = tmp_path / str(number)
        convert(tiny(A14B), ConvertOptions(storage, layout="comfyui", out=again, jobs=jobs, block_nbytes=block_nbytes))
        assert tools.digests(again) == tools.digests(out)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "comfyui"])
def test_every_other_client_refuses_it_in_one_sentence(storage: str, layout: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Refused) as raised:
        convert(tiny(A14B), ConvertOptions(storage, layout=layout, out=tmp_path / "out"))
    assert raised.value.exit_code == 2
    what = f"does not read {storage} with a scale of each block: {LAYOUTS[layout].unscaled}"
    if layout == "gguf":
        what = "reads scales in the weights of text_encoder alone"
    assert raised.value.message == f"the {layout} layout does not take this recipe: {layout} {what}"
    assert not (tmp_path / "out").exists()


def test_every_number_is_proven_within_the_bound(storage: str, out: Path, tiny: Tiny) -> None:
    report = verify(out, VerifyOptions(against=tiny(A14B), client="comfyui"))
    assert report.exit_code == 0
    (row,) = [row for row in report.tables[0].rows if row[1] == f"{storage} block"]
    assert isinstance(row[4], Cell)
    assert 0.99 < float(str(row[4].value)) <= 1.0


# read back


def test_inspect_knows_it_and_who_reads_it(storage: str, out: Path) -> None:
    report = inspect(out)
    assert (report.figures["family"], report.figures["layout"]) == (A14B, "comfyui")
    assert f"{storage} block 60" in report.text("dtypes")
    (clients,) = [table for table in report.tables if table.title == "clients"]
    reads = {str(row[0]): row for row in clients.rows}
    assert LAYOUTS["comfyui"].packing(storage, "block").since in reads["comfyui"]  # type: ignore[union-attr]  # it is there


def test_for_the_same_client_it_is_carried_over_unchanged(storage: str, out: Path, tmp_path: Path) -> None:
    for recipe in ("keep", storage):
        report = convert(out, ConvertOptions(recipe, layout="comfyui", out=tmp_path / recipe))
        assert any(each.message.startswith(f"was {storage} block and stays so") for each in report.findings)
        assert (tmp_path / recipe / HIGH).read_bytes() == (out / HIGH).read_bytes()
        assert failures(verify(tmp_path / recipe, VerifyOptions(against=out))) == {}


@pytest.mark.parametrize("exact", [["blocks.1.ffn.0"], None], ids=["one", "all"])
def test_what_its_maker_had_multiplied_in_full_precision_still_is(
    storage: str, exact: list[str] | None, spoilt: Path, tmp_path: Path
) -> None:
    before = comfyui.contents(spoilt / FILE)
    asking = exact or [name.removesuffix(".comfy_quant") for name in before if name.endswith(".comfy_quant")]
    says = {"format": storage, "full_precision_matrix_mult": True}
    told = torch.tensor(list(json.dumps(says).encode()), dtype=torch.uint8)
    source = tmp_path / "model.safetensors"
    save_file({**before, **{f"{layer}.comfy_quant": told.clone() for layer in asking}}, source)
    report = convert(source, ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))
    after = comfyui.contents(tmp_path / "out" / FILE)
    found = {name.removesuffix(".weight"): says for name, _, says in comfyui.read(after)}
    assert found == {layer: says if layer in asking else {"format": storage} for layer in found}
    with safe_open(tmp_path / "out" / FILE, "pt") as opened:
        assert json.loads(opened.metadata()["_quantization_metadata"])["layers"] == found
    assert all(torch.equal(after[name], before[name]) for name in before if not name.endswith(".comfy_quant"))
    assert any("Blackwell" in each.message for each in report.findings) == (exact is not None)
    assert failures(verify(tmp_path / "out", VerifyOptions(against=source, client="comfyui"))) == {}


def test_a_calibrated_input_scale_is_left_out_and_told(storage: str, spoilt: Path, tmp_path: Path) -> None:
    tensors = comfyui.contents(spoilt / FILE)
    source = tmp_path / "model.safetensors"
    save_file({**tensors, "blocks.1.ffn.0.input_scale": torch.tensor(0.5)}, source)
    report = convert(source, ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))
    said = {each.where: each.message for each in report.findings if "input scale" in each.message}
    assert said == {
        UP: "its calibrated input scale is left out: its client finds the scales of a layer's inputs itself"
    }


@pytest.mark.parametrize(
    ("recipe", "layout"), [("int8-row", "lightx2v"), ("fp8-scaled", "comfyui"), ("bf16", "diffusers")]
)
def test_another_format_gets_its_numbers_and_the_plan_warns(
    recipe: str, layout: str, storage: str, out: Path, tmp_path: Path
) -> None:
    report = convert(out, ConvertOptions(recipe, layout=layout, out=tmp_path / "out"))
    told = [each.message for each in report.findings if each.message.startswith(f"was {storage} block: that precision")]
    assert len(told) == 1
    assert told[0].endswith(", up to half a step")
    assert failures(verify(tmp_path / "out", VerifyOptions(against=out, client=layout))) == {}


def test_fp32_gets_the_same_numbers_exactly(storage: str, out: Path, tmp_path: Path) -> None:
    convert(out, ConvertOptions("fp32", layout="comfyui", out=tmp_path / "out"))
    plain, ours = comfyui.contents(tmp_path / "out" / HIGH), decoded(out, "expert.high")
    assert all(torch.equal(plain[name], values) for name, values in ours.items())


def test_one_becomes_the_other_and_is_proven(storage: str, out: Path, tmp_path: Path) -> None:
    (other,) = set(FORMATS) - {storage}
    convert(out, ConvertOptions(other, layout="comfyui", out=tmp_path / "out"))
    assert failures(verify(tmp_path / "out", VerifyOptions(against=out, client="comfyui"))) == {}


# broken


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_one_wrong_scale_fails_the_proof_and_the_digest(storage: str, factor: float, spoilt: Path, tiny: Tiny) -> None:
    tensor = identify(open_checkpoint(spoilt)).tensors[UP]
    assert tensor.scales is not None
    with tensor.scales.file.open("r+b") as stream:
        stream.seek(tensor.scales.offset)
        code = stream.read(1)[0]
        step = 1 if storage == "mxfp8" else 8  # of a power of two
        stream.seek(tensor.scales.offset)
        stream.write(bytes([code + (step if factor > 1 else -step)]))
    found = failures(verify(spoilt, VerifyOptions(against=tiny(T2V))))
    assert "more than" in found[UP]
    assert f"the scales of {UP}" in found


@pytest.mark.parametrize("storage", ["nvfp4"], indirect=True)
@pytest.mark.parametrize(
    ("scale", "code", "message"),
    [
        (float("nan"), 5, "has a scale of nan, and a scale is a positive number"),
        (0.0, 1, "has a scale of 0, and a scale is a positive number"),
        (1e-3, 1, "more than"),
    ],
)
def test_a_wrong_scale_of_the_tensor_fails_the_proof_and_the_digest(
    scale: float, code: int, message: str, spoilt: Path, tiny: Tiny
) -> None:
    tensor = identify(open_checkpoint(spoilt)).tensors[UP]
    assert tensor.whole is not None
    tools.poke(tensor.whole.file, tensor.whole.name, 0, scale)
    found = failures(verify(spoilt, VerifyOptions(against=tiny(T2V))))
    assert message in found[UP]
    assert f"the scale of scales of {UP}" in found
    (spoilt / "wanconv.json").unlink()
    assert verify(spoilt, VerifyOptions(against=tiny(T2V))).exit_code == code


def test_scales_that_are_missing_or_of_another_kind_are_told_with_the_reason(
    storage: str, spoilt: Path, tmp_path: Path
) -> None:
    whole, name = comfyui.contents(spoilt / FILE), "blocks.1.ffn.0"
    scale = whole[f"{name}.weight_scale"]
    cases = [
        (f"{name}.weight_scale", None, f"unknown: {name}.comfy_quant (its scale is missing)"),
        (f"{name}.weight_scale", scale[:, :2].contiguous(), f"unknown: {name}.weight_scale ("),
        (f"{name}.weight_scale", scale.float(), f"unknown: {name}.weight_scale (fp32 "),
        (f"{name}.weight", None, f"unknown: {name}.weight_scale (its weight is missing)"),
    ]
    if storage == "nvfp4":
        cases.append((f"{name}.weight_scale_2", None, f"unknown: {name}.weight_scale ("))
    for spoilt_name, value, line in cases:
        tensors = {key: one for key, one in whole.items() if key != spoilt_name}
        if value is not None:
            tensors[spoilt_name] = value
        save_file(tensors, tmp_path / "case.safetensors")
        with pytest.raises(Unrecognised) as raised:
            identify(open_checkpoint(tmp_path / "case.safetensors"))
        assert [detail for detail in raised.value.details if detail.startswith(line)], raised.value.details


def test_a_scale_that_is_nan_ends_a_conversion(storage: str, spoilt: Path, tmp_path: Path) -> None:
    tensor = identify(open_checkpoint(spoilt)).tensors[UP]
    assert tensor.scales is not None
    with tensor.scales.file.open("r+b") as stream:
        stream.seek(tensor.scales.offset)
        stream.write(b"\xff")
    for recipe in ("keep", "bf16"):
        with pytest.raises(Exception, match=r"ffn\.up\.weight") as raised:
            convert(spoilt, ConvertOptions(recipe, layout="comfyui", out=tmp_path / recipe))
        assert getattr(raised.value, "exit_code", None) == 5


@pytest.mark.parametrize("storage", ["nvfp4"], indirect=True)
@pytest.mark.parametrize("turned", ["tensor", "blocks"])
@pytest.mark.parametrize("recipe", ["keep", "bf16"])
def test_scales_below_zero_are_refused_whether_carried_or_decoded_and_leave_nothing(
    storage: str, turned: str, recipe: str, spoilt: Path, tmp_path: Path
) -> None:
    """Every number would have the other sign."""
    scale = turn(spoilt, turned)
    said = f"^{UP} has a scale of {scale:.9g}, and a scale is a positive number$"
    with pytest.raises(InputError, match=said) as raised:
        convert(spoilt, ConvertOptions(recipe, layout="comfyui", out=tmp_path / "out"))
    assert raised.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


@pytest.mark.parametrize("storage", ["nvfp4"], indirect=True)
@pytest.mark.parametrize("turned", ["tensor", "blocks"])
def test_scales_below_zero_fail_the_proof_on_either_side(
    storage: str, turned: str, spoilt: Path, tiny: Tiny, tmp_path: Path
) -> None:
    whole = tools.copy(spoilt, tmp_path / "whole")
    scale = turn(spoilt, turned)
    for stored, source, where in ((spoilt, tiny(T2V), ""), (spoilt, whole, ""), (whole, spoilt, " in the source")):
        said = failures(verify(stored, VerifyOptions(against=source)))[UP]
        assert said == f"has a scale of {scale:.9g}{where}, and a scale is a positive number"
