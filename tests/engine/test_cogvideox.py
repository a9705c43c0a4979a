"""CogVideoX's networks, streamed, against diffusers' and transformers' own calls: denoisers, T5, VAE, schedulers."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_weights import FolderWeights
from torch import Tensor

from wanconv import errors
from wanconv.engine.cogvideox import CogVideoX, FirstFrame
from wanconv.engine.diffusion import NoiseSchedule
from wanconv.engine.numerics import PRESETS, Imitation
from wanconv.engine.recorder import Recorder
from wanconv.engine.t5 import LENGTH, T5Encoder
from wanconv.engine.text import tokenize
from wanconv.engine.vae import CogVideoXVae

RELEASES = ("cogvideox-2b", "cogvideox-5b", "cogvideox-5b-i2v", "cogvideox1.5-5b", "cogvideox1.5-5b-i2v")
LATENTS = {release: (4 if "1.5" in release else 3, 8, 12) for release in RELEASES}  # the size of 5B-I2V's positions

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoiser(source: FolderWeights, numerics: str = "fp32", **config: int) -> CogVideoX:
    return CogVideoX(source.names("dit"), source.config("dit") | config, PRESETS[numerics])


def whole(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).eval()


def called(model: Any, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    """Returns what the whole model predicts, given what its pipeline would give it."""
    from diffusers import CogVideoXPipeline

    config, (frames, height, width) = model.config, latents.shape[2:]
    pipeline = CogVideoXPipeline.__new__(CogVideoXPipeline)
    pipeline.vae_scale_factor_spatial, pipeline.transformer = 8, model
    rotation = None
    if config.use_rotary_positional_embeddings:
        rotation = pipeline._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, latents.device)
    offset = None if config.ofs_embed_dim is None else latents.new_full((1,), 2.0)
    with torch.inference_mode():
        found: Tensor = model(
            latents.transpose(1, 2), context, timestep, ofs=offset, image_rotary_emb=rotation, return_dict=False
        )[0]
    return found.transpose(1, 2).float()


def given(release: str, size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, FirstFrame | None]:
    """Returns latents, timesteps, contexts and condition of a batch of two."""
    condition = FirstFrame(normal(2, 16, *size, seed=5)) if release.endswith("i2v") else None
    return normal(2, 16, *size), torch.tensor([999, 321]), normal(2, LENGTH, 64, seed=4), condition


def together(latents: Tensor, condition: FirstFrame | None) -> Tensor:
    return latents if condition is None else torch.cat((latents, condition.channels), dim=1)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("numerics", ["fp32", "diffusers", "diffusers-fp16"])
def test_streamed_blocks_give_what_the_whole_model_gives(
    numerics: str, release: str, tiny: Callable[..., Path]
) -> None:
    folder, dtype = tiny(release), PRESETS[numerics].linear
    source = FolderWeights(folder)
    latents, times, context, condition = given(release, LATENTS[release])
    with Imitation():
        ours = denoiser(source, numerics).denoise(partial(source.tensors, "dit"), latents, times, context, condition)
        theirs = called(whole(folder, dtype), together(latents, condition).to(dtype), times, context.to(dtype))
    assert (ours.shape, ours.dtype) == ((2, 16, *LATENTS[release]), torch.float32)
    assert ours.std() > 0.01
    error = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    assert error <= (1e-6 if numerics == "fp32" else 1e-3)


@pytest.mark.parametrize("release", ["cogvideox-2b", "cogvideox-5b", "cogvideox1.5-5b"])
def test_another_size_of_clip_has_the_librarys_positions(release: str, tiny: Callable[..., Path]) -> None:
    folder = tiny(release)
    source = FolderWeights(folder)
    latents, times, context, _ = given(release, (2, 6, 10))
    ours = denoiser(source).denoise(partial(source.tensors, "dit"), latents, times, context)
    torch.testing.assert_close(ours, called(whole(folder), latents, times, context), rtol=0, atol=1e-5)


def test_a_smaller_clip_takes_the_first_of_the_learned_positions(tiny: Callable[..., Path]) -> None:
    folder = tiny("cogvideox-5b-i2v")
    source, model = FolderWeights(folder), whole(folder)
    latents, times, context, condition = given("cogvideox-5b-i2v", (2, 6, 8))
    network = denoiser(source)
    ours = network.denoise(partial(source.tensors, "dit"), latents, times, context, condition)
    patches = model.patch_embed
    table = patches.pos_embedding[0, LENGTH:].unflatten(0, (3, 4, 6))
    first = [table[frame, row, column] for frame in range(2) for row in range(3) for column in range(4)]
    patches.pos_embedding = torch.cat((patches.pos_embedding[0, :LENGTH], torch.stack(first)))[None]
    patches.sample_frames, patches.sample_height, patches.sample_width = 5, 6, 8
    torch.testing.assert_close(ours, called(model, together(latents, condition), times, context), rtol=0, atol=1e-5)
    latents, times, context, condition = given("cogvideox-5b-i2v", (3, 8, 12))  # the same network, at full size again
    ours = network.denoise(partial(source.tensors, "dit"), latents, times, context, condition)
    theirs = called(whole(folder), together(latents, condition), times, context)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_block_is_fetched_when_it_runs_and_nothing_is_kept(tiny: Callable[..., Path]) -> None:
    source = FolderWeights(tiny("cogvideox1.5-5b-i2v"))
    network = denoiser(source)
    latents, times, context, condition = given("cogvideox1.5-5b-i2v", (2, 4, 4))
    network.denoise(partial(source.tensors, "dit"), latents, times, context, condition)
    assert source.asked == [
        f"dit/{name}"
        for name in (
            "time_embedding", "offset_embedding", "patch_embedding", "text_embedding", "blocks.0", "blocks.1",
            "blocks.2", "norm_out", "head.norm_in", "head.modulation_projection", "head.proj",
        )
    ]  # fmt: skip
    assert all(parameter.is_meta for parameter in network._network.parameters())


def test_operations_are_recorded_by_canonical_names(tiny: Callable[..., Path]) -> None:
    source, recorder = FolderWeights(tiny("cogvideox-5b")), Recorder()
    network = denoiser(source)
    network.watch(recorder)
    latents, times, context, _ = given("cogvideox-5b", (1, 4, 4))
    with recorder:
        network.denoise(partial(source.tensors, "dit"), latents, times, context)
    paths = {one.path for one in recorder.ranges}
    assert {
        "patch_embedding", "text_embedding", "time_embedding.in", "blocks.0", "blocks.1.self_attn.q",
        "blocks.2.self_attn.norm_k", "blocks.0.self_attn.modulation_projection", "blocks.1.ffn.norm_in",
        "blocks.2.ffn.up", "blocks.2.ffn.down", "norm_out", "head.norm_in", "head.modulation_projection", "head.proj",
    } <= paths  # fmt: skip
    assert not {path for path in paths if "transformer_blocks" in path or "attn1" in path}
    assert recorder.first_bad is None


def test_a_configuration_of_another_size_is_refused_by_tensor(tiny: Callable[..., Path]) -> None:
    source = FolderWeights(tiny("cogvideox-2b"))
    latents, times, context, _ = given("cogvideox-2b", (1, 4, 4))
    network = denoiser(source, time_embed_dim=48)
    with pytest.raises(errors.InputError, match="the denoiser's configuration does not describe") as refusal:
        network.denoise(partial(source.tensors, "dit"), latents, times, context)
    assert "linear_1.weight: configured (48, 64), there is (32, 64)" in refusal.value.details


# --- T5


PROMPTS = ["a cat on a piano", ""]


def encoder(source: FolderWeights, dtype: torch.dtype = torch.float32) -> T5Encoder:
    return T5Encoder(source, source.names("text_encoder"), source.config("text_encoder"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_streamed_t5_gives_the_contexts_of_the_pipeline(dtype: torch.dtype, tiny: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    folder = tiny("cogvideox-2b")
    tokens = tokenize(folder / "tokenizer", PROMPTS, LENGTH)
    contexts = encoder(FolderWeights(folder), dtype).encode(tokens)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype, attn_implementation="eager").eval()
    for prompt, context in zip(PROMPTS, contexts, strict=True):
        ids = tokenizer([prompt], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            assert torch.equal(context[None], model(ids.input_ids)[0])
    assert (contexts.shape, contexts.dtype) == ((2, LENGTH, 64), dtype)
    assert contexts.std() > 0.1


def test_t5_holds_one_block_at_a_time_and_looks_tokens_up(tiny: Callable[..., Path]) -> None:
    class Watched(FolderWeights):
        def tensors(self, component: str, prefix: str) -> Mapping[str, Tensor]:
            assert all(parameter.is_meta for parameter in streamed.module.parameters())
            return super().tensors(component, prefix)

    source = Watched(tiny("cogvideox-2b"))
    streamed = encoder(source)
    recorder = Recorder()
    with recorder:
        streamed.encode([[5, 1]])
    parts = ["blocks.0", "relative_bias", "blocks.1", "norm_out"]
    assert source.asked == [f"text_encoder/{part}" for part in ("token_embedding.weight[0, 1, 5]", *parts)]
    assert recorder.first_bad is None  # no logarithm of 0 in the buckets


# --- the VAE


@pytest.mark.parametrize("release", ["cogvideox-2b", "cogvideox1.5-5b-i2v"])
def test_a_video_and_an_image_are_decoded_and_encoded_as_by_the_pipelines(
    release: str, tiny: Callable[..., Path]
) -> None:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXImageToVideoPipeline

    folder = tiny(release)
    source = FolderWeights(folder)
    vae = CogVideoXVae(source, source.names("vae"), source.config("vae"))
    library: Any = AutoencoderKLCogVideoX.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    pipeline = CogVideoXImageToVideoPipeline(None, None, library, whole(folder), None)
    pipeline.scheduler = NoiseSchedule({"_class_name": "CogVideoXDDIMScheduler"}, 1)._scheduler()
    latents, image = normal(1, 16, 3, 4, 6), normal(1, 3, 32, 48).clamp(-1, 1)
    with torch.inference_mode():
        decoded = pipeline.video_processor.postprocess_video(pipeline.decode_latents(latents.transpose(1, 2)), "np")
        _, encoded = pipeline.prepare_latents(
            image, 1, 16, 5, 32, 48, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(7), normal(1)
        )
    assert vae.decode(latents).shape == (9, 32, 48, 3)
    assert torch.equal(vae.decode(latents), torch.from_numpy(decoded[0]))
    assert torch.equal(vae.encode(image.unsqueeze(2), seed=7)[:, :, 0], encoded[:, 0])
    assert source.asked == ["vae/decoder", "vae/encoder"]
    vae.release()
    assert all(parameter.is_meta for parameter in vae.module.parameters())


# --- schedulers


def schedule(folder: Path, steps: int, name: str = "CogVideoXDDIMScheduler") -> NoiseSchedule:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
    return NoiseSchedule(config | {"_class_name": name}, steps)


def test_the_timesteps_end_above_zero_and_begin_with_noise_alone(tiny: Callable[..., Path]) -> None:
    grid = schedule(tiny("cogvideox-2b"), 4)
    assert (grid.timesteps.tolist(), len(grid)) == ([999, 749, 499, 249], 4)
    clean, noise = normal(1, 16, 1, 2, 2), normal(1, 16, 1, 2, 2, seed=9)
    assert torch.equal(grid.noised(clean, noise, 999), noise)
    share = grid.noised(torch.ones(1), torch.zeros(1), 499)
    assert torch.allclose(share**2 + grid.noised(torch.zeros(1), torch.ones(1), 499) ** 2, torch.ones(1))
    assert 0 < share < 0.5


def test_ddim_finds_the_sample_that_a_true_prediction_points_at(tiny: Callable[..., Path]) -> None:
    grid = schedule(tiny("cogvideox-5b"), 4)
    clean, sample = normal(1, 16, 1, 2, 2), normal(1, 16, 1, 2, 2, seed=9)
    solver = grid.solver(0)
    for timestep in grid.timesteps.tolist():
        signal = grid.noised(torch.ones(1), torch.zeros(1), timestep)
        noise = grid.noised(torch.zeros(1), torch.ones(1), timestep)
        sample = solver.step((signal * sample - clean) / noise, sample)
    torch.testing.assert_close(sample, clean, rtol=0, atol=1e-4)


def test_guidance_is_constant_with_ddim_and_varies_with_dpm(tiny: Callable[..., Path]) -> None:
    folder = tiny("cogvideox-5b")
    assert [schedule(folder, 50).guidance(6.0, timestep) for timestep in (999, 499)] == [6.0, 6.0]
    dpm = schedule(folder, 50, "CogVideoXDPMScheduler")
    assert dpm.guidance(6.0, 50) == 1.0
    assert 1.0 <= dpm.guidance(6.0, 999) <= 7.0
    assert dpm.guidance(6.0, 19) == pytest.approx(1.1234, abs=1e-4)


def test_the_scheduler_of_another_model_is_refused() -> None:
    with pytest.raises(
        errors.InputError, match="the checkpoint's scheduler is DDIMScheduler, which CogVideoX does not use"
    ):
        NoiseSchedule({"_class_name": "DDIMScheduler"}, 4)
