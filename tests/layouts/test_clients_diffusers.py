"""What diffusers and transformers themselves say of the diffusers layout: it loads, whole, and computes."""

import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import tiny as tools
import torch
from covering import cover
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn
from transformers import CLIPVisionModel, T5EncoderModel, UMT5EncoderModel

from wanconv.commands.convert import convert
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.layouts import LAYOUTS
from wanconv.models import FAMILIES, fill, identify
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.types.architecture import Family
from wanconv.types.model import Component, Model, ModelTensor

DIFFUSERS = LAYOUTS["diffusers"]
HOUSED = [family for family in FAMILIES if family.name not in (DIFFUSERS.refused or {})]
CLASSES: Mapping[str, Any] = {  # by the first that a network's name begins with
    "cogvideox-vae": AutoencoderKLCogVideoX,
    "cogvideox": CogVideoXTransformer3DModel,
    "wan-vae": AutoencoderKLWan,
    "wan-vace": WanVACETransformer3DModel,
    "wan-animate": WanAnimateTransformer3DModel,
    "wan": WanTransformer3DModel,
    "umt5": UMT5EncoderModel,
    "t5": T5EncoderModel,
    "clip": CLIPVisionModel,
}

TRANSFORMERS = ("text_encoder", "image_encoder")
CASES = list(product(HOUSED, ("keep", "experts-bf16-rest-fp16")))
CHOSEN = cover([(family.name, recipe) for family, recipe in CASES], 1)


class Converted(NamedTuple):
    family: Family
    recipe: str
    source: Path
    out: Path


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=() if number in CHOSEN else pytest.mark.exhaustive, id=f"{case[0].name}-{case[1]}")
        for number, case in enumerate(CASES)
    ],
)
def converted(
    request: pytest.FixtureRequest, tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    """A tiny checkpoint in the layout it is released in and what became of it."""
    family, recipe = request.param
    source, out = tiny(family.releases[-1].name), tmp_path_factory.mktemp("converted") / "out"
    convert(source, ConvertOptions(recipe, layout="diffusers", out=out))
    return Converted(family, recipe, source, out)


def class_of(component: Component) -> Any:
    """Returns the library's class of a network."""
    return next(kind for name, kind in CLASSES.items() if component.architecture.name.startswith(name))


def values(tensor: ModelTensor) -> Tensor:
    """Returns a canonical tensor's numbers as they stand in its file."""
    runs = []
    for piece in tensor.pieces:
        whole = torch.frombuffer(bytearray(piece.ref.read()), dtype=TORCH_DTYPES[piece.ref.dtype])
        runs.append(whole[piece.start : piece.start + piece.count])
    joined = torch.cat(runs)
    return joined.view(tensor.shape[::-1]).t() if tensor.transposed else joined.view(tensor.shape)


def client_names(tensor: ModelTensor) -> set[str]:
    """Returns every name that a client may have for a tensor (transformers 5 dropped CLIP's `vision_model`)."""
    spelling = tensor.role.spellings["hub"]
    assert spelling is not None
    segments = zip(tensor.role.name.split("."), tensor.name.partition("/")[2].split("."), strict=True)
    number = next((found for segment, found in segments if segment in ("{n}", "{m}")), None)
    return {fill(name, number) for name in (spelling.name, *spelling.aliases)}


def differing(model: nn.Module, tensors: Iterable[ModelTensor], source: Model) -> list[str]:
    """Returns the parameters that are not the source's numbers as the output stores them, or are not in it."""
    saved = model.state_dict().keys()
    parameters = dict(model.named_parameters()) | {name: one for name, one in model.named_buffers() if name in saved}
    wrong = []
    for tensor in tensors:
        (name,) = client_names(tensor) & parameters.keys()
        found = parameters.pop(name)
        expected = values(source.tensors[tensor.name]).to(TORCH_DTYPES[tensor.dtype])
        if not torch.equal(found.detach().double(), expected.double().reshape(found.shape)):
            wrong.append(name)
    return [*wrong, *parameters]


def test_every_component_loads_whole_with_the_source_numbers(converted: Converted) -> None:
    source, out = (identify(open_checkpoint(folder)) for folder in (converted.source, converted.out))
    assert list(out.components) == list(source.components)
    for name, component in out.components.items():
        folder = converted.out / DIFFUSERS.places[name].folder
        model, info = class_of(component).from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), (name, info)
        assert differing(model, component.tensors.values(), source) == []


def test_transformers_loads_the_dtype_that_is_stored(converted: Converted) -> None:
    text_encoder = identify(open_checkpoint(converted.out / "text_encoder")).components["text_encoder"]
    encoder = class_of(text_encoder).from_pretrained(converted.out / "text_encoder")
    assert encoder.dtype == (torch.bfloat16 if converted.recipe == "keep" else torch.float16)


def test_the_whole_pipeline_loads(converted: Converted) -> None:
    family, pipe = converted.family, DiffusionPipeline.from_pretrained(converted.out)
    image_conditioned = family.model_type in ("i2v", "flf2v", "animate")
    assert pipe.tokenizer.decode(pipe.tokenizer("A cat walks.").input_ids, skip_special_tokens=True) == "A cat walks."
    if family.name.startswith("cogvideox"):
        assert type(pipe) is (CogVideoXImageToVideoPipeline if image_conditioned else CogVideoXPipeline)
        assert pipe.scheduler.config.snr_shift_scale == family.shift
        return
    own = {"vace": WanVACEPipeline, "animate": WanAnimatePipeline}
    assert type(pipe) is own.get(family.model_type, WanImageToVideoPipeline if image_conditioned else WanPipeline)
    assert pipe.scheduler.config.flow_shift == family.shift
    if family.model_type != "animate":
        assert pipe.config.boundary_ratio == family.boundary
        assert (pipe.transformer_2 is None) is (family.boundary is None)
    if family.model_type not in own:
        assert pipe.config.expand_timesteps is (family.name == "wan2.2-ti2v-5b")
    if image_conditioned:
        assert (pipe.image_encoder is None) is ("image_encoder" not in family.components)
        assert (pipe.image_processor is None) is ("image_encoder" not in family.components)


def test_the_experts_stand_where_the_pipeline_looks(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, out = tiny("wan2.2-t2v-a14b"), tmp_path / "out"
    convert(source, ConvertOptions("keep", layout="diffusers", out=out))
    model, pipe = identify(open_checkpoint(source)), WanPipeline.from_pretrained(out)
    for expert, transformer in (("expert.high", pipe.transformer), ("expert.low", pipe.transformer_2)):
        expected = values(model.tensors[f"{expert}/blocks.0.ffn.up.weight"])
        assert torch.equal(transformer.blocks[0].ffn.net[0].proj.weight, expected)


def test_the_pipeline_makes_a_video_with_both_experts(tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny("wan2.2-t2v-a14b"), ConvertOptions("experts-bf16-rest-fp16", layout="diffusers", out=out))
    pipe = WanPipeline.from_pretrained(out, torch_dtype=torch.float32)
    calls: list[str] = []
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).register_forward_hook(lambda module, args, result, name=name: calls.append(name))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        "A cat walks.", height=16, width=16, num_frames=5, num_inference_steps=3, max_sequence_length=16,
        guidance_scale=1.0, output_type="pt", generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert frames.shape == (1, 5, 3, 16, 16)
    assert frames.isfinite().all()
    assert list(dict.fromkeys(calls)) == ["transformer", "transformer_2"]


def test_derived_configs_hold_no_key_that_their_class_does_not_know(converted: Converted) -> None:
    for name, component in identify(open_checkpoint(converted.out)).components.items():
        folder, kind = converted.out / DIFFUSERS.places[name].folder, class_of(component)
        stated = json.loads((folder / "config.json").read_bytes())
        known = inspect.signature(kind.config_class if name in TRANSFORMERS else kind).parameters
        assert stated.keys() - known.keys() <= {"_class_name", "_diffusers_version", "torch_dtype", "model_type"}
    scheduler = json.loads((converted.out / "scheduler" / "scheduler_config.json").read_bytes())
    known = inspect.signature(getattr(diffusers, scheduler["_class_name"])).parameters
    assert scheduler.keys() - known.keys() == {"_class_name", "_diffusers_version"}


def test_a_changed_dtype_is_changed_in_a_copied_config_too(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny("wan2.1-t2v-1.3b", "diffusers"), source)
    path = source / "text_encoder" / "config.json"
    stated = json.loads(path.read_bytes())
    del stated["torch_dtype"]
    path.write_text(json.dumps(stated | {"dtype": "bfloat16", "note": "mine"}))
    convert(source, ConvertOptions("fp32", out=out))
    assert json.loads((out / "text_encoder" / "config.json").read_bytes()) == stated | {
        "dtype": "float32",
        "note": "mine",
    }
    assert UMT5EncoderModel.from_pretrained(out / "text_encoder").dtype == torch.float32
    assert (out / "vae" / "config.json").read_bytes() == (source / "vae" / "config.json").read_bytes()


def test_a_config_is_copied_byte_for_byte_where_no_dtype_changes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny("wan2.1-t2v-1.3b", "diffusers"), source)
    path = source / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"torch_dtype": "float32"}))  # the user's own wish
    convert(source, ConvertOptions("keep", out=out))
    assert (out / "text_encoder" / "config.json").read_bytes() == path.read_bytes()


def test_one_value_beyond_fp16_is_not_lost_to_the_dtype_of_the_others(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny("wan2.1-t2v-1.3b"), source)
    tools.poke(source / "models_t5_umt5-xxl-enc-bf16.pth", "blocks.1.attn.q.weight", 0, 70000.0)
    convert(source, ConvertOptions("experts-bf16-rest-fp16", layout="diffusers", out=out))
    assert json.loads((out / "text_encoder" / "config.json").read_bytes())["torch_dtype"] == "float32"
    encoder = UMT5EncoderModel.from_pretrained(out / "text_encoder")
    assert encoder.encoder.block[1].layer[0].SelfAttention.q.weight[0, 0].item() == 70144.0  # 70000 in bf16


def test_what_a_partial_source_lacks_can_be_handed_to_the_pipeline(tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ConvertOptions("keep", layout="diffusers", out=out, exclude=("low_noise_model/*", "*.pth", "google/*"))
    convert(tiny("wan2.2-t2v-a14b"), options)
    vae = AutoencoderKLWan(base_dim=8)
    pipe = WanPipeline.from_pretrained(out, vae=vae, text_encoder=None, tokenizer=None)
    assert pipe.vae is vae
    assert sorted(name for name, part in pipe.components.items() if part is not None) == [
        "scheduler",
        "transformer",
        "vae",
    ]


@pytest.mark.parametrize("file", ["models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"])
def test_a_component_that_many_pipelines_share_gets_no_pipeline(
    file: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(tiny("wan2.2-t2v-a14b") / file, ConvertOptions("keep", layout="diffusers", out=out))
    ((name, component),) = identify(open_checkpoint(out)).components.items()
    assert sorted(path.name for path in out.iterdir()) == sorted(["README.md", "wanconv.json", name])
    _, info = class_of(component).from_pretrained(out / name, output_loading_info=True)
    assert not any(info.values())
