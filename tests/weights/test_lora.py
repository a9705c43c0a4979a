"""LoRAs: every naming style is read and merged, the same whatever the runs; all that does not fit is named."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from wanconv.containers import open_checkpoint, read_header
from wanconv.errors import InputError, NotFinite, Refused, UsageError, WanconvError
from wanconv.models import ARCHITECTURES, identify
from wanconv.models.lora_names import STYLES, TAILS, stems
from wanconv.types.architecture import Architecture
from wanconv.types.model import Model, ModelTensor, Patch
from wanconv.types.tensors import TensorRef
from wanconv.weights.lora import LoraRequest, parse, with_loras
from wanconv.weights.merge import Merger
from wanconv.weights.reader import Reader, Sources

pytestmark = pytest.mark.usefixtures("one_thread")

Tiny = Callable[..., Path]
Numbers = Mapping[str, Tensor]

T2V, A14B = "wan2.1-t2v-1.3b", "wan2.2-t2v-a14b"
# module by its official and by its hub name, and the axes of its weight: rows, columns
MODULES = {
    "blocks.0.self_attn.q": ("blocks.0.attn1.to_q", 128, 128),
    "blocks.2.cross_attn.o": ("blocks.2.attn2.to_out.0", 128, 128),
    "blocks.1.ffn.0": ("blocks.1.ffn.net.0.proj", 256, 128),
    "blocks.1.ffn.2": ("blocks.1.ffn.net.2", 128, 256),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2", 128, 128),
    "time_projection.1": ("condition_embedder.time_proj", 768, 128),
}
A_B = ("{}.lora_B.weight", "{}.lora_A.weight")
PAIRS = (
    A_B,
    ("{}.lora_up.weight", "{}.lora_down.weight"),
    ("{}.lora_B.default.weight", "{}.lora_A.default.weight"),
    ("{}.lora_B", "{}.lora_A"),
    ("{}.lora.up.weight", "{}.lora.down.weight"),
    ("{}_lora.up.weight", "{}_lora.down.weight"),
    ("{}.lora_linear_layer.up.weight", "{}.lora_linear_layer.down.weight"),
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def pairs(rank: int = 4, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns official module -> up and down."""
    return {
        module: (numbers(rows, rank, seed=seed + 2 * n), numbers(rank, columns, seed=seed + 2 * n + 1))
        for n, (module, (_, rows, columns)) in enumerate(MODULES.items())
    }


def spelled(
    made: Mapping[str, tuple[Tensor, Tensor]], form: str = "diffusion_model.{}", pair: tuple[str, str] = A_B
) -> dict[str, Tensor]:
    """Returns the keys of a style: `form` is about the module, which is of the hub where it has `hub` in it."""
    keys: dict[str, Tensor] = {}
    for module, (up, down) in made.items():
        name = MODULES[module][0] if "hub" in form else module
        stem = form.replace("hub", "").format(name)
        if form.startswith("lora_unet_"):
            stem = stem.replace(".", "_")
        keys |= {pair[0].format(stem): up.contiguous(), pair[1].format(stem): down.contiguous()}
    return keys


def write(folder: Path, keys: Numbers, name: str = "lora.safetensors", metadata: dict[str, str] | None = None) -> str:
    save_file(dict(keys), folder / name, metadata)
    return str(folder / name)


def merged(source: Path, *texts: str, allow: bool = False) -> dict[str, Tensor]:
    """Returns the tensors that LoRAs change, by their names on disk."""
    model = with_loras(identify(open_checkpoint(source)), texts, allow)
    reader = Reader(Sources())
    return {
        tensor.pieces[0].ref.name: reader.values(tensor, 0, tensor.numel).view(tensor.shape).clone()
        for tensor in model.tensors.values()
        if tensor.patches
    }


def weights(source: Path) -> dict[str, Tensor]:
    return load_file(source / "diffusion_pytorch_model.safetensors")


def sum_of(weight: Tensor, *terms: tuple[float, Tensor, Tensor]) -> np.ndarray:
    """Returns W + scale * up @ down in float64, rounded once."""
    total = weight.double().numpy()
    for scale, up, down in terms:
        product = up.double().flatten(1).numpy() @ down.double().flatten(1).numpy()
        total = total + scale * product.reshape(total.shape)
    return total.astype(np.float32)


def same(found: Tensor, expected: object) -> bool:
    return bool(np.allclose(found.numpy(), np.asarray(expected), rtol=2e-7, atol=1e-12))


@pytest.fixture(scope="module")
def dit(tiny: Tiny) -> Path:
    return tiny(T2V)


# styles


FORMS = [
    "{}",
    "diffusion_model.{}",
    "model.diffusion_model.{}",
    "model.{}",
    "unet.{}",
    "transformer.{}",
    "lora_unet_{}",
]


@pytest.mark.parametrize("form", [*FORMS, *(f"{form}hub" for form in FORMS)])
def test_every_prefix_and_both_namings_are_read(form: str, dit: Path, tmp_path: Path) -> None:
    made, before = pairs(), weights(dit)
    after = merged(dit, write(tmp_path, spelled(made, form)) + ":0.5")
    assert after.keys() == {f"{module}.weight" for module in made}
    for module, (up, down) in made.items():
        assert same(after[f"{module}.weight"], sum_of(before[f"{module}.weight"], (0.5, up, down)))


@pytest.mark.parametrize("pair", PAIRS)
def test_every_spelling_of_the_two_matrices_is_read(pair: tuple[str, str], dit: Path, tmp_path: Path) -> None:
    made, before = pairs(), weights(dit)
    after = merged(dit, write(tmp_path, spelled(made, pair=pair)))
    for module, (up, down) in made.items():
        assert same(after[f"{module}.weight"], sum_of(before[f"{module}.weight"], (1.0, up, down)))


def test_the_tests_know_every_style() -> None:
    assert [prefix + "{}" for prefix, _ in STYLES] == FORMS
    assert {("{}" + tail.text, tail.part) for tail in TAILS if tail.part in ("up", "down")} == {
        pair for up, down in PAIRS for pair in ((up, "up"), (down, "down"))
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_no_key_means_two_tensors(architecture: Architecture) -> None:
    seen: dict[tuple[str, str], str] = {}
    for scheme in architecture.schemes:
        for stem, leaves in stems(replace(architecture, schemes=(scheme,)), architecture.tiny).items():
            for leaf, canonical in leaves.items():
                assert seen.setdefault((stem, leaf), canonical) == canonical


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32]
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_is_divided_by_the_rank(dtype: torch.dtype, shape: tuple[int, ...], dit: Path, tmp_path: Path) -> None:
    made, before = pairs(), weights(dit)
    keys = spelled(made, "lora_unet_{}", PAIRS[1])
    keys["lora_unet_blocks_1_ffn_0.alpha"] = torch.full(shape, 2, dtype=dtype)
    after = merged(dit, write(tmp_path, keys) + ":-0.5")
    for module, (up, down) in made.items():
        scale = -0.25 if module == "blocks.1.ffn.0" else -0.5
        assert same(after[f"{module}.weight"], sum_of(before[f"{module}.weight"], (scale, up, down)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrow_matrices_are_widened_exactly(dtype: torch.dtype, dit: Path, tmp_path: Path) -> None:
    made = {module: (up.to(dtype), down.to(dtype)) for module, (up, down) in pairs().items()}
    before, after = weights(dit), merged(dit, write(tmp_path, spelled(made)))
    for module, (up, down) in made.items():
        term = (1.0, up.to(torch.float32), down.to(torch.float32))
        assert same(after[f"{module}.weight"], sum_of(before[f"{module}.weight"], term))


def test_a_convolution_takes_a_product_of_its_rows(dit: Path, tmp_path: Path) -> None:
    up, down = numbers(128, 4, 1, 1, 1), numbers(4, 16, 1, 2, 2, seed=1)
    keys = spelled({"patch_embedding": (up, down)}, "diffusion_model.{}")
    after = merged(dit, write(tmp_path, keys))
    expected = sum_of(weights(dit)["patch_embedding.weight"], (1.0, up, down))
    assert same(after["patch_embedding.weight"], expected)


def test_differences_of_weights_biases_norms_and_modulation_are_added(dit: Path, tmp_path: Path) -> None:
    before = weights(dit)
    keys = {
        "diffusion_model.blocks.1.ffn.0.diff": "blocks.1.ffn.0.weight",
        "diffusion_model.blocks.1.ffn.0.diff_b": "blocks.1.ffn.0.bias",
        "diffusion_model.blocks.1.norm3.diff": "blocks.1.norm3.weight",
        "diffusion_model.blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
        "diffusion_model.blocks.0.self_attn.norm_k.diff": "blocks.0.self_attn.norm_k.weight",
        "diffusion_model.blocks.2.diff_m": "blocks.2.modulation",
        "diffusion_model.blocks.0.modulation.diff": "blocks.0.modulation",  # ComfyUI's
        "diffusion_model.head.diff_m": "head.modulation",
        "diffusion_model.head.head.diff": "head.head.weight",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
        "transformer.proj_out.diff_b": "head.head.bias",
    }
    made = {key: numbers(*before[name].shape, seed=n) for n, (key, name) in enumerate(keys.items())}
    after = merged(dit, write(tmp_path, made) + ":2")
    assert after.keys() == set(keys.values())
    for key, name in keys.items():
        assert same(after[name], (before[name].double() + 2 * made[key].double()).numpy())


def test_a_pair_and_a_difference_of_one_weight_are_both_added(dit: Path, tmp_path: Path) -> None:
    module, name = "blocks.1.ffn.0", "blocks.1.ffn.0.weight"
    (up, down), before = pairs()[module], weights(dit)[name]
    keys = spelled({module: (up, down)}) | {f"diffusion_model.{module}.diff": numbers(*before.shape, seed=9)}
    keys[f"diffusion_model.{module}.alpha"] = torch.tensor(8.0)
    after = merged(dit, write(tmp_path, keys) + ":0.5")
    difference = 0.5 * keys[f"diffusion_model.{module}.diff"].double()
    assert same(after[name], sum_of(before.double() + difference, (1.0, up, down)))


def test_several_loras_add_up_in_any_order(dit: Path, tmp_path: Path) -> None:
    one, other, before = pairs(4), pairs(3, seed=50), weights(dit)
    files = (write(tmp_path, spelled(one)), write(tmp_path, spelled(other, "transformer.{}hub"), "b.safetensors"))
    after = merged(dit, f"{files[0]}:0.7", f"{files[1]}:-1.5")
    for module in one:
        terms = ((0.7, *one[module]), (-1.5, *other[module]))
        assert same(after[f"{module}.weight"], sum_of(before[f"{module}.weight"], *terms))
    again = merged(dit, f"{files[1]}:-1.5", f"{files[0]}:0.7")
    assert all(torch.equal(again[name], value) for name, value in after.items())


# what diffusers makes of it


def by_musubi() -> dict[str, Tensor]:
    """Every linear layer of the blocks, as musubi-tuner writes them and diffusers wants them."""
    leaves = {f"{attention}_attn.{leaf}": (128, 128) for attention in ("self", "cross") for leaf in "qkvo"}
    keys: dict[str, Tensor] = {}
    for block, (leaf, (rows, columns)) in product(
        range(3), {**leaves, "ffn.0": (256, 128), "ffn.2": (128, 256)}.items()
    ):
        stem, seed = f"lora_unet_blocks_{block}_{leaf.replace('.', '_')}", len(keys)
        keys |= {f"{stem}.lora_down.weight": numbers(4, columns, seed=seed)}
        keys |= {f"{stem}.lora_up.weight": numbers(rows, 4, seed=seed + 1), f"{stem}.alpha": torch.tensor(2.0)}
    return keys


def with_biases() -> dict[str, Tensor]:
    """Pairs with a difference of every bias beside them: diffusers gives all layers one if any has."""
    made = pairs()
    return spelled(made) | {
        f"diffusion_model.{module}.diff_b": numbers(len(up), seed=70 + n)
        for n, (module, (up, _)) in enumerate(made.items())
    }


KEYS: dict[str, tuple[dict[str, Tensor], dict[str, str] | None]] = {
    "diffusers": (spelled(pairs(), "transformer.{}hub"), None),
    "diffusion_model": (spelled(pairs(), "diffusion_model.{}"), None),
    "biases": (with_biases(), None),
    "musubi": (by_musubi(), None),
    "metadata": (
        spelled(pairs(), "transformer.{}hub"),
        {
            "format": "pt",
            "lora_adapter_metadata": json.dumps(
                {
                    "transformer.r": 4,
                    "transformer.lora_alpha": 2,
                    "transformer.target_modules": [hub for hub, _, _ in MODULES.values()],
                }
            ),
        },
    ),
}


@pytest.mark.parametrize("style", KEYS)
def test_diffusers_fuses_to_the_same_numbers(style: str, tiny: Tiny, tmp_path: Path) -> None:
    keys, metadata = KEYS[style]
    file, source = write(tmp_path, keys, metadata=metadata), tiny(T2V, "diffusers")
    transformer = WanTransformer3DModel.from_pretrained(source / "transformer")
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=transformer)
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    fused = dict(transformer.named_parameters())
    model, reader = with_loras(identify(open_checkpoint(source)), [f"{file}:0.7"], False), Reader(Sources())
    for tensor in model.components["dit"].tensors.values():
        expected = fused[tensor.pieces[0].ref.name].detach().reshape(-1)
        found = reader.values(tensor, 0, tensor.numel)
        assert torch.allclose(found.to(torch.float32), expected.to(torch.float32), rtol=1e-6, atol=1e-7), tensor.name
    assert model.loras[0].changed == sum("lora_A" in key or "lora_down" in key or "diff_b" in key for key in keys)


# runs


def test_the_bits_of_a_merged_number_do_not_depend_on_the_run_it_is_read_in(dit: Path) -> None:
    rows, columns, rank = 101, 4099, 37
    role = identify(open_checkpoint(dit)).tensors["dit/head.proj.weight"].role
    held = {"up": numbers(rows, rank), "down": numbers(rank, columns, seed=1), "diff": numbers(rows, columns, seed=2)}
    refs = {
        name: TensorRef(name, "fp32", tuple(value.shape), Path("lora"), 0, value.nbytes) for name, value in held.items()
    }
    patches = (Patch(0.3, refs["down"], refs["up"]), Patch(0.7, refs["diff"]))
    tensor = ModelTensor("dit/w", role, None, (rows, columns), (), patches=patches)
    values = numbers(rows * columns, seed=3)

    def read_into(ref: TensorRef, first: int, view: memoryview) -> None:
        view[:] = held[ref.name].view(-1).view(torch.uint8).numpy().data[4 * first : 4 * first + len(view)]

    whole = Merger(read_into).merged(tensor, 0, values)
    expected = sum_of(
        values.view(rows, columns).double() + 0.7 * held["diff"].double(), (0.3, held["up"], held["down"])
    )
    assert same(whole.view(rows, columns), expected)
    merger = Merger(read_into)
    spans = (
        torch.randint(0, rows * columns, (60, 2), generator=torch.Generator().manual_seed(0)).sort(1).values.tolist()
    )
    for first, last in [*spans, (0, 1), (columns - 1, columns + 1), (rows * columns - 1, rows * columns)]:
        found = merger.merged(tensor, first, values[first:last])
        assert torch.equal(found.view(torch.int32), whole[first:last].view(torch.int32))


# refusals


def refused(source: Path, kind: type[WanconvError], *texts: str, allow: bool = False) -> WanconvError:
    with pytest.raises(kind) as caught:
        merged(source, *texts, allow=allow)
    assert type(caught.value) is kind
    return caught.value


def test_keys_that_name_nothing_are_listed_and_may_be_allowed(dit: Path, tmp_path: Path) -> None:
    keys = spelled(pairs()) | {
        "diffusion_model.blocks.7.ffn.0.lora_A.weight": numbers(4, 128),
        "diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight": numbers(4, 128),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
    }
    file = write(tmp_path, keys)
    error = refused(dit, Refused, file)
    assert error.message == f"{file} for dit: 3 of its 15 keys name no tensor there"
    assert error.details == tuple(sorted(keys.keys() - spelled(pairs()).keys()))
    assert "`lora_allow_unmatched=True` merges the others alone" in error.hint
    assert merged(dit, file, allow=True).keys() == {f"{module}.weight" for module in pairs()}
    model = with_loras(identify(open_checkpoint(dit)), [file], True)
    assert model.loras[0].unmatched == error.details


@pytest.mark.parametrize("allow", [False, True])
def test_a_lora_that_names_nothing_is_refused_whatever_is_allowed(allow: bool, dit: Path, tmp_path: Path) -> None:
    file = write(tmp_path, {"lora_unet_double_blocks_0_img_attn.lora_up.weight": numbers(4, 4)})
    error = refused(dit, Refused, file, allow=allow)
    assert error.message == f"{file} for dit: its only key does not name a tensor of wan-t2v"


KINDS = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".lora_magnitude_vector.weight", "DoRA"),
    (".lora_magnitude_vector.default.weight", "DoRA"),
    (".lora_mid.weight", "a LoRA with a middle matrix"),
    (".hada_w1_a", "LoHa"),
    (".lokr_w1", "LoKr"),
    (".lokr_w2_b", "LoKr"),
    (".oft_blocks", "OFT"),
    (".set_weight", "a weight in full"),
    (".reshape_weight", "a change of shape"),
]


@pytest.mark.parametrize(("tail", "word"), KINDS)
def test_other_kinds_of_adapters_are_named_and_refused(tail: str, word: str, dit: Path, tmp_path: Path) -> None:
    key = f"diffusion_model.blocks.1.ffn.0{tail}"
    file = write(tmp_path, spelled(pairs()) | {key: numbers(128)})
    error = refused(dit, Refused, file, allow=True)
    assert error.message == f"{file} for dit holds {word}: only products of two matrices and differences are merged"
    assert error.details == (key,)


def test_every_wrong_shape_is_named_at_once(dit: Path, tmp_path: Path) -> None:
    keys = spelled(pairs())
    stem = "diffusion_model.blocks.{}"
    keys[stem.format("1.ffn.0.lora_B.weight")] = numbers(128, 4)
    keys[stem.format("1.ffn.2.lora_A.weight")] = numbers(5, 256)
    keys[stem.format("0.ffn.0.diff_b")] = numbers(128)
    keys[stem.format("0.norm3.lora_A.weight")] = numbers(4, 1)
    keys[stem.format("0.norm3.lora_B.weight")] = numbers(128, 4)
    file = write(tmp_path, keys)
    error = refused(dit, Refused, file)
    assert error.message == f"{file} for dit does not fit its shapes: 4 of 8 tensors"
    assert sorted(line.replace("diffusion_model.blocks", "…") for line in error.details) == [
        "….0.ffn.0.diff_b is [128], and dit/blocks.0.ffn.up.bias [256]",
        "….0.norm3.lora_B.weight [128, 4] times ….0.norm3.lora_A.weight [4, 1] "
        "does not have the shape of dit/blocks.0.cross_attn.norm_in.weight [128]",
        "….1.ffn.0.lora_B.weight [128, 4] times ….1.ffn.0.lora_A.weight [4, 128] "
        "does not have the shape of dit/blocks.1.ffn.up.weight [256, 128]",
        "….1.ffn.2.lora_B.weight [128, 4] times ….1.ffn.2.lora_A.weight [5, 256] "
        "does not have the shape of dit/blocks.1.ffn.down.weight [128, 256]",
    ]


def test_several_loras_are_refused_at_once(dit: Path, tmp_path: Path) -> None:
    files = [
        write(tmp_path, {f"blocks.{n}.unknown.lora_A.weight": numbers(4, 4)}, f"{n}.safetensors") for n in range(2)
    ]
    error = refused(dit, Refused, *files)
    assert all(any(file in line for line in (error.message, *error.details)) for file in files)


STEM = "diffusion_model.blocks.1.ffn.0"
FAULTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "half-a-pair": ({f"{STEM}.lora_A.weight": numbers(4, 128)}, "of a pair of matrices there is only"),
    "an-alpha-alone": ({f"{STEM}.alpha": torch.tensor(1.0)}, "of a pair of matrices there is only"),
    "an-alpha-that-is-none": (
        spelled({"blocks.1.ffn.0": pairs()["blocks.1.ffn.0"]}) | {f"{STEM}.alpha": numbers(2)},
        r"ffn\.0\.alpha is not a single number: fp32 \[2\]",
    ),
    "twice": (
        {f"{STEM}.diff_b": numbers(256), "blocks.1.ffn.0.diff_b": numbers(256)},
        "say the same thing of one tensor",
    ),
    "integers": ({f"{STEM}.diff_b": torch.zeros(256, dtype=torch.int32)}, r"ffn\.0\.diff_b is int32"),
    "fp64": ({f"{STEM}.diff_b": torch.zeros(256, dtype=torch.float64)}, r"ffn\.0\.diff_b is fp64"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_contradicts_itself_is_unreadable(fault: str, dit: Path, tmp_path: Path) -> None:
    keys, message = FAULTS[fault]
    file = write(tmp_path, keys)
    error = refused(dit, InputError, file, allow=True)
    assert error.message.startswith(file)
    assert re.search(message, error.message)


def test_what_is_no_safetensors_file_is_unreadable(dit: Path, tmp_path: Path) -> None:
    torch.save(spelled(pairs()), tmp_path / "lora.pt")
    assert "is not a .safetensors file" in refused(dit, InputError, str(tmp_path / "lora.pt")).message
    assert "does not exist" in refused(dit, InputError, str(tmp_path / "gone.pt")).message
    assert "does not exist" in refused(dit, InputError, str(tmp_path / "gone.safetensors")).message
    (tmp_path / "text.safetensors").write_text("<html>")
    assert "not a safetensors file" in refused(dit, InputError, str(tmp_path / "text.safetensors")).message
    assert "no path should have" in refused(dit, InputError, str(tmp_path / "a\x1b.safetensors")).message


METADATA = [
    ("{", InputError, "its lora_adapter_metadata is not a JSON object"),
    ("[1]", InputError, "its lora_adapter_metadata is not a JSON object"),
    ('{"transformer.lora_alpha": "4"}', InputError, "has the lora_alpha '4'"),
    ('{"transformer.lora_alpha": 4, "transformer.use_rslora": true}', Refused, "in a way that is not read: use_rslora"),
    ('{"transformer.alpha_pattern": {"a": 1}}', Refused, "in a way that is not read: alpha_pattern"),
    ('{"transformer.use_dora": true}', Refused, "in a way that is not read: use_dora"),
]


@pytest.mark.parametrize(("text", "kind", "message"), METADATA)
def test_a_scale_in_the_header_that_is_not_understood_is_refused(
    text: str, kind: type[WanconvError], message: str, dit: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, spelled(pairs()), metadata={"lora_adapter_metadata": text})
    assert message in refused(dit, kind, file).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", [f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight", f"{STEM}.diff_b", f"{STEM}.alpha"])
def test_nan_and_infinity_in_a_lora_are_errors(value: float, key: str, dit: Path, tmp_path: Path) -> None:
    keys = spelled(pairs()) | {f"{STEM}.diff_b": numbers(256), f"{STEM}.alpha": torch.tensor(4.0)}
    keys[key].view(-1)[-1] = value
    error = refused(dit, NotFinite, write(tmp_path, keys))
    assert key in error.message


# which component


def placed(model: Model, *texts: str) -> list[tuple[str, str]]:
    return sorted((lora.component, lora.evidence) for lora in with_loras(model, texts, False).loras)


def test_experts_are_named_by_the_user_or_the_file(tiny: Tiny, tmp_path: Path) -> None:
    model = identify(open_checkpoint(tiny(A14B)))
    named = write(tmp_path, spelled(pairs()), "wan2.2_t2v_A14b_low_noise_lora.safetensors")
    plain = write(tmp_path, spelled(pairs(seed=9)), "style.safetensors")
    assert placed(model, named) == [("expert.low", f"file name {Path(named).name}")]
    assert placed(model, f"high={named}:0.5") == [("expert.high", "")]
    assert placed(model, f"high={plain}", f"expert.low={plain}:0.5") == [("expert.high", ""), ("expert.low", "")]
    changed = with_loras(model, [f"high={plain}"], False)
    assert {name.partition("/")[0] for name, one in changed.tensors.items() if one.patches} == {"expert.high"}
    with pytest.raises(UsageError, match="which expert it is for") as open_:
        placed(model, plain)
    assert open_.value.hint.startswith(f'say `loras=["high={plain}"]` or `loras=["low={plain}"]`')
    with pytest.raises(UsageError, match=r"is for dit, and .* holds expert\.high, expert\.low"):
        placed(model, f"dit={plain}")
    with pytest.raises(UsageError, match=r"is given twice for expert\.high"):
        placed(model, f"high={plain}", f"high={plain}:0.5")
    both = write(tmp_path, spelled(pairs()), "high_noise_and_low_noise.safetensors")
    with pytest.raises(UsageError, match=r"speaks of expert\.high and expert\.low"):
        placed(model, both)


@pytest.mark.parametrize(
    ("name", "metadata", "evidence"),
    [
        ("Wan2.2-Lightning_I2V-A14B-4steps-lora_HIGH_fp16", {}, "file name {}.safetensors"),
        ("styleI2VHigh", {}, "file name {}.safetensors"),
        ("HighNoise/style", {}, "folder name HighNoise"),
        ("style", {"model_type": "Wan2_2-T2V-A14B-HIGH"}, "header's model_type Wan2_2-T2V-A14B-HIGH"),
        ("style", {"ss_output_name": "style_high"}, "header's ss_output_name style_high"),
    ],
)
def test_experts_are_named_by_the_words_that_name_those_of_models(
    name: str, metadata: dict[str, str], evidence: str, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "HighNoise").mkdir()
    file = write(tmp_path, spelled(pairs()), f"{name}.safetensors", metadata)
    model = identify(open_checkpoint(tiny(A14B)))
    assert placed(model, file) == [("expert.high", evidence.format(name))]


def test_two_loras_that_differ_in_high_and_low_alone_are_a_pair(tiny: Tiny, tmp_path: Path) -> None:
    model = identify(open_checkpoint(tiny(A14B)))
    files = [write(tmp_path, spelled(pairs()), f"style_{word}_drama.safetensors") for word in ("high", "low")]
    assert [component for component, _ in placed(model, *files)] == ["expert.high", "expert.low"]
    with pytest.raises(UsageError, match="neither its name nor a word before it says"):
        placed(model, files[0])


def test_a_lora_that_speaks_of_both_experts_or_of_none_is_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    model = identify(open_checkpoint(tiny(A14B)))
    both = write(tmp_path, spelled(pairs()), "wan_low_high_noise.safetensors")
    with pytest.raises(UsageError, match=r"speaks of expert\.high and expert\.low") as asked:
        placed(model, both)
    assert (
        asked.value.hint == f'say `loras=["high={both}"]` or `loras=["low={both}"]`, or both where one file serves both'
    )
    for name in ("a_slow_noise", "A14B_lowVRAM", "highlora", "low_step"):
        with pytest.raises(UsageError, match="neither its name nor a word before it says"):
            placed(model, write(tmp_path, spelled(pairs()), f"{name}.safetensors"))


def test_a_lora_whose_name_and_header_contradict_each_other_is_refused_with_both(tiny: Tiny, tmp_path: Path) -> None:
    model = identify(open_checkpoint(tiny(A14B)))
    file = write(tmp_path, spelled(pairs()), "a_low_noise.safetensors", {"model_type": "Wan2_2-T2V-A14B-HIGH"})
    with pytest.raises(UsageError, match="contradicts itself") as refused:
        placed(model, file)
    assert refused.value.details == (
        "file name a_low_noise.safetensors says low",
        "header's model_type Wan2_2-T2V-A14B-HIGH says high",
    )
    assert placed(model, f"low={file}") == [("expert.low", "")]


def test_a_lone_expert_takes_what_is_not_the_other_ones(tiny: Tiny, tmp_path: Path) -> None:
    model = identify(open_checkpoint(tiny(A14B) / "high_noise_model"))
    plain = write(tmp_path, spelled(pairs()), "style.safetensors")
    low = write(tmp_path, spelled(pairs()), "style_low_noise.safetensors")
    assert placed(model, plain) == [("expert.high", "")]
    with pytest.raises(UsageError, match=r"speaks of expert\.low, and .* holds expert\.high") as other:
        placed(model, low)
    assert other.value.hint == f'say which it is for: `loras=["high={low}"]`'
    assert placed(model, f"high={low}") == [("expert.high", "")]
    with pytest.raises(UsageError, match=r"is for expert\.low, and .* holds expert\.high"):
        placed(model, f"low={plain}")


def test_a_model_without_denoiser_takes_none(tiny: Tiny, tmp_path: Path) -> None:
    vae = identify(open_checkpoint(tiny(T2V) / "Wan2.1_VAE.pth"))
    file = write(tmp_path, spelled(pairs()))
    with pytest.raises(UsageError, match="holds no denoiser"):
        placed(vae, file)
    with pytest.raises(UsageError, match=r"is for dit, and .* holds no denoiser"):
        placed(vae, f"dit={file}")


def test_a_text_is_a_component_a_file_and_a_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b:0.5", "high=c", "d:e", "odd=f"):
        Path(name).touch()
    assert parse("a") == LoraRequest(Path("a"))
    assert parse("a:0.8") == LoraRequest(Path("a"), 0.8)
    assert parse("a:-1e-1") == LoraRequest(Path("a"), -0.1)
    assert parse("b:0.5") == LoraRequest(Path("b:0.5"))
    assert parse("b:0.5:2") == LoraRequest(Path("b:0.5"), 2.0)
    assert parse("d:e") == LoraRequest(Path("d:e"))
    assert parse("low=a:2") == LoraRequest(Path("a"), 2.0, "expert.low")
    assert parse("expert.high=a") == LoraRequest(Path("a"), 1.0, "expert.high")
    assert parse("dit=d:e:2") == LoraRequest(Path("d:e"), 2.0, "dit")
    assert parse("./high=c") == LoraRequest(Path("high=c"))
    assert parse("odd=f:3") == LoraRequest(Path("odd=f"), 3.0)
    assert parse("gone") == LoraRequest(Path("gone"))
    for text, tail in (
        ("a:", ""),
        ("a:x", "x"),
        ("a:nan", "nan"),
        ("a:inf", "inf"),
        ("high=a:0,8", "0,8"),
    ):
        with pytest.raises(UsageError, match=f"^`loras` {text}: '{tail}' is not a valid strength$") as caught:
            parse(text)
        assert caught.value.hint == "write it as FILE, FILE:0.8 or high=FILE:0.8"
    for text in ("", " ", ":1", "high=", "low=:0.8"):
        with pytest.raises(UsageError, match=f"^`loras`{' ' * bool(text.strip())}{text.strip()}: the path is empty$"):
            parse(text)
    for text in ("s3://bucket/x.safetensors:0.8", "high=https://host/x.safetensors"):
        address = text.removeprefix("high=")
        scheme = address.partition("://")[0]
        with pytest.raises(UsageError, match=f"^`loras` {text}: {scheme}:// is not supported yet: {address}$"):
            parse(text)


def test_a_tilde_is_a_home_folder_where_a_loras_file_begins_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert parse("high=~/a.safetensors:0.8") == LoraRequest(tmp_path / "home" / "a.safetensors", 0.8, "expert.high")
    assert parse("./~/a.safetensors") == LoraRequest(tmp_path / "~" / "a.safetensors")


def test_hub_names_in_a_hub_source(tiny: Tiny, tmp_path: Path) -> None:
    """The names of the source do not matter for those of the LoRA."""
    source, made = tiny(T2V, "diffusers"), pairs()
    after = merged(source, write(tmp_path, spelled(made)))
    assert after.keys() == {f"{MODULES[module][0]}.weight" for module in made}
    (file,) = (source / "transformer").glob("*.safetensors")
    assert read_header(file).tensors.keys() > after.keys()
    with safe_open(file, "pt") as opened:
        for module, (up, down) in made.items():
            name = f"{MODULES[module][0]}.weight"
            assert same(after[name], sum_of(opened.get_tensor(name), (1.0, up, down)))
