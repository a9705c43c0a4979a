"""The tables against the tensor lists of the released files, and against the libraries that read them."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from header_lists import LISTS, architecture, list_id, name_of, read_list, refs, release_of, released, scheme_of
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from wanconv import models, testing
from wanconv.models import ARCHITECTURES, FAMILIES, expand, fingerprint, homeless, targets, vocabulary
from wanconv.models.match import fits, model_tensors
from wanconv.models.names import numbered, size_of
from wanconv.types.architecture import Architecture
from wanconv.types.tensors import Shape

TABLES = [(network, scheme) for network in ARCHITECTURES for scheme in network.schemes]
TABLE_IDS = [f"{network.name}-{scheme}" for network, scheme in TABLES]
DENOISERS = [network for family in FAMILIES for name, network in family.components.items() if name in models.DENOISERS]

GATED = "gated-gelu"
FINGERPRINTS = {  # facts/families.md section 0: DiffSynth-Studio's hashes of the released files
    "official/umt5": "9c8818c2cbea55eca56c7b447df170da",
    "official/clip-vit-h": "5941c53e207d62f20f9025686193c40b",
    "official/wan-vae-2.1": "ccc42284ea13e1ad04693284c7a09be6",
    "official/wan-vae-2.2": "e1de6c02cdac79f8b739f4d3698cd216",
    "hub/wan-vae-2.1": "ed4ea5824d55ec3107b09815e318123a",
}


@pytest.mark.parametrize("path", LISTS, ids=list_id)
def test_every_list_is_covered_exactly_and_gives_its_sizes(path: Path) -> None:
    network, dims = released(name_of(path))
    shapes = read_list(path)
    (fit,) = fits(refs(shapes))
    assert (fit.architecture, fit.differences) == (network, 0)
    assert fit.scheme == scheme_of(path) or network.name == "wav2vec2-large-xlsr"  # both schemes spell it alike
    assert {size: dims[size] for size in fit.dims} == fit.dims


@pytest.mark.parametrize("path", LISTS, ids=list_id)
def test_a_table_spells_out_every_list_name_by_name_and_shape_by_shape(path: Path) -> None:
    network, dims = released(name_of(path))
    expected = expand(network, scheme_of(path), dims)
    shapes = read_list(path)
    aliases: dict[str, str] = {}  # on disk -> the name that the table writes
    for role, index in numbered(network, dims):
        spelling = role.spellings[scheme_of(path)]
        for alias in spelling.aliases if spelling else ():
            aliases[alias.format(n=index)] = spelling.name.format(n=index) if spelling else ""
    assert {aliases.get(name, name): shape for name, shape in shapes.items()}.items() <= expected.items()
    optional = {target.name for target in targets(network, scheme_of(path), dims) if target.optional}
    assert set(expected) - optional <= {aliases.get(name, name) for name in shapes}


def test_every_table_and_every_release_has_a_list() -> None:
    lists = {(scheme_of(path), name_of(path)) for path in LISTS}
    wanted = {(scheme, network.name) for network, scheme in TABLES if network not in DENOISERS}
    for family in FAMILIES:
        denoiser = family.components.get("dit") or family.components["expert.high"]
        wanted |= {(scheme, release.name) for release in family.releases for scheme in denoiser.schemes}
    # wav2vec2's official and hub names are the same; of CogVideoX, conversions of hub names stand for lists: below
    others = {(scheme, name) for scheme, name in wanted if "cogvideox" in name and scheme != "hub"}
    assert wanted - lists == {("official", "wav2vec2-large-xlsr"), *others}


@pytest.mark.parametrize("path", [path for path in LISTS if scheme_of(path) == "official"], ids=list_id)
def test_released_files_have_the_fingerprints_of_diffsynth(path: Path) -> None:
    release = release_of(path)
    assert fingerprint(read_list(path)) == (release.fingerprint if release else FINGERPRINTS[list_id(path)])


def test_the_diffusers_vae_and_the_released_wav2vec2_have_the_fingerprints_of_diffsynth() -> None:
    (vae,) = [path for path in LISTS if list_id(path) == "hub/wan-vae-2.1"]
    assert fingerprint(read_list(vae)) == FINGERPRINTS["hub/wan-vae-2.1"]
    speech = architecture("wav2vec2-large-xlsr")  # weight_g and weight_v, unlike the list from the module
    assert fingerprint(expand(speech, "official", speech.full)) == "06be60f3a4526586d8431cd038a71486"


@pytest.mark.parametrize("path", [path for path in LISTS if "cogvideox" in str(release_of(path))], ids=list_id)
def test_cogvideox_is_known_by_the_fingerprint_of_its_diffusers_files(path: Path) -> None:
    release = release_of(path)
    assert release
    assert fingerprint(read_list(path)) == release.fingerprint


def test_a_fingerprint_does_not_depend_on_order_and_reads_tensors_as_well_as_shapes() -> None:
    shapes: dict[str, Shape] = {"b.weight": (2, 3), "a": ()}
    assert fingerprint(shapes) == fingerprint(dict(reversed(shapes.items()))) == fingerprint(refs(shapes))
    # printf 'a,a:,b.weight,b.weight:2_3' | md5sum
    assert fingerprint(shapes) == "615f158bcce31a546053e5575d95674e"


# Names against the libraries' own conversion: each value is a tag, so that a swap of equal shapes is seen.


def renamed(network: Architecture, dims: Mapping[str, int]) -> dict[str, str]:
    """Returns hub name -> official name, through the canonical names."""
    official = {target.sources: target.name for target in targets(network, "official", dims)}
    return {target.name: official[target.sources] for target in targets(network, "hub", dims)}


@pytest.mark.parametrize(
    "name",
    [
        *("wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-i2v-14b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b"),
        *("wan2.1-vace-1.3b", "wan2.1-vace-14b"),
    ],
)
def test_denoiser_names_agree_with_the_conversion_of_diffusers(name: str) -> None:
    network, dims = released(name)
    tags = {name: name for name in expand(network, "official", dims)}
    assert renamed(network, dims) == convert_wan_transformer_to_diffusers(tags)


def test_flf2v_names_agree_with_the_conversion_of_diffusers_but_for_the_name_it_forgets() -> None:
    network, dims = released("wan2.1-flf2v-14b")
    converted = convert_wan_transformer_to_diffusers({name: name for name in expand(network, "official", dims)})
    # diffusers 0.42.1 leaves this one as it is, though its own class calls it pos_embed
    converted["condition_embedder.image_embedder.pos_embed"] = converted.pop("img_emb.emb_pos")
    assert renamed(network, dims) == converted


def test_animate_is_split_squeezed_and_named_as_by_the_conversion_of_diffusers() -> None:
    network = architecture("wan-animate")
    shapes = expand(network, "official", network.tiny)
    # every row of every tensor is a number of its own
    rows = {name: torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) for name, shape in shapes.items()}
    official = {name: rows[name].expand(shapes[name]) + 10_000 * place for place, name in enumerate(shapes)}
    canonical = {
        source: tensor
        for target in targets(network, "official", network.tiny)
        for source, tensor in zip(target.sources, official[target.name].chunk(len(target.sources)), strict=True)
    }
    ours = {
        target.name: canonical[target.sources[0]].reshape(target.shape)
        for target in targets(network, "hub", network.tiny)
    }
    theirs = convert_wan_transformer_to_diffusers(dict(official))
    blurs = {name for name in theirs if name.endswith(".kernel")}  # which it leaves as they are; its class has none
    assert len(blurs) == 14
    assert ours.keys() == theirs.keys() - blurs
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(homeless(network, "hub", network.tiny)) == 14


COGVIDEOX = [network for network in ARCHITECTURES if network.name.startswith("cogvideox") and "vae" not in network.name]


@pytest.mark.parametrize("network", COGVIDEOX, ids=lambda network: network.name)
def test_cogvideox_is_made_of_its_training_checkpoints_as_the_script_of_diffusers_makes_it(
    network: Architecture,
) -> None:
    """huggingface/diffusers scripts/convert_cogvideox_to_diffusers.py, written out; the rows of every tensor are told
    apart."""
    dims = network.tiny
    shapes = expand(network, "official", dims)
    rows = {name: torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) for name, shape in shapes.items()}
    sat = {name: rows[name].expand(shapes[name]) + 10_000 * place for place, name in enumerate(shapes)}
    (fit,) = fits(refs(shapes))
    assert (fit.architecture, fit.scheme, fit.differences) == (network, "official", 0)
    canonical = {
        name.removeprefix("dit/"): torch.cat(
            [sat[piece.ref.name].flatten()[piece.start : piece.start + piece.count] for piece in tensor.pieces]
        )
        for name, tensor in model_tensors(fit, "dit", {}).items()
    }
    ours = {target.name: canonical[target.sources[0]].reshape(target.shape) for target in targets(network, "hub", dims)}
    wanted: dict[str, torch.Tensor] = {}
    for leaf in ("weight", "bias"):
        for name in ("patch_embed.proj", "patch_embed.text_proj"):
            wanted[f"{name}.{leaf}"] = sat[f"model.diffusion_model.mixins.{name}.{leaf}"]
        for count, layer in (("1", "0"), ("2", "2")):
            wanted[f"time_embedding.linear_{count}.{leaf}"] = sat[f"model.diffusion_model.time_embed.{layer}.{leaf}"]
            if "ofs" in dims:
                name = f"model.diffusion_model.ofs_embed.{layer}.{leaf}"
                wanted[f"ofs_embedding.linear_{count}.{leaf}"] = sat[name]
        final = "model.diffusion_model.mixins.final_layer"
        wanted[f"norm_final.{leaf}"] = sat[f"model.diffusion_model.transformer.final_layernorm.{leaf}"]
        wanted[f"norm_out.norm.{leaf}"] = sat[f"{final}.norm_final.{leaf}"]
        wanted[f"proj_out.{leaf}"] = sat[f"{final}.linear.{leaf}"]
        wanted[f"norm_out.linear.{leaf}"] = sat[f"{final}.adaLN_modulation.1.{leaf}"]
        for n in range(dims["n"]):
            block, layer = f"transformer_blocks.{n}", f"model.diffusion_model.transformer.layers.{n}"
            adaln = "model.diffusion_model.mixins.adaln_layer"
            q, k, v = sat[f"{layer}.attention.query_key_value.{leaf}"].chunk(3)
            wanted |= {
                f"{block}.attn1.to_q.{leaf}": q,
                f"{block}.attn1.to_k.{leaf}": k,
                f"{block}.attn1.to_v.{leaf}": v,
            }
            wanted[f"{block}.attn1.to_out.0.{leaf}"] = sat[f"{layer}.attention.dense.{leaf}"]
            wanted[f"{block}.attn1.norm_q.{leaf}"] = sat[f"{adaln}.query_layernorm_list.{n}.{leaf}"]
            wanted[f"{block}.attn1.norm_k.{leaf}"] = sat[f"{adaln}.key_layernorm_list.{n}.{leaf}"]
            wanted[f"{block}.norm1.norm.{leaf}"] = sat[f"{layer}.input_layernorm.{leaf}"]
            wanted[f"{block}.norm2.norm.{leaf}"] = sat[f"{layer}.post_attention_layernorm.{leaf}"]
            wanted[f"{block}.ff.net.0.proj.{leaf}"] = sat[f"{layer}.mlp.dense_h_to_4h.{leaf}"]
            wanted[f"{block}.ff.net.2.{leaf}"] = sat[f"{layer}.mlp.dense_4h_to_h.{leaf}"]
            chunks = sat[f"{adaln}.adaLN_modulations.{n}.1.{leaf}"].chunk(12)
            wanted[f"{block}.norm1.linear.{leaf}"] = torch.cat(chunks[0:3] + chunks[6:9])
            wanted[f"{block}.norm2.linear.{leaf}"] = torch.cat(chunks[3:6] + chunks[9:12])
    if network.name == "cogvideox-i2v":
        wanted["patch_embed.pos_embedding"] = sat["model.diffusion_model.mixins.pos_embed.pos_embedding"]
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("network", COGVIDEOX, ids=lambda network: network.name)
def test_comfyui_spells_cogvideox_as_its_own_model_does(network: Architecture) -> None:
    """Comfy-Org/ComfyUI comfy/ldm/cogvideo/model.py: diffusers' names but for these."""
    others = {
        "attn1.to_q": "q",
        "attn1.to_k": "k",
        "attn1.to_v": "v",
        "attn1.to_out.0": "attn_out",
        "attn1.norm_q": "norm_q",
        "attn1.norm_k": "norm_k",
        "ff.net.0.proj": "ff_proj",
        "ff.net.2": "ff_out",
    }
    comfyui = {target.sources: target.name for target in targets(network, "comfyui", network.tiny)}
    for target in targets(network, "hub", network.tiny):
        name, _, leaf = target.name.rpartition(".")
        first, _, rest = name.partition(".")
        if first == "transformer_blocks":
            number, _, module = rest.partition(".")
            name = f"blocks.{number}.{others.get(module, module)}"
        elif first in ("time_embedding", "ofs_embedding"):
            name = f"{first}_{rest}"
        assert comfyui.pop(target.sources) == f"{name}.{leaf}"
    assert comfyui == {}


def test_vae_2_1_names_agree_with_the_conversion_of_diffusers() -> None:
    network, dims = released("wan-vae-2.1")
    tags = {name: name for name in expand(network, "official", dims)}
    assert renamed(network, dims) == convert_wan_vae_to_diffusers(tags)


def library_model(network: Architecture) -> torch.nn.Module:
    """Returns the library's own class in the tiny sizes, without weights."""
    dims = network.tiny
    config: dict[str, Any] = {}
    for key, size in network.config["hub"]:
        if "*" not in key:
            config[key] = size_of(size, dims)
    with torch.device("meta"):
        match network.name:
            case "t5-v1.1":
                return T5EncoderModel(T5Config(**config, d_kv=dims["attn"] // dims["heads"], feed_forward_proj=GATED))  # type: ignore[no-any-return]
            case "umt5":
                return UMT5EncoderModel(UMT5Config(**config, d_kv=dims["attn"] // dims["heads"]))  # type: ignore[no-any-return]
            case "clip-vit-h":
                return CLIPVisionModelWithProjection(CLIPVisionConfig(**config, projection_dim=dims["joint"]))  # type: ignore[no-any-return]
            case "wav2vec2-large-xlsr":
                layers = {"conv_dim": (dims["conv"],) * 7, "conv_bias": True, "feat_extract_norm": "layer"}
                return Wav2Vec2ForCTC(Wav2Vec2Config(**config, **layers, do_stable_layer_norm=True))  # type: ignore[no-any-return]
            case "wan-vae-2.1":
                return AutoencoderKLWan(**config)  # type: ignore[no-any-return]
            case "wan-vae-2.2":
                return AutoencoderKLWan(**config, out_channels=12, patch_size=2, is_residual=True)  # type: ignore[no-any-return]
            case "cogvideox-vae":
                widths = tuple(factor * dims["c"] for factor in (1, 2, 2, 4))
                return AutoencoderKLCogVideoX(**config, block_out_channels=widths)  # type: ignore[no-any-return]
            case name if name.startswith("cogvideox"):
                learned = name == "cogvideox-i2v"
                options = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": learned}
                return CogVideoXTransformer3DModel(**config, **options, ofs_embed_dim=dims.get("ofs"))  # type: ignore[no-any-return]
            case _:
                head = dims["d"] // dims["heads"]
                if "image" in dims:
                    config |= {"image_dim": dims["image"], "added_kv_proj_dim": dims["d"]}
                if network.name == "wan-vace":
                    return WanVACETransformer3DModel(**config, attention_head_dim=head, vace_layers=[0, 2])  # type: ignore[no-any-return]
                if network.name == "wan-animate":
                    sizes = {str(512 >> level): 2 * min(1 << level, 16) for level in range(8)}
                    config |= {"motion_encoder_channel_sizes": sizes, "motion_encoder_dim": dims["style"]}
                    return WanAnimateTransformer3DModel(**config, attention_head_dim=head, inject_face_latents_blocks=2)  # type: ignore[no-any-return]
                if network.name == "wan-flf2v":
                    config |= {"pos_embed_seq_len": 514}
                return WanTransformer3DModel(**config, attention_head_dim=head)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "network", [network for network in ARCHITECTURES if "hub" in network.schemes], ids=lambda n: n.name
)
def test_the_library_builds_the_tiny_sizes_with_our_names_and_shapes(network: Architecture) -> None:
    ours = refs(expand(network, "hub", network.tiny))
    theirs = {name: tuple(tensor.shape) for name, tensor in library_model(network).state_dict().items()}
    (fit, *_) = fits(refs(theirs))
    assert (fit.architecture, fit.differences) == (network, 0)
    assert {size: network.tiny[size] for size in fit.dims} == fit.dims
    renamed_by_library = set(theirs) - set(ours)  # tied and reparametrised names
    assert len(renamed_by_library) == {"umt5": 1, "t5-v1.1": 1, "wav2vec2-large-xlsr": 2}.get(network.name, 0)


# Tables as such


@pytest.mark.parametrize("network", ARCHITECTURES, ids=lambda network: network.name)
def test_every_table_keeps_what_a_plugins_must(network: Architecture) -> None:
    testing.check_architecture(network)


def test_clip_is_fused_and_transposed_in_the_official_file_and_its_text_half_has_no_home_in_the_hub() -> None:
    clip = architecture("clip-vit-h")
    official = {target.name: target for target in targets(clip, "official", clip.full)}
    qkv = official["visual.transformer.31.attn.to_qkv.weight"]
    assert qkv.shape == (3840, 1280)
    assert qkv.sources == tuple(f"visual.blocks.31.attn.{letter}.weight" for letter in "qkv")
    assert official["visual.head"].transposed
    assert official["visual.head"].shape == (1280, 1024)
    assert official["visual.cls_embedding"].shape == (1, 1, 1280)
    assert len(homeless(clip, "hub", clip.full)) == 392  # 391 textual and log_scale
    assert not homeless(clip, "official", clip.full)


def test_a_vocabulary_lists_the_whole_family_with_known_or_released_counts() -> None:
    family = next(family for family in FAMILIES if family.name == "wan2.2-t2v-a14b")
    names = vocabulary(family)
    assert len(names) == len(set(names)) == 2 * 1095 + 242 + 194
    assert ("expert.low/blocks.39.ffn.up.weight", "linear", 39) in names
    assert ("expert.high/head.proj.bias", "bias", None) in names
    tiny = vocabulary(family, {"expert.high": family.components["expert.high"].tiny})
    assert {block for name, _, block in tiny if name.startswith("expert.high/")} == {None, 0, 1, 2}
    assert ("expert.low/blocks.39.ffn.up.weight", "linear", 39) in tiny


def test_s2v_counts_its_injectors_apart_from_its_blocks_and_has_no_hub_names() -> None:
    s2v = architecture("wan-s2v")
    assert s2v.schemes == ("official",)
    family = next(family for family in FAMILIES if family.components.get("dit") is s2v)
    injectors = [entry for entry in vocabulary(family) if entry[0].startswith("dit/audio_injector.11.")]
    assert len(injectors) == 12
    assert {block for _, _, block in injectors} == {None}
    assert "casual_audio_encoder.weights" in expand(s2v, "official", s2v.full)  # sic
    assert any(name.startswith("dit/causal_audio_encoder.") for name, _, _ in vocabulary(family))


def test_kinds_say_what_recipes_select_by() -> None:
    family = next(family for family in FAMILIES if family.name == "wan2.2-s2v-14b")
    kinds = {name: kind for name, kind, _ in vocabulary(family)}
    assert kinds["dit/blocks.0.modulation"] == "modulation"
    assert kinds["dit/head.modulation"] == "modulation"
    assert kinds["dit/blocks.0.self_attn.norm_q.weight"] == "norm"
    assert kinds["dit/blocks.0.cross_attn.norm_in.bias"] == "bias"
    assert kinds["dit/patch_embedding.weight"] == "conv"
    assert kinds["dit/causal_audio_encoder.state_weights"] == "constant"
    assert kinds["text_encoder/token_embedding.weight"] == "embed"
    assert kinds["vae/decoder.norm_out.weight"] == "norm"
    blocks = [kind for name, kind in kinds.items() if name.startswith("dit/blocks.")]
    assert blocks.count("linear") == 400  # 10 a block


def test_families_import_fast_and_without_torch() -> None:
    code = "import sys, wanconv.models; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
