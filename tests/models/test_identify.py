"""identify(): whole folders, lone files, experts by evidence only, and every refusal with its message."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from covering import name_of, some
from header_lists import RELEASES, architecture, part, refs, tiny_part

from wanconv.errors import InputError, Unrecognised, UsageError, WanconvError
from wanconv.models import ARCHITECTURES, DENOISERS, FAMILIES, expand, expert_unless_dense, homeless, identify, targets
from wanconv.types.architecture import Architecture, Family, Scheme
from wanconv.types.tensors import Checkpoint, Part, Shape

T2V, I2V, TI2V = architecture("wan-t2v"), architecture("wan-i2v"), architecture("wan-ti2v")
I2V_CLIP, S2V, UMT5 = architecture("wan-i2v-clip"), architecture("wan-s2v"), architecture("umt5")
VAE_2_1, VAE_2_2 = architecture("wan-vae-2.1"), architecture("wan-vae-2.2")
CLIP, WAV2VEC2 = architecture("clip-vit-h"), architecture("wav2vec2-large-xlsr")

# fmt: off
PLACES: Mapping[Scheme, Mapping[str, str]] = {
    "comfyui": {
        "dit":           "diffusion_models/cogvideox.safetensors",
        "text_encoder":  "text_encoders/t5xxl.safetensors",
        "vae":           "vae/cogvideox_vae.safetensors",
    },
    "official": {
        "dit":           "diffusion_pytorch_model.safetensors",
        "expert.high":   "high_noise_model/diffusion_pytorch_model.safetensors.index.json",
        "expert.low":    "low_noise_model/diffusion_pytorch_model.safetensors.index.json",
        "text_encoder":  "models_t5_umt5-xxl-enc-bf16.pth",
        "vae":           "Wan_VAE.pth",
        "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "audio_encoder": "wav2vec2-large-xlsr-53-english/model.safetensors",
    },
    "hub": {
        "dit":           "transformer/diffusion_pytorch_model.safetensors",
        "expert.high":   "transformer/diffusion_pytorch_model.safetensors",
        "expert.low":    "transformer_2/diffusion_pytorch_model.safetensors",
        "text_encoder":  "text_encoder/model.safetensors",
        "vae":           "vae/diffusion_pytorch_model.safetensors",
        "image_encoder": "image_encoder/model.safetensors",
    },
}
# fmt: on


def folder(*parts: Part, root: str = "/models/wan") -> Checkpoint:
    return Checkpoint(Path(root), parts)


def with_sidecars(root: Path, sidecars: Mapping[str, object], *parts: Part) -> Checkpoint:
    for path, content in sidecars.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(content))
    return Checkpoint(root, parts, tuple(sidecars))


def whole_folder(family: Family, scheme: Scheme) -> Checkpoint:
    places = PLACES[scheme]
    schemes = {name: _or_own(scheme, network) for name, network in family.components.items()}
    return folder(*(tiny_part(places[name], network, schemes[name]) for name, network in family.components.items()))


def _or_own(scheme: Scheme, network: Architecture) -> Scheme:
    return scheme if scheme in network.schemes else network.schemes[0]


def without(shapes: Mapping[str, Shape], *names: str) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if name not in names}


def tiny(network: Architecture, scheme: Scheme | None = None) -> dict[str, Shape]:
    return expand(network, scheme or network.schemes[0], network.tiny)


def refusal(kind: type[WanconvError], checkpoint: Checkpoint, **options: Any) -> WanconvError:
    with pytest.raises(kind) as caught:
        identify(checkpoint, **options)
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


def schemes(family: Family) -> tuple[Scheme, ...]:
    return next(network.schemes for name, network in family.components.items() if name in DENOISERS)


def whole_folders() -> Iterator[Any]:
    for family in FAMILIES:
        for scheme in schemes(family):
            if not family.config_key:  # two have the same names and shapes: below
                yield pytest.param(family, scheme, id=f"{family.name}-{scheme}")


# What is recognised


@pytest.mark.parametrize(("family", "scheme"), whole_folders())
def test_a_whole_folder_of_any_size_is_its_family(family: Family, scheme: Scheme) -> None:
    model = identify(whole_folder(family, scheme))
    assert model.family is family
    assert model.release is None  # a tiny size was never published
    assert model.absent == ()
    assert list(model.components) == list(family.components)
    for component in model.components.values():
        tiny_sizes = component.architecture.tiny
        assert component.scheme == _or_own(scheme, component.architecture) or component.name == "audio_encoder"
        assert {size: tiny_sizes[size] for size in component.dims} == component.dims
    sources = [piece.ref.name for tensor in model.tensors.values() for piece in tensor.pieces]
    assert set(sources) == {name for part in model.checkpoint.parts for name in part.tensors}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_denoiser_of_a_published_size_is_its_release(family: Family) -> None:
    for release in family.releases:
        denoisers = {name: network for name, network in family.components.items() if name in DENOISERS}
        scheme = schemes(family)[0]
        parts = [part(PLACES[scheme][name], expand(denoisers[name], scheme, release.dims)) for name in denoisers]
        model = identify(folder(*parts))
        assert model.release is release
        assert {component.fingerprint for component in model.components.values()} == {release.fingerprint}
        assert set(model.absent) == set(family.components) - set(denoisers)


@pytest.mark.parametrize(
    ("size", "config", "found"),
    [
        ("2b", {}, "cogvideox-2b"),
        ("5b", {}, "cogvideox-5b"),
        ("tiny", {}, "cogvideox-5b"),  # the one that fp16 breaks
        ("tiny", {"use_rotary_positional_embeddings": False}, "cogvideox-2b"),
        ("tiny", {"use_rotary_positional_embeddings": True}, "cogvideox-5b"),
        ("2b", {"use_rotary_positional_embeddings": True}, "cogvideox-5b"),
    ],
)
def test_two_families_of_the_same_network_are_told_apart_by_config_or_size(
    size: str, config: Mapping[str, object], found: str, tmp_path: Path
) -> None:
    network = architecture("cogvideox-t2v")
    dims = network.tiny if size == "tiny" else RELEASES[f"cogvideox-{size}"].dims
    parts = part(PLACES["hub"]["dit"], expand(network, "hub", dims))
    model = identify(with_sidecars(tmp_path, {"transformer/config.json": config}, parts))
    assert model.family.name == found
    assert (model.release is None) is (size == "tiny" or found != f"cogvideox-{size}")


def test_a_part_of_a_fused_tensor_is_a_run_of_its_rows() -> None:
    model = identify(folder(tiny_part("clip.pth", CLIP)))
    v = model.tensors["image_encoder/visual.blocks.2.attn.v.weight"]
    (piece,) = v.pieces
    assert (v.shape, v.block, v.role.kind) == ((64, 64), 2, "linear")
    assert piece.ref.name == "visual.transformer.2.attn.to_qkv.weight"
    assert (piece.start, piece.count) == (2 * 64 * 64, 64 * 64)
    head = model.tensors["image_encoder/visual.head.proj.weight"]
    assert (head.transposed, head.shape, head.pieces[0].ref.shape) == (True, (32, 64), (64, 32))
    assert model.tensors["image_encoder/textual.blocks.1.attn.q.weight"].block is None
    assert model.tensors["image_encoder/log_scale"].shape == ()


def test_the_second_copy_of_a_tied_embedding_is_kept_apart() -> None:
    shapes = tiny(UMT5, "hub")
    both = shapes | {"encoder.embed_tokens.weight": shapes["shared.weight"]}
    component = identify(folder(part("t5/model.safetensors", both))).components["text_encoder"]
    assert [(ref.name, name) for ref, name in component.tied] == [
        ("encoder.embed_tokens.weight", "text_encoder/token_embedding.weight")
    ]
    assert component.tensors["text_encoder/token_embedding.weight"].pieces[0].ref.name == "shared.weight"
    alone = without(both, "shared.weight")
    component = identify(folder(part("t5/model.safetensors", alone))).components["text_encoder"]
    assert component.tied == ()
    assert component.tensors["text_encoder/token_embedding.weight"].pieces[0].ref.name == "encoder.embed_tokens.weight"


def test_clip_without_its_projection_is_whole_in_the_hub_only() -> None:
    hub = without(tiny(CLIP, "hub"), "visual_projection.weight")
    component = identify(folder(part("image_encoder/model.safetensors", hub))).components["image_encoder"]
    assert "image_encoder/visual.head.proj.weight" not in component.tensors
    error = refusal(Unrecognised, folder(part("clip.pth", without(tiny(CLIP), "visual.head"))))
    assert error.details == ("missing: visual.head",)


def test_a_hub_file_tells_nothing_about_the_text_half_which_is_then_asked_for_in_its_released_size() -> None:
    component = identify(folder(tiny_part("image_encoder/m.safetensors", CLIP, "hub"))).components["image_encoder"]
    held = {name.partition("/")[2] for name in component.tensors}
    wanted = {source for target in targets(CLIP, "official", component.dims) for source in target.sources}
    assert len(wanted - held) == len(homeless(CLIP, "hub", component.dims)) == 392
    assert held <= wanted
    assert {source for target in targets(CLIP, "hub", component.dims) for source in target.sources} == held


def test_shared_components_alone_are_the_first_family_that_has_them() -> None:
    assert identify(folder(tiny_part("t5.pth", UMT5))).family.name == "wan2.1-t2v"
    assert identify(folder(tiny_part("vae.pth", VAE_2_2))).family.name == "wan2.2-ti2v-5b"
    assert identify(folder(tiny_part("vae.pth", VAE_2_1), tiny_part("clip.pth", CLIP))).family.name == "wan2.1-i2v"
    model = identify(folder(tiny_part("model.safetensors", WAV2VEC2)))
    assert (model.family.name, model.absent) == ("wan2.2-s2v-14b", ("dit", "text_encoder", "vae"))


# Which expert


@pytest.mark.parametrize(
    ("path", "root", "component", "evidence"),
    [
        ("high_noise_model/model.safetensors", "/m", "expert.high", "folder name high_noise_model"),
        ("low_noise_model/model.safetensors", "/m", "expert.low", "folder name low_noise_model"),
        ("model.safetensors", "/m/low_noise_model", "expert.low", "folder name low_noise_model"),
        (
            "wan2.2_t2v_high_noise_14B.safetensors",
            "/m",
            "expert.high",
            "file name wan2.2_t2v_high_noise_14B.safetensors",
        ),
        ("wan2.2_t2v_LOW_noise_14B.safetensors", "/m", "expert.low", "file name wan2.2_t2v_LOW_noise_14B.safetensors"),
        ("Wan2_2-T2V-A14B-LOW_bf16.safetensors", "/m", "expert.low", "file name Wan2_2-T2V-A14B-LOW_bf16.safetensors"),
    ],
)
@pytest.mark.parametrize("network", [T2V, I2V], ids=lambda network: network.name)
def test_a_lone_expert_is_told_by_its_folder_or_file_name(
    path: str, root: str, component: str, evidence: str, network: Architecture
) -> None:
    model = identify(folder(tiny_part(path, network), root=root))
    assert list(model.components) == [component]
    assert model.family.boundary is not None
    assert model.evidence == {component: evidence}


def test_a_name_that_says_high_of_something_else_is_no_evidence() -> None:
    model = identify(folder(tiny_part("high_quality_lowres.safetensors", T2V)))
    assert (model.family.name, model.evidence) == ("wan2.1-t2v", {})
    dense = identify(folder(tiny_part("high_noise_model/a.safetensors", TI2V)))
    assert list(dense.components) == ["dit"]


def test_the_experts_of_a_diffusers_folder_are_told_by_transformer_2() -> None:
    a14b = next(family for family in FAMILIES if family.name == "wan2.2-t2v-a14b")
    model = identify(whole_folder(a14b, "hub"))
    assert model.evidence == {
        "expert.high": "folder name transformer, next to transformer_2",
        "expert.low": "folder name transformer_2",
    }
    assert model.components["expert.high"].part.folder == "transformer"
    alone = identify(folder(tiny_part("transformer_2/m.safetensors", I2V, "hub")))
    assert list(alone.components) == ["expert.low"]


def test_a_lone_transformer_folder_is_the_high_expert_only_where_model_index_has_a_boundary(tmp_path: Path) -> None:
    lone = tiny_part("transformer/m.safetensors", T2V, "hub")
    dense = identify(with_sidecars(tmp_path, {"model_index.json": {"boundary_ratio": None}}, lone))
    assert (dense.family.name, list(dense.components)) == ("wan2.1-t2v", ["dit"])
    expert = identify(with_sidecars(tmp_path, {"model_index.json": {"boundary_ratio": 0.875}}, lone))
    assert (expert.family.name, list(expert.components)) == ("wan2.2-t2v-a14b", ["expert.high"])
    assert expert.evidence == {"expert.high": "folder name transformer, boundary_ratio 0.875 in model_index.json"}


def test_a_lone_denoiser_that_may_be_an_expert_is_said_to_be_one_unless_something_tells(tmp_path: Path) -> None:
    lone = tiny_part("transformer/m.safetensors", T2V, "hub")
    assert expert_unless_dense(identify(folder(lone))) == "wan2.2-t2v-a14b"
    assert expert_unless_dense(identify(folder(part("a.safetensors", expand(T2V, "official", T2V.full))))) is not None
    told = (
        with_sidecars(tmp_path, {"model_index.json": {"boundary_ratio": None}}, lone),
        folder(part("a.safetensors", expand(T2V, "official", RELEASES["wan2.1-t2v-1.3b"].dims))),  # no expert's size
        folder(lone, tiny_part("vae/m.safetensors", VAE_2_1, "hub")),
        folder(tiny_part("high_noise_model/m.safetensors", T2V)),
        folder(tiny_part("m.safetensors", TI2V)),
    )
    assert [expert_unless_dense(identify(checkpoint)) for checkpoint in told] == [None] * len(told)


def test_the_flag_names_the_role_of_a_lone_denoiser_even_beside_shared_components() -> None:
    model = identify(folder(tiny_part("a.safetensors", I2V), tiny_part("vae.pth", VAE_2_1)), expert="low")
    assert (model.family.name, model.evidence) == ("wan2.2-i2v-a14b", {"expert.low": '`expert="low"`'})
    assert model.absent == ("expert.high", "text_encoder")
    assert identify(folder(tiny_part("a.safetensors", T2V)), expert="high").family.name == "wan2.2-t2v-a14b"
    assert identify(folder(tiny_part("a.safetensors", T2V))).family.name == "wan2.1-t2v"


def test_a_lone_expert_without_evidence_needs_the_flag() -> None:
    error = refusal(UsageError, folder(tiny_part("a.safetensors", I2V)))
    assert error.message == "a.safetensors is one of two experts, and neither folder nor file name says which"
    assert error.hint == 'say `expert="high"` or `expert="low"`'


def test_two_experts_without_evidence_are_refused() -> None:
    error = refusal(InputError, folder(tiny_part("a.safetensors", I2V), tiny_part("b.safetensors", I2V)))
    assert error.details == ("a.safetensors", "b.safetensors")
    error = refusal(InputError, folder(tiny_part("a.safetensors", T2V), tiny_part("b.safetensors", T2V)))
    assert error.message == "a.safetensors and b.safetensors are both dit"


def test_one_expert_with_evidence_and_one_without_are_refused() -> None:
    parts = tiny_part("high_noise_model/a.safetensors", T2V), tiny_part("b.safetensors", T2V)
    error = refusal(InputError, folder(*parts))
    assert error.message == "the denoisers belong to no family together"
    assert error.details == ("high_noise_model/a.safetensors: expert.high, wan-t2v", "b.safetensors: dit, wan-t2v")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ((tiny_part("a.safetensors", TI2V),), "a.safetensors (wan-ti2v)"),
        ((tiny_part("vae.pth", VAE_2_1),), "no denoiser"),
        (
            (tiny_part("high_noise_model/a.safetensors", T2V), tiny_part("low_noise_model/a.safetensors", T2V)),
            "high_noise_model/a.safetensors (wan-t2v), low_noise_model/a.safetensors (wan-t2v)",
        ),
    ],
)
def test_the_flag_is_refused_where_there_is_no_lone_expert(parts: tuple[Part, ...], found: str) -> None:
    error = refusal(UsageError, folder(*parts), expert="high")
    assert error.message == f'`expert="high"` names the role of a lone Wan 2.2 expert, but /models/wan holds {found}'


def test_the_flag_must_not_contradict_the_folder() -> None:
    error = refusal(UsageError, folder(tiny_part("low_noise_model/a.safetensors", T2V)), expert="high")
    assert '`expert="high"` contradicts the folder name low_noise_model' in error.message


def test_folder_and_file_name_must_not_contradict_each_other() -> None:
    error = refusal(InputError, folder(tiny_part("high_noise_model/wan_low_noise.safetensors", T2V)))
    assert error.details == ("folder name high_noise_model says high", "file name wan_low_noise.safetensors says low")


def test_two_experts_of_different_sizes_are_no_pair() -> None:
    low = part("low_noise_model/a.safetensors", expand(T2V, "official", {**T2V.tiny, "n": 2}))
    error = refusal(InputError, folder(tiny_part("high_noise_model/a.safetensors", T2V), low))
    assert error.message.endswith("are not a pair of experts: n is 3 and 2")


# What does not fit


def test_a_missing_an_extra_and_a_wrongly_shaped_tensor_are_named() -> None:
    shapes = without(tiny(T2V), "blocks.1.ffn.0.weight", "head.head.bias")
    shapes |= {"blocks.1.ffn.0.weights": (256, 128), "blocks.2.norm3.bias": (127,)}
    error = refusal(Unrecognised, folder(part("a.safetensors", shapes)))
    assert error.message == (
        "a.safetensors fits no known network; the nearest is wan-t2v (official names): "
        "2 missing, 1 unknown, 1 wrongly shaped"
    )
    assert error.details == (
        "shape of blocks.2.norm3.bias: found (127), expected (128)",
        "missing: head.head.bias",
        "missing: blocks.1.ffn.0.weight",
        "unknown: blocks.1.ffn.0.weights",
    )


@pytest.mark.parametrize("network", some(ARCHITECTURES, 4), ids=name_of)
def test_every_single_missing_or_misshapen_tensor_is_an_error_that_names_it(network: Architecture) -> None:
    shapes = tiny(network)
    names = list(shapes)
    for name in names[:: max(1, len(names) // 25)]:
        error = refusal(Unrecognised, folder(part("a.safetensors", without(shapes, name))))
        assert f"missing: {name}" in error.details
        error = refusal(Unrecognised, folder(part("a.safetensors", shapes | {name: (*shapes[name], 2)})))
        assert any(line.startswith(f"shape of {name}: ") for line in error.details)


def test_a_missing_block_in_the_middle_is_named_tensor_by_tensor_up_to_ten() -> None:
    shapes = {name: shape for name, shape in tiny(T2V).items() if name.split(".")[:2] != ["blocks", "1"]}
    error = refusal(Unrecognised, folder(part("a.safetensors", shapes)))
    assert "27 missing, 0 unknown, 0 wrongly shaped" in error.message
    assert len(error.details) == 11
    assert error.details[-1] == "… and 17 more"


@pytest.mark.parametrize("number", ["3", "01", "999999", "9" * 400, "-1", "١"])
def test_a_stray_block_number_is_unknown_and_does_not_count(number: str) -> None:
    name = f"blocks.{number}.modulation"
    error = refusal(Unrecognised, folder(part("a.safetensors", tiny(T2V) | {name: (1, 6, 128)})))
    assert error.details == (f"unknown: {name}",)


def test_a_file_of_another_network_is_named_as_such() -> None:
    error = refusal(Unrecognised, folder(part("lora.safetensors", {"lora_A.weight": (4, 4)})))
    assert error.message == "lora.safetensors: its only tensor is not in a network that wanconv knows"
    assert error.details == ("unknown: lora_A.weight",)


def test_an_empty_file_and_an_empty_folder_hold_nothing() -> None:
    assert "none of its 0 tensors" in refusal(Unrecognised, folder(part("a.safetensors", {}))).message
    assert refusal(InputError, folder()).message == "/models/wan holds no weights"


def test_all_unknown_files_are_reported_at_once() -> None:
    broken = part("vae.pth", without(tiny(VAE_2_1), "conv1.bias"))
    error = refusal(Unrecognised, folder(part("a.safetensors", {"x": (1,)}), broken, tiny_part("t5.pth", UMT5)))
    assert error.message.endswith("that wanconv knows; 2 files fit none")
    assert any(line.startswith("vae.pth fits no known network") for line in error.details)
    assert "missing: conv1.bias" in error.details


def test_another_number_of_latent_channels_is_a_wrong_shape() -> None:
    shapes = tiny(T2V) | {"patch_embedding.weight": (128, 20, 1, 2, 2)}
    error = refusal(Unrecognised, folder(part("a.safetensors", shapes)))
    assert error.details == ("shape of patch_embedding.weight: found (128, 20, 1, 2, 2), expected (128, 16, 1, 2, 2)",)


def test_tied_copies_of_different_shapes_are_an_error() -> None:
    shapes = tiny(UMT5, "hub") | {"encoder.embed_tokens.weight": (511, 64)}
    error = refusal(Unrecognised, folder(part("t5.safetensors", shapes)))
    assert error.details == ("shape of encoder.embed_tokens.weight: found (511, 64), expected (512, 64)",)


def test_two_files_for_one_component_are_both_named() -> None:
    error = refusal(InputError, folder(tiny_part("a.pth", VAE_2_1), tiny_part("b/vae.safetensors", VAE_2_1, "hub")))
    assert error.message == "a.pth and b/vae.safetensors are both vae"


def test_a_component_of_another_family_is_refused() -> None:
    error = refusal(InputError, folder(tiny_part("dit.safetensors", S2V), tiny_part("vae.pth", VAE_2_2)))
    assert error.message == ("vae.pth is wan-vae-2.2, which wan2.2-s2v-14b does not use: its vae is wan-vae-2.1")
    error = refusal(InputError, folder(tiny_part("dit.safetensors", TI2V), tiny_part("clip.pth", CLIP)))
    assert error.message == "clip.pth is clip-vit-h, which wan2.2-ti2v-5b does not use: it has no image_encoder"
    error = refusal(InputError, folder(tiny_part("vae.pth", VAE_2_2), tiny_part("clip.pth", CLIP)))
    assert error.message == "no family has all of wan-vae-2.2, clip-vit-h"


def test_two_different_denoisers_are_no_family() -> None:
    error = refusal(InputError, folder(tiny_part("a.safetensors", TI2V), tiny_part("b.safetensors", S2V)))
    assert error.details == ("a.safetensors: dit, wan-ti2v", "b.safetensors: dit, wan-s2v")


# config.json

OFFICIAL_CONFIG = {
    "_class_name": "WanModel",
    "model_type": "t2v",
    "dim": 128,
    "ffn_dim": 256,
    "freq_dim": 32,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 3,
    "text_len": 512,
}
HUB_CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 3,
    "ffn_dim": 256,
    "text_dim": 64,
    "freq_dim": 32,
    "image_dim": None,
}


def test_the_config_in_the_root_of_an_official_folder_is_the_denoisers(tmp_path: Path) -> None:
    parts = tiny_part("a.safetensors", T2V), tiny_part("t5.pth", UMT5), tiny_part("vae.safetensors", VAE_2_1, "hub")
    components = identify(with_sidecars(tmp_path, {"config.json": OFFICIAL_CONFIG}, *parts)).components
    assert components["dit"].config == OFFICIAL_CONFIG
    assert components["dit"].dims["heads"] == 2
    assert components["text_encoder"].config is None
    assert components["vae"].config is None


def test_each_component_of_a_diffusers_folder_has_its_own_config(tmp_path: Path) -> None:
    configs = {
        "transformer/config.json": HUB_CONFIG,
        "vae/config.json": {"base_dim": 8, "z_dim": 16},
        "text_encoder/config.json": {"d_model": 64, "num_heads": 2, "d_kv": 32, "model_type": "umt5"},
    }
    parts = (
        tiny_part("transformer/a.safetensors", T2V, "hub"),
        tiny_part("vae/a.safetensors", VAE_2_1, "hub"),
        tiny_part("text_encoder/a.safetensors", UMT5, "hub"),
    )
    components = identify(with_sidecars(tmp_path, configs, *parts)).components
    assert [component.config for component in components.values()] == [
        configs["transformer/config.json"],
        configs["text_encoder/config.json"],
        configs["vae/config.json"],
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_layers": 40}, "num_layers is 40, but a.safetensors has 3"),
        ({"dim": 5120}, "dim is 5120, but a.safetensors has 128"),
        ({"in_dim": 36}, "in_dim is 36, but a.safetensors has 16"),
        ({"ffn_dim": "256"}, "ffn_dim is '256', but a.safetensors has 256"),
        ({"num_heads": 3}, "128 does not divide into 3 heads"),
        ({"num_heads": "2"}, "num_heads is '2', not a whole number"),
        ({"model_type": "i2v"}, "model_type is 'i2v', but a.safetensors is wan2.1-t2v: 't2v'"),
    ],
)
def test_an_official_config_that_contradicts_the_tensors_is_an_error(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    checkpoint = with_sidecars(tmp_path, {"config.json": OFFICIAL_CONFIG | change}, tiny_part("a.safetensors", T2V))
    error = refusal(InputError, checkpoint)
    assert error.message == f"config.json: {said}"


def test_a_hub_config_that_contradicts_the_tensors_is_an_error(tmp_path: Path) -> None:
    config = HUB_CONFIG | {"attention_head_dim": 128, "num_layers": 30}
    lone = tiny_part("transformer/a.safetensors", T2V, "hub")
    error = refusal(InputError, with_sidecars(tmp_path, {"transformer/config.json": config}, lone))
    assert error.message == (
        "transformer/config.json: num_attention_heads*attention_head_dim is 256, "
        "but transformer/a.safetensors has 128 (and 1 more)"
    )
    assert error.details[1] == "num_layers is 30, but transformer/a.safetensors has 3"


def test_a_shape_of_the_wrong_rank_does_not_stop_the_report() -> None:
    scalar = replace(part("a.safetensors", tiny(T2V)), tensors=refs(dict.fromkeys(tiny(T2V), ())))
    error = refusal(Unrecognised, folder(scalar))
    assert "wrongly shaped" in error.message
    assert error.details[0].startswith("shape of patch_embedding.weight: found (), expected (d, 16, 1, 2, 2)")


def test_a_network_of_size_zero_is_no_network() -> None:
    shapes = {name: tuple(0 if size == 128 else size for size in shape) for name, shape in tiny(T2V).items()}
    error = refusal(Unrecognised, folder(part("a.safetensors", shapes)))
    assert "0 missing, 0 unknown, 91 wrongly shaped" in error.message


@pytest.mark.parametrize("name", ["wan2.1-vace", "wan2.2-animate"])
def test_a_relative_that_is_not_built_yet_is_unrecognised_by_what_it_has_more(name: str) -> None:
    extra = {"wan2.1-vace": "vace_patch_embedding.weight", "wan2.2-animate": "pose_patch_embedding.weight"}[name]
    error = refusal(Unrecognised, folder(part("a.safetensors", tiny(T2V) | {extra: (128, 96, 1, 2, 2)})))
    assert error.details == (f"unknown: {extra}",)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "is not valid JSON: Expecting"), (b"\xff\xfe{", "is not valid JSON: "), (b"[1]", "holds no JSON object")],
)
def test_a_config_that_is_broken_is_an_error_and_not_ignored(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    error = refusal(InputError, Checkpoint(tmp_path, (tiny_part("a.safetensors", T2V),), ("config.json",)))
    assert error.message.startswith(f"{tmp_path / 'config.json'} {said}")


def test_a_broken_model_index_is_an_error_where_it_should_tell_the_expert(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes(b"")
    part = tiny_part("transformer/diffusion_pytorch_model.safetensors", T2V, "hub")
    error = refusal(InputError, Checkpoint(tmp_path, (part,), ("model_index.json",)))
    assert error.message.startswith(f"{tmp_path / 'model_index.json'} is not valid JSON")
