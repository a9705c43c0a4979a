"""Which files of a repository a job needs, on the files of real repositories."""

import pytest

from wanconv.downloads.selection import Wish, components, owners, select
from wanconv.errors import UsageError
from wanconv.layouts import LAYOUTS
from wanconv.storage.hubs import RemoteFile

SHARDS = [f"diffusion_pytorch_model-0000{n}-of-00006.safetensors" for n in range(1, 7)]
INDEX = "diffusion_pytorch_model.safetensors.index.json"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
# As published, shortened: Wan-AI/Wan2.2-T2V-A14B, Wan-AI/Wan2.2-T2V-A14B-Diffusers, Wan-AI/Wan2.2-S2V-14B.
OFFICIAL = [
    ".gitattributes", "README.md", "configuration.json", "nohup.out", "Wan2.1_VAE.pth", T5,
    *(f"{expert}_noise_model/{name}" for expert in ("high", "low") for name in ("config.json", INDEX, *SHARDS)),
    "google/umt5-xxl/spiece.model", "google/umt5-xxl/tokenizer.json", "assets/comp_effic.png", "assets/logo.png",
]  # fmt: skip
DIFFUSERS = [
    "README.md", "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json",
    *(f"{folder}/{name}" for folder in ("transformer", "transformer_2") for name in ("config.json", INDEX, *SHARDS)),
    "text_encoder/config.json", "text_encoder/model.safetensors.index.json",
    "text_encoder/model-00001-of-00003.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip
WAV2VEC2 = "wav2vec2-large-xlsr-53-english"
S2V = [
    "README.md", "config.json", INDEX, *SHARDS[:4], "Wan2.1_VAE.pth", T5, "google/umt5-xxl/tokenizer.json",
    f"{WAV2VEC2}/config.json", f"{WAV2VEC2}/model.safetensors", f"{WAV2VEC2}/pytorch_model.bin",
    f"{WAV2VEC2}/flax_model.msgpack", f"{WAV2VEC2}/vocab.json", "assets/471504690.mp4",
]  # fmt: skip


def chosen(paths: list[str], *only: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> set[str]:
    files = [RemoteFile(path, 1, "sha256", "0" * 64) for path in paths]
    wanted, skipped = select(files, Wish(include, exclude, only))
    assert {file.path for file in wanted} | skipped.keys() == set(paths)
    return {file.path for file in wanted}


def test_examples_and_other_frameworks_copies_are_left_out() -> None:
    assert set(OFFICIAL) - chosen(OFFICIAL) == {"assets/comp_effic.png", "assets/logo.png"}
    assert chosen(DIFFUSERS) == set(DIFFUSERS)
    left = {f"{WAV2VEC2}/pytorch_model.bin", f"{WAV2VEC2}/flax_model.msgpack", "assets/471504690.mp4"}
    assert set(S2V) - chosen(S2V) == left


def test_a_pickled_file_without_safetensors_beside_it_is_taken() -> None:
    assert chosen([f"{WAV2VEC2}/pytorch_model.bin", "model.safetensors"]) == {
        f"{WAV2VEC2}/pytorch_model.bin",
        "model.safetensors",
    }


def test_components_pick_their_files_and_the_small_ones_of_all() -> None:
    shared = {".gitattributes", "README.md", "configuration.json", "nohup.out"}
    experts = {path for path in OFFICIAL if "_noise_model/" in path}
    assert chosen(OFFICIAL, "experts", "vae") == shared | experts | {"Wan2.1_VAE.pth"}
    assert chosen(OFFICIAL, "expert.low") == shared | {path for path in experts if path.startswith("low")}
    tokenizer = {path for path in OFFICIAL if path.startswith("google")}
    assert chosen(OFFICIAL, "text_encoder") == shared | tokenizer | {T5}
    assert chosen(DIFFUSERS, "vae") == {
        "README.md", "model_index.json", "scheduler/scheduler_config.json", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert chosen(S2V, "dit") == {"README.md", "config.json", INDEX, *SHARDS[:4]}


def test_weights_of_no_known_component_are_not_picked() -> None:
    assert chosen([*OFFICIAL, "lora.safetensors"], "vae") == chosen(OFFICIAL, "vae")


def test_globs_decide_over_what_is_of_use() -> None:
    assert chosen(OFFICIAL, include=("assets/*",)) == {"assets/comp_effic.png", "assets/logo.png"}
    assert chosen(OFFICIAL, "vae", include=("*.pth",)) == {"Wan2.1_VAE.pth"}
    assert chosen(OFFICIAL, exclude=("*_noise_model/*",)) == chosen(OFFICIAL, "vae", "text_encoder")


def test_every_place_of_every_layout_has_its_owner() -> None:
    for layout in LAYOUTS.values():
        for slot, place in layout.places.items():
            component = slot.partition(":")[0]
            assert component in components()
            for name in (f"{place.stem}.{place.container}", f"{place.stem}-00001-of-00002.safetensors"):
                assert component in owners(place.prefix + name)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(only=("unet",)), "there is no component 'unet'"),
        (Wish(only=("audio_encoder",)), "has no file of audio_encoder$"),
        (Wish(only=("vae",), include=("*.md",)), "no file of vae that `include` and `exclude` leave"),
        (Wish(include=("*.gguf",)), "no file of the repository is wanted"),
    ],
)
def test_a_wish_that_picks_nothing_is_refused(wish: Wish, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select([RemoteFile(path, 1, "sha256", "0" * 64) for path in OFFICIAL], wish)


def test_a_misspelt_component_gets_a_guess() -> None:
    with pytest.raises(UsageError) as caught:
        select([RemoteFile("a", 1, "sha256", "0" * 64)], Wish(only=("expert",)))
    assert caught.value.hint.startswith("did you mean expert")
