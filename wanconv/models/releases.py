"""Families of models, their components, and the released sizes."""

from collections.abc import Iterator

from wanconv.models import cogvideox
from wanconv.models.clip import CLIP
from wanconv.models.cogvideox_vae import VAE as COGVIDEOX_VAE
from wanconv.models.t5 import T5
from wanconv.models.umt5 import UMT5
from wanconv.models.wan import ANIMATE, FLF2V, I2V, I2V_CLIP, S2V, T2V, T2V_1_3B, TI2V, VACE, VACE_1_3B
from wanconv.models.wan_vae import VAE_2_1, VAE_2_2
from wanconv.models.wav2vec2 import WAV2VEC2
from wanconv.types.architecture import Architecture, Family, Release
from wanconv.types.registry import Distribution, Registry, Values, of_group, pickle_by_name

DENOISERS = ("dit", "expert.high", "expert.low")

_COGVIDEOX = {"text_encoder": T5, "vae": COGVIDEOX_VAE}
_ROTARY = "use_rotary_positional_embeddings"
_BREAKS = "every CogVideoX but 2B gives NaN or black frames when computed in it (zai-org/CogVideo issues 593 and 637)"

# `shift` is the official default at 720p, of CogVideoX that of its signal-to-noise ratio. Fingerprints are those that
# DiffSynth-Studio ships for the released files; it has none of CogVideoX, whose are of diffusers' names.
OWN_FAMILIES = (
    Family(
        name="wan2.1-t2v",
        components={"dit": T2V, "text_encoder": UMT5, "vae": VAE_2_1},
        model_type="t2v",
        shift=5.0,
        releases=(
            Release("wan2.1-t2v-1.3b", T2V_1_3B, "9269f8db9040a9d860eaca435be61814", "Wan-AI/Wan2.1-T2V-1.3B"),
            Release("wan2.1-t2v-14b", T2V.full, "aafcfd9672c3a2456dc46e1cb6e52c70", "Wan-AI/Wan2.1-T2V-14B"),
        ),
    ),
    Family(
        name="wan2.1-i2v",
        components={"dit": I2V_CLIP, "text_encoder": UMT5, "vae": VAE_2_1, "image_encoder": CLIP},
        model_type="i2v",
        shift=5.0,
        releases=(
            Release("wan2.1-i2v-14b", I2V_CLIP.full, "6bfcfb3b342cb286ce886889d519a77e", "Wan-AI/Wan2.1-I2V-14B-720P"),
        ),
    ),
    Family(
        name="wan2.1-flf2v",
        components={"dit": FLF2V, "text_encoder": UMT5, "vae": VAE_2_1, "image_encoder": CLIP},
        model_type="flf2v",
        shift=16.0,
        releases=(
            Release("wan2.1-flf2v-14b", FLF2V.full, "3ef3b1f8e1dab83d5b71fd7b617f859f", "Wan-AI/Wan2.1-FLF2V-14B-720P"),
        ),
    ),
    Family(
        name="wan2.1-vace",
        components={"dit": VACE, "text_encoder": UMT5, "vae": VAE_2_1},
        model_type="vace",
        shift=16.0,
        releases=(
            Release("wan2.1-vace-1.3b", VACE_1_3B, "a61453409b67cd3246cf0c3bebad47ba", "Wan-AI/Wan2.1-VACE-1.3B"),
            Release("wan2.1-vace-14b", VACE.full, "7a513e1f257a861512b1afd387a8ecd9", "Wan-AI/Wan2.1-VACE-14B"),
        ),
    ),
    Family(
        name="wan2.2-t2v-a14b",
        components={"expert.high": T2V, "expert.low": T2V, "text_encoder": UMT5, "vae": VAE_2_1},
        model_type="t2v",
        shift=12.0,
        releases=(Release("wan2.2-t2v-a14b", T2V.full, "aafcfd9672c3a2456dc46e1cb6e52c70", "Wan-AI/Wan2.2-T2V-A14B"),),
        boundary=0.875,
    ),
    Family(
        name="wan2.2-i2v-a14b",
        components={"expert.high": I2V, "expert.low": I2V, "text_encoder": UMT5, "vae": VAE_2_1},
        model_type="i2v",
        shift=5.0,
        releases=(Release("wan2.2-i2v-a14b", I2V.full, "5b013604280dd715f8457c6ed6d6a626", "Wan-AI/Wan2.2-I2V-A14B"),),
        boundary=0.9,
    ),
    # alibaba-pai's pair: boundary and shift are those of aigc-apps/VideoX-Fun examples/wan2.2_vace_fun
    Family(
        name="wan2.2-vace-fun-a14b",
        components={"expert.high": VACE, "expert.low": VACE, "text_encoder": UMT5, "vae": VAE_2_1},
        model_type="vace",
        shift=12.0,
        releases=(
            Release(
                "wan2.2-vace-fun-a14b",
                VACE.full,
                "7a513e1f257a861512b1afd387a8ecd9",
                "alibaba-pai/Wan2.2-VACE-Fun-A14B",
            ),
        ),
        boundary=0.875,
    ),
    Family(
        name="wan2.2-ti2v-5b",
        components={"dit": TI2V, "text_encoder": UMT5, "vae": VAE_2_2},
        model_type="ti2v",
        shift=5.0,
        releases=(Release("wan2.2-ti2v-5b", TI2V.full, "1f5ab7703c6fc803fdded85ff040c316", "Wan-AI/Wan2.2-TI2V-5B"),),
    ),
    Family(
        name="wan2.2-s2v-14b",
        components={"dit": S2V, "text_encoder": UMT5, "vae": VAE_2_1, "audio_encoder": WAV2VEC2},
        model_type="s2v",
        shift=3.0,
        releases=(Release("wan2.2-s2v-14b", S2V.full, "966cffdcc52f9c46c391768b27637614", "Wan-AI/Wan2.2-S2V-14B"),),
    ),
    Family(
        name="wan2.2-animate-14b",
        components={"dit": ANIMATE, "text_encoder": UMT5, "vae": VAE_2_1, "image_encoder": CLIP},
        model_type="animate",
        shift=5.0,
        releases=(
            Release(
                "wan2.2-animate-14b", ANIMATE.full, "31fa352acb8a1b1d33cd8764273d80a2", "Wan-AI/Wan2.2-Animate-14B"
            ),
        ),
    ),
    Family(
        name="cogvideox-2b",
        components={"dit": cogvideox.T2V, **_COGVIDEOX},
        model_type="t2v",
        shift=3.0,
        releases=(
            Release("cogvideox-2b", cogvideox.SIZE_2B, "639d5a7d21d64d9bdc986976ba029ff2", "zai-org/CogVideoX-2b"),
        ),
        config_key=(_ROTARY, False),
    ),
    Family(
        name="cogvideox-5b",
        components={"dit": cogvideox.T2V, **_COGVIDEOX},
        model_type="t2v",
        shift=1.0,
        releases=(
            Release("cogvideox-5b", cogvideox.T2V.full, "fd22314aec60bf4d09d7ca249ddadc1a", "zai-org/CogVideoX-5b"),
        ),
        config_key=(_ROTARY, True),
        breaks_in_fp16=_BREAKS,
    ),
    Family(
        name="cogvideox-5b-i2v",
        components={"dit": cogvideox.I2V, **_COGVIDEOX},
        model_type="i2v",
        shift=1.0,
        releases=(
            Release(
                "cogvideox-5b-i2v", cogvideox.I2V.full, "e6d10bd196c41e118b97373d9fc953fd", "zai-org/CogVideoX-5b-I2V"
            ),
        ),
        breaks_in_fp16=_BREAKS,
    ),
    Family(
        name="cogvideox1.5-5b",
        components={"dit": cogvideox.T2V_1_5, **_COGVIDEOX},
        model_type="t2v",
        shift=1.0,
        releases=(
            Release(
                "cogvideox1.5-5b", cogvideox.T2V_1_5.full, "92b363b3809a36a7fed0b77d714ffcc1", "zai-org/CogVideoX1.5-5B"
            ),
        ),
        breaks_in_fp16=_BREAKS,
    ),
    Family(
        name="cogvideox1.5-5b-i2v",
        components={"dit": cogvideox.I2V_1_5, **_COGVIDEOX},
        model_type="i2v",
        shift=1.0,
        releases=(
            Release(
                "cogvideox1.5-5b-i2v",
                cogvideox.I2V_1_5.full,
                "4b0c3af104793b4a19b4249a7c4b8cc7",
                "zai-org/CogVideoX1.5-5B-I2V",
            ),
        ),
        breaks_in_fp16=_BREAKS,
    ),
)

_FIRST = (  # in the order that sentences name them in
    *(T2V, I2V, TI2V, I2V_CLIP, FLF2V, VACE, S2V, ANIMATE, UMT5, VAE_2_1, VAE_2_2, CLIP, WAV2VEC2),
    *(cogvideox.T2V, cogvideox.I2V, cogvideox.T2V_1_5, cogvideox.I2V_1_5, T5, COGVIDEOX_VAE),
)
_OWN_ARCHITECTURES: tuple[Architecture, ...] = tuple(
    dict.fromkeys((*_FIRST, *(network for family in OWN_FAMILIES for network in family.components.values())))
)


GROUP = "wanconv.models"  # of entry points: a Family, an Architecture, or a list of them


def _families() -> Iterator[tuple[Family, Distribution]]:
    for value, origin in of_group(GROUP, Family, Architecture):
        if isinstance(value, Family):
            yield value, origin


def _architectures() -> Iterator[tuple[Architecture, Distribution]]:
    for value, origin in of_group(GROUP, Family, Architecture):
        for network in value.components.values() if isinstance(value, Family) else (value,):
            assert isinstance(network, Architecture)
            yield network, origin


FAMILY_TABLE = Registry("family", OWN_FAMILIES, _families)
ARCHITECTURE_TABLE = Registry("architecture", _OWN_ARCHITECTURES, _architectures)
FAMILIES: Values[Family] = Values(FAMILY_TABLE)
ARCHITECTURES: Values[Architecture] = Values(ARCHITECTURE_TABLE)


def family_named(name: str) -> Family:
    """Return a family; raises LookupError if there is none of this name."""
    return FAMILY_TABLE.named(name)


def architecture_named(name: str) -> Architecture:
    """Return an architecture; raises LookupError if there is none of this name."""
    return ARCHITECTURE_TABLE.named(name)


pickle_by_name(Family, family_named)
pickle_by_name(Architecture, architecture_named)
