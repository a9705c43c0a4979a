"""VACE-Fun A14B: a pair of VACE denoisers is a family of its own, and converts as one job."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from header_lists import RELEASES, architecture, part, tiny_part

from wanconv.commands.convert import convert
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.models import expand, expert_unless_dense, identify
from wanconv.types.tensors import Checkpoint, Part

Tiny = Callable[..., Path]

NAME = "wan2.2-vace-fun-a14b"
VACE = architecture("wan-vace")
FILE = "diffusion_pytorch_model.safetensors"
HIGH, LOW = f"high_noise_model/{FILE}", f"low_noise_model/{FILE}"


def folder(*parts: Part) -> Checkpoint:
    return Checkpoint(Path("/models/wan"), parts)


def lone(root: Path = Path("/models/wan"), config: Mapping[str, object] | None = None) -> Checkpoint:
    """Returns a checkpoint of one tiny denoiser, with its config.json where it has one."""
    if config is not None:
        (root / "config.json").write_text(json.dumps(config))
    return Checkpoint(root, (tiny_part("a.safetensors", VACE),), () if config is None else ("config.json",))


def test_a_pair_of_vace_denoisers_is_a_family_of_its_own() -> None:
    names = ("wan2.2_fun_vace_high_noise_14B_bf16.safetensors", "wan2.2_fun_vace_low_noise_14B_bf16.safetensors")
    model = identify(folder(*(part(name, expand(VACE, "official", VACE.full)) for name in names)))
    assert (model.family.name, list(model.components)) == ("wan2.2-vace-fun-a14b", ["expert.high", "expert.low"])
    assert (model.family.boundary, model.release and model.release.repository) == (
        0.875,
        "alibaba-pai/Wan2.2-VACE-Fun-A14B",
    )


def test_a_lone_vace_denoiser_is_dense_unless_its_name_or_the_flag_says_otherwise() -> None:
    dense = identify(lone())
    assert (dense.family.name, expert_unless_dense(dense)) == ("wan2.1-vace", "wan2.2-vace-fun-a14b")
    told = identify(lone(), expert="low")
    assert (told.family.name, told.evidence) == ("wan2.2-vace-fun-a14b", {"expert.low": '`expert="low"`'})
    small = identify(folder(part("a.safetensors", expand(VACE, "official", RELEASES["wan2.1-vace-1.3b"].dims))))
    assert expert_unless_dense(small) is None


def test_vace_configs_call_their_model_type_t2v_as_well(tmp_path: Path) -> None:
    assert identify(lone(tmp_path, {"model_type": "t2v"}), expert="high").family.model_type == "vace"


def test_a_pair_of_vace_experts_converts_as_one_job_into_files_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for expert in ("high_noise_model", "low_noise_model"):
        shutil.copytree(tiny(NAME) / expert, source / expert)
    found = {}
    for layout in ("comfyui", "gguf", "diffusers-single", "official", "lightx2v", "diffusers"):
        out = tmp_path / layout
        convert(source, ConvertOptions("bf16", layout=layout, out=out))
        paths = (
            path.relative_to(out).as_posix() for path in out.rglob("*") if path.suffix in (".safetensors", ".gguf")
        )
        found[layout] = sorted(path for path in paths if "noise" in path or "transformer" in path)
        assert verify(out, VerifyOptions(against=source)).exit_code == 0
    single = [f"{NAME}_high_noise.safetensors", f"{NAME}_low_noise.safetensors"]
    assert found["comfyui"] == [f"diffusion_models/{name}" for name in single]
    assert found["gguf"] == [f"diffusion_models/{name.replace('safetensors', 'gguf')}" for name in single]
    assert found["diffusers-single"] == single
    assert found["official"] == found["lightx2v"] == [HIGH, LOW]
    assert found["diffusers"] == [f"transformer/{FILE}", f"transformer_2/{FILE}"]
    index = json.loads((tmp_path / "diffusers" / "model_index.json").read_bytes())
    assert (index["_class_name"], index["boundary_ratio"]) == ("WanVACEPipeline", 0.875)
    assert index["transformer"] == index["transformer_2"] == ["diffusers", "WanVACETransformer3DModel"]
    assert json.loads((tmp_path / "lightx2v" / "lightx2v.json").read_bytes())["boundary"] == 0.875
    assert list(identify(open_checkpoint(tmp_path / "diffusers")).components)[:2] == ["expert.high", "expert.low"]


def test_a_lone_vace_expert_keeps_its_name(tiny: Tiny, tmp_path: Path) -> None:
    lone = tmp_path / "wan2.2_fun_vace_low_noise_14B_bf16.safetensors"
    shutil.copy(tiny(NAME) / LOW, lone)
    convert(lone, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "out"))
    assert (tmp_path / "out" / "diffusion_models" / f"{NAME}_low_noise.safetensors").exists()
