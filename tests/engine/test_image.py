"""CLIP: streamed against transformers' own call, both naming schemes, and what it looks at."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_weights import FolderWeights
from PIL import Image
from torch import Tensor

from wanconv import errors
from wanconv.commands.convert import convert
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.engine.image import ImageEncoder, prepared, synthetic_tokens
from wanconv.generation.pictures import pixels
from wanconv.generation.sampling import image_encoder
from wanconv.models import identify
from wanconv.weights.model import ModelWeights


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("wan2.1-i2v-14b", "diffusers")


def encoder(source: FolderWeights, **config: int) -> ImageEncoder:
    return ImageEncoder(source, source.names("image_encoder"), source.config("image_encoder") | config)


def images(count: int = 2) -> Tensor:
    return prepared(torch.randn(count, 3, 40, 56, generator=torch.Generator().manual_seed(5)).clamp(-1, 1))


def whole(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import CLIPVisionModel

    return CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_streamed_blocks_give_exactly_what_the_whole_model_gives(folder: Path, dtype: torch.dtype) -> None:
    source = FolderWeights(folder)
    streamed = ImageEncoder(source, source.names("image_encoder"), source.config("image_encoder"), dtype)
    with torch.inference_mode():
        states = whole(folder, dtype)(images().to(dtype), output_hidden_states=True).hidden_states
    tokens = streamed.encode(images())
    assert (tokens.shape, tokens.dtype) == ((2, 257, 64), dtype)
    assert torch.equal(tokens, states[-2])
    assert tokens.std() > 0.1


def test_official_names_with_their_fused_tensors_give_the_tokens_of_the_hubs(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    official, hub = tiny("wan2.1-i2v-14b"), tmp_path / "hub"
    convert(official, ConvertOptions("keep", layout="diffusers", out=hub, jobs=1))
    tokens = []
    for folder in (official, hub):
        with ModelWeights(identify(open_checkpoint(folder)), 0, torch.device("cpu")) as weights:
            tokens.append(image_encoder(weights).encode(images()))
    with torch.inference_mode():
        expected = whole(hub, torch.float32)(images(), output_hidden_states=True).hidden_states[-2]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[1], expected)


def test_one_block_is_in_memory_at_a_time_and_the_last_is_never_read(folder: Path) -> None:
    class Watched(FolderWeights):
        def tensors(self, component: str, prefix: str) -> Mapping[str, Tensor]:
            assert all(parameter.is_meta for parameter in streamed.module.parameters())
            return super().tensors(component, prefix)

    source = Watched(folder)
    streamed = encoder(source)
    streamed.encode(images())
    assert all(parameter.is_meta for parameter in streamed.module.parameters())
    embeddings = ["class_embedding", "position_embedding.weight", "patch_embedding"]
    assert source.asked == [f"image_encoder/visual.{part}" for part in (*embeddings, "norm_in", "blocks.0", "blocks.1")]


def test_a_configuration_of_another_size_is_refused_by_tensor(folder: Path) -> None:
    with pytest.raises(errors.InputError, match="the image encoder's configuration does not describe") as refusal:
        encoder(FolderWeights(folder), intermediate_size=96).encode(images())
    assert "mlp.fc1.weight: configured (96, 64), there is (128, 64)" in refusal.value.details


def test_an_image_of_clips_own_size_is_prepared_as_transformers_does() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    values = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    theirs = CLIPImageProcessorPil()(images=picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared(pixels(picture)), theirs, rtol=0, atol=1e-5)


def test_any_other_image_is_squeezed_into_224_pixels_without_smoothing() -> None:
    image = torch.zeros(1, 3, 448, 896)
    image[..., ::4] = 1.0  # of every four columns one: gone, where nothing is smoothed
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    squeezed = prepared(image)
    assert squeezed.shape == (1, 3, 224, 224)
    grey = ((0.5 - mean) / deviation)[:, None, None]
    samples = (squeezed[0] - grey).abs()  # bicubic weights at half-way of four columns: -3/32, 19/32, 19/32, -3/32
    torch.testing.assert_close(samples[:, 100, 100], 3 / 32 * 0.5 / deviation, rtol=0, atol=1e-5)


def test_synthetic_tokens_say_that_they_are() -> None:
    tokens, note = synthetic_tokens(64, 2, seed=3)
    assert tokens.shape == (1, 514, 64)
    assert note == "synthetic image tokens instead of CLIP's: normal numbers (seed 3)"
