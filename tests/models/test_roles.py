"""Which expert: names as people give them, folders, headers and configs, and what none of them says."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from header_lists import RELEASES, architecture, part, tiny_part

from wanconv.errors import InputError, UsageError
from wanconv.models import expand, expert_named, expert_unless_dense, identify
from wanconv.models.roles import said, words_of
from wanconv.types.model import Model
from wanconv.types.tensors import Checkpoint, Part

T2V, I2V, VACE = architecture("wan-t2v"), architecture("wan-i2v"), architecture("wan-vace")

# Of the high expert, as Comfy-Org, Kijai, LightX2V, QuantStack, TurboDiffusion and the makers of merges name it.
NAMES = (
    "wan2.2_t2v_high_noise_14B_fp8_scaled",
    "wan2.2_fun_vace_high_noise_14B_bf16",
    "Wan2_2-I2V-A14B-HIGH_fp8_e5m2_scaled_KJ",
    "Wan2_2-T2V-A14B-HIGH_bf16",
    "Wan2.2-I2V-A14B-HighNoise-Q8_0",
    "wan2.2_i2v_A14b_high_noise_lightx2v",
    "wan2.2_i2v_A14b_high_noise_lightx2v_4step_720p_260412",
    "wan2.2_i2v_A14b_high_noise_scaled_fp8_e4m3_lightx2v_4step_comfyui",
    "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217",
    "Wan2.2-Lightning_I2V-A14B-4steps-lora_HIGH_fp16",
    "Wan2.2-VACE-Fun-A14B_high_noise_model",
    "TurboWan2.2-I2V-A14B-high-720P-quant",
    "wan2.2_i2v_high_int8_convrot",
    "Wan22_Bernini_HIGH_fp8_scaled",
    "bernini_r_wan2.2_high_bf16",
    "wan22EnhancedLightning_v2I2VFP8HIGH",
    "smoothMixWan22_I2VHigh",
    "DasiwaWAN22I2V14BLightspeed_synthseductionHighV9",
    "wan22_i2v_highnoise",
    "wan22-i2v-HIGHfp16",
    "wan22_4steps_high",
    "wan22_high_rank64",
    "wan22_high_noise_lowvram",
    "high_noise_1030",
)
NO_EVIDENCE = (
    *("Wan2.2_A14B_lowVRAM", "wan22-a14b-lowCFG-merge", "wan22_slow_noise_test", "wan22_low_vram", "wan22_vram_low"),
    *("wan22_lowres", "wan22_high_res", "wan22_highquality", "wan22_high_quality", "wan22_HighQuality_v2"),
    *("wan22_low_step", "wan22_cfg_low", "wan22_highlora", "wan22_low_rank_adapter", "wan22_ultra_high"),
    *("wan22_below_noise", "wan22_SLOWNOISE", "wan22_flow_noise", "wan22_thigh_noise", "wan22_lower"),
)
BOTH = ("wan22_low_high_noise", "wan22_HighLow_merge", "wan22_high_noise_and_low_noise", "wan22_high2low")
OPEN = ("wan22_i2v_low_drama", "wan22_i2v_highSnow")


def folder(*parts: Part, root: str = "/models/wan") -> Checkpoint:
    return Checkpoint(Path(root), parts)


def lone(name: str, network: str = "wan-i2v", root: str = "/models/wan", **metadata: str) -> Checkpoint:
    return folder(replace(tiny_part(name, architecture(network)), metadata=metadata), root=root)


def with_config(tmp_path: Path, config: Mapping[str, object], network: str = "wan-i2v") -> Checkpoint:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    return Checkpoint(tmp_path, (tiny_part("x/a.safetensors", architecture(network)),), ("x/config.json",))


def role(model: Model) -> str:
    (component,) = model.components
    return component


def opposite(name: str) -> str:
    words = {"high": "low", "High": "Low", "HIGH": "LOW"}
    found = next(word for word in ("HIGH", "High", "high") if word in name)
    return name.replace(found, words[found], 1) if "lowvram" not in name else "wan22_low_noise_highres"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_high_expert_is_read_as_a_person_reads_it_and_so_is_the_low_ones(name: str) -> None:
    assert (expert_named(name), expert_named(opposite(name))) == ("high", "low")
    for network in ("wan-i2v", "wan-t2v", "wan-vace"):
        for suffix in (".safetensors", ".gguf"):
            assert role(identify(lone(name + suffix, network))) == "expert.high"
            assert role(identify(lone(opposite(name) + suffix, network))) == "expert.low"


@pytest.mark.parametrize("name", [*NO_EVIDENCE, *BOTH, *OPEN])
def test_a_name_that_says_something_else_or_both_is_asked_for(name: str) -> None:
    assert expert_named(name) is None
    with pytest.raises(UsageError) as asked:
        identify(lone(f"{name}.safetensors"))
    assert asked.value.hint == 'say `expert="high"` or `expert="low"`'
    told = identify(lone(f"{name}.safetensors"), expert="low")
    assert told.evidence == {"expert.low": '`expert="low"`'}


def test_words_end_at_separators_at_capitals_and_between_letters_and_digits() -> None:
    assert words_of("wan22_I2VHighV9.fp16") == ["wan", "22", "i", "2", "v", "high", "v", "9", "fp", "16"]
    assert words_of("SLOWfp8-HIGHfp8 ÉhighÜ") == ["slo", "wfp", "8", "high", "fp", "8", "éhighü"]


def test_the_question_quotes_what_was_not_clear() -> None:
    with pytest.raises(UsageError, match=r"the file name wan_low_high_noise\.safetensors speaks of both"):
        identify(lone("wan_low_high_noise.safetensors"))
    with pytest.raises(UsageError, match=r"'low drama' in the file name x_low_drama\.safetensors need not mean"):
        identify(lone("x_low_drama.safetensors"))


# Networks that are dense as well: T2V and VACE


@pytest.mark.parametrize("network", ["wan-t2v", "wan-vace"])
@pytest.mark.parametrize(
    "name",
    [
        *("wan2.1_t2v_14b_high_quality", "wan2.1_t2v_14B_HIGH", "Wan21-high-low-mix", "high_quality_lowres"),
        *("wan2.2_t2v_rapid", "x_low_drama", "wan_slow_noise", "t2v_lowVRAM"),
    ],
)
def test_a_dense_denoiser_stays_dense_and_a_note_says_what_else_it_may_be(name: str, network: str) -> None:
    model = identify(lone(f"{name}.safetensors", network))
    assert (role(model), model.evidence) == ("dit", {})
    assert expert_unless_dense(model) in ("wan2.2-t2v-a14b", "wan2.2-vace-fun-a14b")


@pytest.mark.parametrize("network", ["wan-t2v", "wan-vace"])
@pytest.mark.parametrize(
    "name", ["Wan2.2_A14B_lowVRAM", "wan22-a14b-lowCFG-merge", "wan2.2_t2v_low_drama", "t2v_low_high_noise"]
)
def test_where_an_expert_is_meant_and_not_which_is_asked_for_though_it_may_be_dense(name: str, network: str) -> None:
    with pytest.raises(UsageError, match="may be one of two experts") as asked:
        identify(lone(f"{name}.safetensors", network))
    assert asked.value.hint == 'say `expert="high"` or `expert="low"`; a dense denoiser needs another name'
    assert role(identify(lone(f"{name}.safetensors", network), expert="high")) == "expert.high"


def test_a_lone_word_makes_no_expert_of_a_size_that_was_released_dense_alone() -> None:
    for release, network in (("wan2.1-t2v-1.3b", T2V), ("wan2.1-vace-1.3b", VACE)):
        dims = RELEASES[release].dims
        for name, found in (("a_HIGH", "dit"), ("Wan2.2-A14B", "dit"), ("a_high_noise", "expert.high")):
            model = identify(folder(part(f"{name}.safetensors", expand(network, "official", dims))))
            assert role(model) == found


# Other witnesses


@pytest.mark.parametrize("where", ["HighNoise", "high_noise_model", "high_noise_1030", "HIGH", "wan22-i2v-high"])
def test_the_folder_says_it(where: str) -> None:
    assert identify(lone(f"{where}/a.safetensors")).evidence == {"expert.high": f"folder name {where}"}
    assert identify(lone("a.safetensors", root=f"/models/{where}")).evidence == {"expert.high": f"folder name {where}"}
    low = where.replace("HIGH", "LOW").replace("High", "Low").replace("high", "low")
    assert role(identify(lone(f"{low}/a.safetensors", "wan-t2v"))) == "expert.low"


def test_a_folder_of_both_says_nothing_and_hides_nothing() -> None:
    parts = [tiny_part(f"wan22_high_low/x_{word}.safetensors", T2V) for word in ("HIGH", "LOW")]
    assert list(identify(folder(*parts)).components) == ["expert.high", "expert.low"]
    parts = [tiny_part(f"HighNoise/x_{word}_noise.safetensors", I2V) for word in ("high", "low")]
    assert list(identify(folder(*parts)).components) == ["expert.high", "expert.low"]


def test_the_header_says_it() -> None:
    kijai = {"model_type": "Wan2_2-T2V-A14B-HIGH"}
    evidence = {"expert.high": "header's model_type Wan2_2-T2V-A14B-HIGH"}
    for network in ("wan-t2v", "wan-i2v"):
        assert identify(lone("a.safetensors", network, **kijai)).evidence == evidence
    assert identify(lone("wan_low_high_noise.safetensors", **kijai)).evidence == evidence  # it outweighs what is open
    dense = identify(lone("a_HIGH.safetensors", "wan-t2v", model_type="Wan2_1-T2V-14B"))
    assert role(dense) == "dit"
    gguf = {"general.name": "Wan2.2 I2V A14B LowNoise"}
    assert identify(lone("a.gguf", **gguf)).evidence == {"expert.low": f"header's general.name {gguf['general.name']}"}
    with pytest.raises(UsageError, match="the header's model_type Wan2_2-T2V-A14B says A14B, and not which of the two"):
        identify(lone("a.safetensors", "wan-t2v", model_type="Wan2_2-T2V-A14B"))


def test_the_config_says_it(tmp_path: Path) -> None:
    model = identify(with_config(tmp_path, {"_name_or_path": "/somewhere/Wan2.2-I2V-A14B/low_noise_model/"}))
    assert model.evidence == {"expert.low": "config's _name_or_path low_noise_model"}


def test_two_names_that_differ_in_high_and_low_alone_are_a_pair() -> None:
    parts = [tiny_part(f"i2v_{word}_drama.safetensors", I2V) for word in ("high", "low")]
    assert identify(folder(*parts)).evidence == {
        "expert.high": "file name i2v_high_drama.safetensors, next to i2v_low_drama.safetensors",
        "expert.low": "file name i2v_low_drama.safetensors, next to i2v_high_drama.safetensors",
    }
    for network in (T2V, VACE):
        parts = [tiny_part(f"wan2.1_merge_{word}.safetensors", network) for word in ("HIGH", "LOW")]
        assert list(identify(folder(*parts)).components) == ["expert.high", "expert.low"]
    parts = [tiny_part(f"i2v_{word}_quality.safetensors", I2V) for word in ("high", "low")]
    with pytest.raises(InputError, match="is one of two experts"):
        identify(folder(*parts))


# Contradictions


@pytest.mark.parametrize("network", ["wan-t2v", "wan-i2v", "wan-vace"])
def test_a_contradiction_is_refused_and_both_are_quoted(network: str) -> None:
    checkpoint = lone("LowNoise/x_HIGH_fp16.safetensors", network, model_type="Wan2_2-T2V-A14B-HIGH")
    with pytest.raises(InputError, match="contradicts itself") as refused:
        identify(checkpoint)
    assert refused.value.details == (
        "folder name LowNoise says low",
        "file name x_HIGH_fp16.safetensors says high",
        "header's model_type Wan2_2-T2V-A14B-HIGH says high",
    )
    assert refused.value.hint == 'rename the file or its folder, or say `expert="high"` or `expert="low"`'
    told = identify(checkpoint, expert="high")
    assert told.evidence == {"expert.high": '`expert="high"`, against the folder name LowNoise'}


def test_the_flag_does_not_outvote_witnesses_that_agree() -> None:
    with pytest.raises(UsageError, match=r"contradicts the header's model_type Wan2_2-I2V-A14B-LOW, which says low"):
        identify(lone("a.safetensors", model_type="Wan2_2-I2V-A14B-LOW"), expert="high")


def test_a_strangers_header_is_quoted_in_one_short_line() -> None:
    with pytest.raises(UsageError) as asked:
        identify(lone("a.safetensors", "wan-t2v", model_type="A14B\x1b[2J\n" + "x" * 10_000))
    assert "\x1b" not in asked.value.message
    assert len(asked.value.message) < 300
    assert said("high" * 100_000).weights == {}
    assert len(words_of("low-" * 1_000_000)) == 250
