"""Families of models, what they are made of, and the sizes that were published."""

from wanconv.families.clip import CLIP
from wanconv.families.umt5 import UMT5
from wanconv.families.wan import FLF2V, I2V, I2V_CLIP, S2V, T2V, T2V_1_3B, TI2V
from wanconv.families.wan_vae import VAE_2_1, VAE_2_2
from wanconv.families.wav2vec2 import WAV2VEC2
from wanconv.tensors import Architecture, Family, Release

DENOISERS = ("dit", "expert.high", "expert.low")

# `shift` is the official default at 720p; fingerprints are those that DiffSynth-Studio ships for the released files
FAMILIES = (
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
)

ARCHITECTURES: tuple[Architecture, ...] = (T2V, I2V, TI2V, I2V_CLIP, FLF2V, S2V, UMT5, VAE_2_1, VAE_2_2, CLIP, WAV2VEC2)
