"""Tensors that released files hold and no client reads: known by name and shape, told, and in no output."""

from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from header_lists import LISTS, architecture, list_id, name_of, read_list, refs, released, scheme_of
from safetensors.torch import load_file, save_file
from tiny import copy, digests, make

from wanconv.commands.convert import convert
from wanconv.commands.inspect import YES, inspect
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Unrecognised
from wanconv.models import ARCHITECTURES, expand, fill, identify
from wanconv.models.match import fits
from wanconv.types.architecture import Architecture
from wanconv.types.tensors import Shape

I2V = "wan2.1-i2v-14b"
WAN = [path for path in LISTS if scheme_of(path) == "hub" and name_of(path).startswith(("wan2.1-", "wan2.2-"))]


def dead(network: Architecture) -> dict[str, Shape]:
    """Returns every dead tensor of a tiny network, in the hub's names."""
    sizes = network.tiny
    symbols = {key: sizes[key] for key in sizes}
    found: dict[str, Shape] = {}
    for one in network.dead:
        shape = tuple(size if isinstance(size, int) else symbols[size] for size in one.shape)
        numbers = range(sizes["m" if "{m}" in one.name else "n"]) if "{" in one.name else (None,)
        found |= {fill(one.name, number): shape for number in numbers}
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns a diffusers folder of a denoiser alone, and the same with the norms that nobody reads."""
    plain = make(tmp_path_factory.mktemp("dead") / "plain", I2V, "dit", layout="diffusers")
    folder = copy(plain, plain.parent / "released")
    (file,) = (folder / "transformer").glob("*.safetensors")
    more = {name: torch.ones(shape) for name, shape in dead(architecture("wan-i2v-clip")).items()}
    save_file(load_file(file) | more, file, {"format": "pt"})
    return plain, folder


@pytest.mark.parametrize("path", WAN, ids=list_id)
def test_the_norms_that_diffusers_ignores_are_accepted_in_all_blocks_or_in_some(path: Path) -> None:
    network, dims = released(name_of(path))
    shapes = read_list(path)
    norms = {f"blocks.{n}.attn2.norm_added_q.weight": (dims["d"],) for n in range(dims["n"])}
    for added in (norms, dict(list(norms.items())[3:5])):
        (fit,) = fits(refs(shapes | added))
        assert (fit.architecture, fit.differences, len(fit.extra)) == (network, 0, 0)
        assert sorted(ref.name for ref, _ in fit.dead) == sorted(added)


@pytest.mark.parametrize("name", ["umt5", "t5-v1.1", "clip-vit-h"])
def test_what_transformers_ignores_is_accepted(name: str) -> None:
    network = architecture(name)
    shapes = expand(network, "hub", network.tiny)
    (fit,) = fits(refs(shapes | dead(network)))
    assert (fit.architecture, fit.differences) == (network, 0)
    assert {ref.name for ref, _ in fit.dead} == dead(network).keys()


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("blocks.0.attn2.norm_added_q.weight", (64,), "shape of {}: found (64), expected (128)"),
        ("blocks.3.attn2.norm_added_q.weight", (128,), "unknown: {}"),  # of three blocks
        ("blocks.0.attn1.norm_added_q.weight", (128,), "unknown: {}"),
    ],
)  # fmt: skip
def test_one_of_another_shape_or_place_is_refused(
    name: str, shape: Shape, told: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = copy(pair[0], tmp_path / "odd")
    (file,) = (folder / "transformer").glob("*.safetensors")
    save_file({**load_file(file), name: torch.ones(shape)}, file, {"format": "pt"})
    with pytest.raises(Unrecognised) as caught:
        identify(open_checkpoint(folder))
    assert told.format(name) in caught.value.details


def test_diffusers_loads_the_same_folder_without_a_missing_or_unexpected_key(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        _, report = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer", output_loading_info=True)
        assert (report["missing_keys"], report["unexpected_keys"]) == ([], [])


def test_every_key_that_a_class_of_diffusers_ignores_is_dead_here() -> None:
    classes = {"wan-vace": "WanVACETransformer3DModel", "wan-animate": "WanAnimateTransformer3DModel"}
    for network in ARCHITECTURES:
        if "hub" not in network.schemes or "num_layers" not in dict(network.config["hub"]) or network.name[:3] != "wan":
            continue
        patterns = getattr(
            diffusers, classes.get(network.name, "WanTransformer3DModel")
        )._keys_to_ignore_on_load_unexpected
        assert patterns == ["norm_added_q"]
        assert network.dead
        assert all(patterns[0] in one.name for one in network.dead)
    others = (diffusers.CogVideoXTransformer3DModel, diffusers.AutoencoderKLWan, diffusers.AutoencoderKLCogVideoX)
    assert [one._keys_to_ignore_on_load_unexpected for one in others] == [None, None, None]
    assert transformers.T5EncoderModel._keys_to_ignore_on_load_unexpected == ["decoder"]


def test_transformers_loads_a_text_encoder_with_its_decoder(tmp_path: Path) -> None:
    network = architecture("t5-v1.1")
    shapes = expand(network, "hub", network.tiny) | dead(network)
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    sizes = network.tiny
    transformers.T5Config(
        vocab_size=sizes["vocab"], d_model=sizes["d"], d_kv=sizes["attn"] // sizes["heads"], d_ff=sizes["ffn"],
        num_layers=sizes["n"], num_heads=sizes["heads"], feed_forward_proj="gated-gelu",
    ).save_pretrained(tmp_path)  # fmt: skip
    _, report = transformers.T5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (list(report["missing_keys"]), list(report["unexpected_keys"])) == ([], ["lm_head.weight"])


@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "official"])
def test_they_are_in_no_output_and_change_nothing_else(layout: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    outs = []
    for folder in pair:
        outs.append(tmp_path / f"{folder.name}-out")
        report = convert(folder, ConvertOptions("bf16", layout=layout, out=outs[-1]))
        notes = [one.message for one in report.findings if "left out: diffusers ignores it" in one.message]
        assert [note[:9] for note in notes] == (["3 tensors"] if folder is pair[1] else [])
    plain, released = map(digests, outs)
    assert plain.keys() == released.keys()
    assert {path for path in plain if plain[path] != released[path]} == {"wanconv.json"}
    assert verify(outs[1], VerifyOptions(against=pair[1])).exit_code == 0


def test_inspect_counts_them_and_diffusers_still_reads_the_folder(pair: tuple[Path, Path]) -> None:
    report = inspect(pair[1])
    assert report.figures["unread_tensors"] == 3
    assert any("attn2.norm_added_q.weight and 2 more" in one.where for one in report.findings)
    assert "unread_tensors" not in inspect(pair[0]).figures
    (clients,) = [table for table in report.tables if table.title == "clients"]
    assert [row[1] for row in clients.rows if row[0] == "diffusers"] == [YES]
    assert verify(pair[1], VerifyOptions(client="diffusers")).exit_code == 0
