"""The VAEs: decoding and encoding against diffusers' own pipelines, on the tiny 2.1 and 2.2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_weights import FolderWeights
from torch import Tensor

from wanconv import errors
from wanconv.engine.sampling import given_video, image_condition
from wanconv.engine.vae import Vae

BOTH = pytest.mark.parametrize("release", ["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"])


def ours(folder: Path, **options: Any) -> tuple[Vae, FolderWeights]:
    source = FolderWeights(folder)
    return Vae(source, source.names("vae"), source.config("vae"), **options), source


def theirs(folder: Path) -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@BOTH
def test_a_decoded_video_is_the_pipelines(tiny: Callable[..., Path], release: str) -> None:
    from diffusers import WanPipeline

    folder = tiny(release, "diffusers")
    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def run(output: str) -> Any:
        return pipeline(
            prompt="a cat", height=32, width=64, num_frames=5, num_inference_steps=1, output_type=output,
            generator=torch.Generator().manual_seed(0),
        ).frames  # fmt: skip

    frames = ours(folder)[0].decode(torch.as_tensor(run("latent")))
    assert (frames.shape, frames.dtype) == ((5, 32, 64, 3), torch.float32)
    assert torch.equal(frames, torch.from_numpy(run("np")[0]))
    assert len(torch.unique(frames)) > 1000  # no bytes yet


@pytest.mark.parametrize("last", [False, True])
def test_an_image_condition_is_the_pipelines(last: bool, tiny: Callable[..., Path]) -> None:
    from diffusers import WanImageToVideoPipeline

    folder = tiny("wan2.2-i2v-a14b", "diffusers")
    image, latents = normal(1, 3, 32, 48).clamp(-1, 1), normal(1, 16, 3, 4, 6)
    pipeline = WanImageToVideoPipeline(None, None, theirs(folder), None, boundary_ratio=0.9)
    end = image.flip(3) if last else None
    _, expected = pipeline.prepare_latents(
        image, 1, 16, 32, 48, 9, torch.float32, torch.device("cpu"), None, latents, end
    )
    assert torch.equal(image_condition(ours(folder)[0].encode(given_video(image, 9, end)), last), expected)


def test_a_given_first_frame_is_the_pipelines(tiny: Callable[..., Path]) -> None:
    from diffusers import WanImageToVideoPipeline

    folder = tiny("wan2.2-ti2v-5b", "diffusers")
    image, latents = normal(1, 3, 32, 64).clamp(-1, 1), normal(1, 48, 3, 2, 4)
    pipeline = WanImageToVideoPipeline(None, None, theirs(folder), None, expand_timesteps=True)
    _, given, _ = pipeline.prepare_latents(image, 1, 48, 32, 64, 9, torch.float32, torch.device("cpu"), None, latents)
    assert torch.equal(ours(folder)[0].encode(image.unsqueeze(2)), given)


@BOTH
def test_a_half_is_read_when_it_is_needed_and_once(tiny: Callable[..., Path], release: str) -> None:
    vae, source = ours(tiny(release, "diffusers"))
    channels = 16 if release == "wan2.1-t2v-1.3b" else 48
    first = vae.decode(normal(1, channels, 1, 4, 4))
    assert torch.equal(vae.decode(normal(1, channels, 1, 4, 4)), first)
    assert source.asked == ["vae/decoder"]
    vae.encode(normal(1, 3, 1, 64, 64))
    assert source.asked == ["vae/decoder", "vae/encoder"]
    assert not any(parameter.is_meta for parameter in vae.module.parameters())
    vae.release()
    assert all(parameter.is_meta for parameter in vae.module.parameters())
    assert torch.equal(vae.decode(normal(1, channels, 1, 4, 4)), first)


def test_tiles_are_diffusers_own_and_small_videos_have_none(tiny: Callable[..., Path]) -> None:
    folder = tiny("wan2.1-t2v-1.3b", "diffusers")
    (plain, _), (tiled, _) = ours(folder), ours(folder, tiled=True)
    small, large = normal(1, 16, 1, 8, 8), normal(1, 16, 1, 4, 36)  # tiles have 32 latents
    assert torch.equal(plain.decode(small), tiled.decode(small))
    diffusers = theirs(folder)
    diffusers.enable_tiling()
    std, mean = (torch.tensor(diffusers.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_std", "latents_mean"))
    with torch.no_grad():
        expected = diffusers.decode(large * std + mean).sample
    assert torch.allclose(tiled.decode(large), expected[0].permute(1, 2, 3, 0) * 0.5 + 0.5, rtol=0, atol=1e-5)
    assert not torch.allclose(tiled.decode(large), plain.decode(large), rtol=0, atol=1e-5)


def test_a_configuration_of_the_other_vae_is_refused_by_tensor(tiny: Callable[..., Path]) -> None:
    source = FolderWeights(tiny("wan2.2-ti2v-5b", "diffusers"))
    config = source.config("vae") | {"z_dim": 16}
    with pytest.raises(errors.InputError, match="the VAE's configuration does not describe its weights") as refusal:
        Vae(source, source.names("vae"), config).decode(normal(1, 16, 1, 2, 2))
    assert "post_quant_conv.bias: configured (16,), there is (48,)" in refusal.value.details
