"""CogVideoX from its training checkpoints and to ComfyUI: what is written is what diffusers loads, and comes back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from training_checkpoint import WEIGHTS, training_checkpoint

from wanconv.commands.convert import convert
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Refused, Unrecognised
from wanconv.models import FAMILIES, identify
from wanconv.types.architecture import Family

Tiny = Callable[..., Path]
COGVIDEOX = [family for family in FAMILIES if family.name.startswith("cogvideox")]


@pytest.mark.parametrize("family", COGVIDEOX, ids=lambda family: family.name)
def test_a_training_checkpoint_becomes_what_diffusers_loads(family: Family, tmp_path: Path) -> None:
    source = training_checkpoint(tmp_path / "source", family)
    out = tmp_path / "out"
    convert(source, ConvertOptions("keep", layout="diffusers", out=out))
    model, info = CogVideoXTransformer3DModel.from_pretrained(out / "transformer", output_loading_info=True)
    assert not any(info.values())
    sat = torch.load(source / WEIGHTS, weights_only=True)["module"]
    fused = sat["model.diffusion_model.transformer.layers.2.attention.query_key_value.weight"]
    rows = sat["model.diffusion_model.mixins.adaln_layer.adaLN_modulations.1.1.bias"].chunk(12)
    assert torch.equal(model.transformer_blocks[2].attn1.to_k.weight, fused.chunk(3)[1])
    assert torch.equal(model.transformer_blocks[1].norm2.linear.bias, torch.cat(rows[3:6] + rows[9:12]))
    assert sorted(path.name for path in (out / "tokenizer").iterdir()) == ["tokenizer_config.json"]
    assert not (out / "transformer" / "latest").exists()


def test_the_sines_of_2b_may_be_in_its_file_and_are_left_out(tmp_path: Path) -> None:
    name = "model.diffusion_model.mixins.pos_embed.pos_embedding"
    for left_out in ((), (name,)):
        source = training_checkpoint(tmp_path / str(len(left_out)), COGVIDEOX[0], *left_out)
        out = tmp_path / f"out{len(left_out)}"
        report = convert(source, ConvertOptions("keep", layout="diffusers", out=out))
        told = [
            finding.message for finding in report.findings if finding.where == "dit" and "no home" in finding.message
        ]
        assert told == (
            [] if left_out else ["1 tensor has no home in the diffusers layout and is left out: dit/position_embedding"]
        )


def test_the_vae_of_a_training_checkpoint_is_told_and_all_else_is_converted_without_it(tmp_path: Path) -> None:
    source, out = training_checkpoint(tmp_path / "source", COGVIDEOX[1]), tmp_path / "out"
    (source / "vae").mkdir()
    names = ("encoder.down.0.block.0.conv1.conv.weight", "encoder.conv_in.conv.weight", "loss.logvar")
    torch.save({"state_dict": {name: torch.ones(1) for name in names}}, source / "vae" / "3d-vae.pt")
    with pytest.raises(Unrecognised) as raised:
        convert(source, ConvertOptions("keep", layout="diffusers", out=out))
    assert raised.value.message == (
        "vae/3d-vae.pt is the VAE of a CogVideoX training checkpoint, together with its training state: "
        "wanconv does not read these"
    )
    assert (
        raised.value.hint
        == '`exclude=["vae/3d-vae.pt"]`, and take the VAE of zai-org\'s diffusers folders: it is the same'
    )
    convert(source, ConvertOptions("keep", layout="diffusers", out=out, exclude=("vae/3d-vae.pt",)))
    assert (out / "transformer").is_dir()


def test_a_training_checkpoint_is_no_layout_to_write(tmp_path: Path) -> None:
    source = training_checkpoint(tmp_path / "source", COGVIDEOX[1])
    with pytest.raises(Refused) as raised:
        convert(source, ConvertOptions("keep", out=tmp_path / "out"))
    assert raised.value.message == (
        "cogvideox-5b has no official layout: its own code reads training checkpoints, "
        "which wanconv reads and does not write"
    )
    assert raised.value.hint == "choose another `layout`: diffusers, comfyui"


@pytest.mark.parametrize("family", COGVIDEOX, ids=lambda family: family.name)
def test_to_comfyui_and_back_changes_nothing(family: Family, tiny: Tiny, tmp_path: Path) -> None:
    source, there = tiny(family.releases[-1].name), tmp_path / "there"
    convert(source, ConvertOptions("keep", layout="comfyui", out=there))
    assert sorted(path.name for path in there.rglob("*.safetensors")) == sorted(
        [f"{family.name}.safetensors", "cogvideox_vae.safetensors", "t5xxl.safetensors"]
    )
    model, first = (identify(open_checkpoint(folder)) for folder in (there, source))
    assert {component.scheme for component in model.components.values()} == {"comfyui", "hub"}
    for name, tensor in model.tensors.items():
        (ours,), (theirs,) = tensor.pieces, first.tensors[name].pieces
        assert (ours.ref.dtype, ours.ref.read()) == (theirs.ref.dtype, theirs.ref.read())
