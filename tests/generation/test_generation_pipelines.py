"""A whole generation from images against diffusers' own pipeline: plain, unstreamed, from the same noise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from covering import some
from tiny import strengthened

from wanconv.containers import open_checkpoint
from wanconv.engine.sampling import Grid, exercised, task_of
from wanconv.engine.text import tokenize
from wanconv.engine.wan import WanCondition
from wanconv.generation import sampling, tasks
from wanconv.generation.pictures import drawn
from wanconv.generation.types import Material, Picture
from wanconv.models import identify
from wanconv.weights.model import ModelWeights

PROMPTS = ("a cat on a piano", "grey, still")
SIZE = (96, 64)
# release -> its images and its steps
CASES: dict[str, tuple[tuple[Picture, ...], int]] = {
    "wan2.1-i2v-14b": (("image",), 2),
    "wan2.1-flf2v-14b": (("image", "last_image"), 2),
    "wan2.2-i2v-a14b": (("image",), 4),
    "wan2.2-ti2v-5b": (("image",), 2),
}

pytestmark = pytest.mark.usefixtures("one_thread")


class Squeezed:
    """CLIP's preparation as Wan's own code has it; transformers' processor smooths an image and cuts out its middle."""

    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

    def __call__(self, images: Any, return_tensors: str) -> Any:
        from transformers import BatchFeature

        found = []
        for image in images if isinstance(images, list) else [images]:
            values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
            values = torch.nn.functional.interpolate(values, (224, 224), mode="bicubic")
            found.append(((values + 1) / 2 - self.mean) / self.deviation)
        return BatchFeature({"pixel_values": torch.cat(found)})


def pipeline_of(folder: Path) -> Any:
    from diffusers import WanImageToVideoPipeline

    pipeline = WanImageToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32, image_processor=None)
    pipeline.image_processor = Squeezed()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("release", some(list(CASES), 2))
def test_a_generation_from_images_is_the_pipelines(release: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    names, steps = CASES[release]
    folder = strengthened(tiny(release, "diffusers"), tmp_path / "model")
    model = identify(open_checkpoint(folder))
    pipeline = pipeline_of(folder)
    given = {name: drawn(name, SIZE) for name in names}
    pipeline.scheduler.set_timesteps(steps)
    grid = Grid(pipeline.scheduler.sigmas, pipeline.scheduler.timesteps)
    task = task_of(model.family.name)
    setting = tasks.setting(model, task, grid, SIZE, 5, 0, "cpu")
    assert all(exercised(grid.timesteps, task.boundary).values())
    noise = sampling.noise(setting)

    def theirs(output: str) -> Any:
        return pipeline(
            **given, prompt=PROMPTS[0], negative_prompt=PROMPTS[1], width=SIZE[0], height=SIZE[1], num_frames=5,
            num_inference_steps=steps, guidance_scale=task.guidance[1], latents=noise, output_type=output,
        ).frames  # fmt: skip

    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        tokens = tokenize(folder / "tokenizer", PROMPTS)
        contexts = sampling.text_encoder(weights, torch.float32).encode(tokens)
        vae, seen = sampling.vae_of(weights), None
        if "image_encoder" in model.components:
            seen = tasks.image_tokens(sampling.image_encoder(weights), setting, given)
        condition = tasks.judged(model).condition(Material(setting, given, seen, vae))
        run = sampling.generate(weights, setting, contexts, noise, condition=condition)
        video = vae.decode(run.latents)
        assert isinstance(condition, WanCondition)
        for part in ("channels", "tokens", "first"):  # each of them matters
            if (value := getattr(condition, part)) is not None:
                other = replace(condition, **{part: torch.zeros_like(value)})
                blind = sampling.generate(weights, setting, contexts, noise, condition=other)
                assert (run.latents - blind.latents).abs().max() > 1e-2
    latents = theirs("latent")
    assert latents.std() > 0.1
    assert (run.latents - latents).abs().max() <= 1e-4
    assert (video - torch.from_numpy(theirs("np")[0])).abs().max() <= 1e-4
