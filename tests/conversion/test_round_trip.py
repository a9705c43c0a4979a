"""There and back again: with recipe keep, a change of layout changes names and files, and no byte of any tensor."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from covering import covering, name_of, some

from wanconv.commands.convert import convert
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Refused
from wanconv.layouts import LAYOUTS
from wanconv.models import FAMILIES, identify
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.samples.synthetic import PUBLISHED
from wanconv.types.architecture import Family
from wanconv.types.tensors import Shape

DIFFUSERS = LAYOUTS["diffusers"]
HOUSED = [  # in both layouts that are published
    family for family in FAMILIES if not any(family.name in (LAYOUTS[name].refused or {}) for name in PUBLISHED)
]
BOTH_WAYS = [family for family in HOUSED if family.name != "wan2.2-animate-14b"]  # whose blurs diffusers computes
IMAGE = ("image_encoder/*",)


def keep(source: Path, layout: str, out: Path, exclude: tuple[str, ...] = ()) -> Path:
    convert(source, ConvertOptions("keep", layout=layout, out=out, exclude=exclude))
    return out


def on_disk(folder: Path) -> dict[str, dict[str, tuple[str, Shape, bytes]]]:
    """Returns component -> name in the file -> dtype, shape and payload."""
    return {
        name: {ref.name: (ref.dtype, ref.shape, ref.read()) for ref in component.part.tensors.values()}
        for name, component in identify(open_checkpoint(folder)).components.items()
    }


def jsons(folder: Path) -> dict[str, object]:
    ours = ("wanconv.json",)
    return {
        str(path.relative_to(folder)): json.loads(path.read_bytes())
        for path in folder.rglob("*.json")
        if path.name not in ours
    }


def without(found: Mapping[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in found.items() if name not in names}


@pytest.mark.parametrize("family", some(BOTH_WAYS, 2), ids=name_of)
def test_official_to_diffusers_and_back_changes_nothing(
    family: Family, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny(family.releases[-1].name)
    there = keep(source, "diffusers", tmp_path / "there")
    back = keep(there, "official", tmp_path / "back", IMAGE)
    # the hub's CLIP has no text half: the next test
    assert on_disk(back) == without(on_disk(source), "image_encoder")
    assert jsons(back) == jsons(source)


@pytest.mark.parametrize("family", some(BOTH_WAYS[::-1], 2), ids=name_of)
def test_diffusers_to_official_and_back_changes_nothing(
    family: Family, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny(family.releases[-1].name, "diffusers")
    there = keep(source, "official", tmp_path / "there", IMAGE)
    back = keep(there, "diffusers", tmp_path / "back")
    assert on_disk(back) == without(on_disk(source), "image_encoder")
    found, expected = jsons(back), jsons(source)
    for path in set(expected) - set(found):
        assert path.split("/")[0] in ("image_encoder", "image_processor")
    assert {path: value for path, value in found.items() if path != "model_index.json"} == {
        path: value for path, value in expected.items() if path in found and path != "model_index.json"
    }


@covering(
    ("family", "layout"),
    FAMILIES,
    PUBLISHED,
    strength=1,
    given=lambda family, layout: family.name not in (LAYOUTS[layout].refused or {}),
)
def test_keep_in_the_same_layout_changes_nothing(
    family: Family, layout: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny(family.releases[-1].name, layout)
    out = keep(source, layout, tmp_path / "out")
    assert on_disk(out) == on_disk(source)
    assert jsons(out) == jsons(source)


@pytest.mark.parametrize("release", ["wan2.1-i2v-14b", "wan2.1-flf2v-14b"])
def test_clip_without_its_text_half_is_refused_and_the_hint_works(
    release: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = tiny(release), tmp_path / "out"
    there = keep(source, "diffusers", tmp_path / "there")
    with pytest.raises(
        Refused, match=r"^image_encoder: the official layout needs \d+ tensors that the source"
    ) as raised:
        keep(there, "official", out)
    assert raised.value.hint.endswith('`exclude=["image_encoder/*"]`')
    assert raised.value.details[1] == "not in the source: image_encoder/log_scale"
    assert not out.exists()
    keep(there, "official", out, IMAGE)
    clip = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    (out / clip).write_bytes((source / clip).read_bytes())
    assert on_disk(out) == on_disk(source)


def test_animate_from_diffusers_lacks_the_blurs_that_the_official_file_has(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"^dit: the official layout needs 14 tensors that the source does") as raised:
        keep(tiny("wan2.2-animate-14b", "diffusers"), "official", tmp_path / "out", IMAGE)
    assert raised.value.details[0] == "not in the source: dit/motion_encoder.resnets.0.blur"


def test_the_pth_files_are_what_torch_reads_too(tiny: Callable[..., Path], tmp_path: Path) -> None:
    there = keep(tiny("wan2.1-t2v-1.3b"), "diffusers", tmp_path / "there")
    back = keep(there, "official", tmp_path / "back")
    files = sorted(back.rglob("*.pth"))
    assert len(files) == 2
    for file in files:
        (part,) = open_checkpoint(file).parts
        for mmap in (True, False):
            loaded = torch.load(file, weights_only=True, mmap=mmap)
            assert list(loaded) == list(part.tensors)
            for name, ref in part.tensors.items():
                tensor = loaded[name]
                assert (tensor.dtype, tuple(tensor.shape)) == (TORCH_DTYPES[ref.dtype], ref.shape)
                assert tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == ref.read()


@pytest.fixture(scope="module")
def saved_by_diffusers(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan 2.2 pipeline of random weights, built and saved by diffusers and transformers alone."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 256, "num_layers": 2, "text_dim": 64}
    pipe = diffusers.WanPipeline(
        tokenizer=transformers.AutoTokenizer.from_pretrained(tiny("wan2.1-t2v-1.3b", "diffusers") / "tokenizer"),
        text_encoder=transformers.UMT5EncoderModel(
            transformers.UMT5Config(
                vocab_size=512, d_model=64, d_kv=32, d_ff=128, num_heads=2, num_layers=2, feed_forward_proj="gated-gelu"
            )
        ).to(torch.bfloat16),
        vae=diffusers.AutoencoderKLWan(base_dim=8),
        scheduler=diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=12.0
        ),
        transformer=diffusers.WanTransformer3DModel(**sizes, freq_dim=32),
        transformer_2=diffusers.WanTransformer3DModel(**sizes, freq_dim=32),
        boundary_ratio=0.875,
    )
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder, max_shard_size="2MB")
    return folder


def test_what_diffusers_saves_goes_to_official_and_back(saved_by_diffusers: Path, tmp_path: Path) -> None:
    model = identify(open_checkpoint(saved_by_diffusers))
    assert (model.family.name, model.absent) == ("wan2.2-t2v-a14b", ())
    assert len(model.components["expert.high"].part.files) > 1
    there = keep(saved_by_diffusers, "official", tmp_path / "there")
    back = keep(there, "diffusers", tmp_path / "back")
    assert on_disk(back) == on_disk(saved_by_diffusers)
    first, second = (diffusers.WanPipeline.from_pretrained(folder) for folder in (saved_by_diffusers, back))
    private = ("_name_or_path", "_diffusers_version", "_use_default_values")
    for name in ("transformer", "transformer_2", "vae"):
        one, other = (dict(getattr(pipe, name).config) for pipe in (first, second))
        assert without(one, *private) == without(other, *private)
    for key in ("boundary_ratio", "expand_timesteps"):
        assert first.config[key] == second.config[key]


def test_what_diffusers_saves_keeps_its_own_configs_in_its_own_layout(saved_by_diffusers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(saved_by_diffusers, ConvertOptions("fp16", out=out))
    found, expected = jsons(out), jsons(saved_by_diffusers)
    encoder = expected.pop("text_encoder/config.json")
    assert isinstance(encoder, dict)
    assert found.pop("text_encoder/config.json") == encoder | {"dtype": "float16"}
    indexes = [path for path in expected if path.endswith(".index.json")]
    assert without(found, *indexes) == without(expected, *indexes)
