"""A whole generation of CogVideoX against diffusers' own pipelines: plain, unstreamed, from the same noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import some
from PIL import Image
from tiny import strengthened

from wanconv.containers import open_checkpoint
from wanconv.engine.cogvideox import FirstFrame
from wanconv.engine.sampling import task_of
from wanconv.engine.text import tokenize
from wanconv.generation import sampling, tasks
from wanconv.generation.pictures import drawn
from wanconv.generation.types import Material, Picture
from wanconv.models import identify
from wanconv.weights.model import ModelWeights

PROMPTS = ("a cat on a piano", "grey, still")
SIZE, FRAMES, STEPS, SEED = (96, 64), 9, 3, 5
# release -> its scheduler; the released ones have DDIM, and CogVideoX's demo takes DPM with the larger models
CASES = {
    "cogvideox-2b": "CogVideoXDDIMScheduler",
    "cogvideox-5b": "CogVideoXDPMScheduler",
    "cogvideox-5b-i2v": "CogVideoXDDIMScheduler",
    "cogvideox1.5-5b": "CogVideoXDDIMScheduler",
    "cogvideox1.5-5b-i2v": "CogVideoXDPMScheduler",
}

pytestmark = pytest.mark.usefixtures("one_thread")


def with_scheduler(folder: Path, name: str) -> Path:
    for path, change in (("scheduler/scheduler_config.json", name), ("model_index.json", ["diffusers", name])):
        document = json.loads((folder / path).read_bytes())
        document["_class_name" if path.startswith("scheduler") else "scheduler"] = change
        (folder / path).write_text(json.dumps(document))
    return folder


def pipeline_of(folder: Path, image: bool) -> Any:
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline

    kind = CogVideoXImageToVideoPipeline if image else CogVideoXPipeline
    pipeline: Any = kind.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("release", some(list(CASES), 2))
def test_a_generation_is_the_pipelines(release: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = with_scheduler(strengthened(tiny(release), tmp_path / "model"), CASES[release])
    model = identify(open_checkpoint(folder))
    row, task = tasks.judged(model), task_of(model.family.name)
    setting = tasks.setting(model, task, row.schedule(model, task, STEPS), SIZE, FRAMES, SEED, "cpu")
    images: dict[Picture, Image.Image] = {"image": drawn("image", SIZE)} if "image" in row.needs else {}
    noise = sampling.noise(setting)
    assert noise.shape[2] == (4 if "1.5" in release else 3)
    pipeline = pipeline_of(folder, bool(images))

    def theirs(output: str) -> Any:
        generator = torch.Generator().manual_seed(SEED)
        if images:  # the image's latents have a seed of their own
            prepare = pipeline.prepare_latents

            def prepared(*arguments: Any) -> Any:
                pipeline.prepare_latents = prepare
                own = torch.Generator().manual_seed(SEED + 2)
                return prepare(*(own if one is generator else one for one in arguments))

            pipeline.prepare_latents = prepared
        return pipeline(
            **images, prompt=PROMPTS[0], negative_prompt=PROMPTS[1], width=SIZE[0], height=SIZE[1], num_frames=FRAMES,
            num_inference_steps=STEPS, guidance_scale=task.guidance[1], latents=noise.transpose(1, 2),
            use_dynamic_cfg=CASES[release] == "CogVideoXDPMScheduler", generator=generator, output_type=output,
        ).frames  # fmt: skip

    with ModelWeights(model, 0, torch.device("cpu")) as weights:
        tokens = tokenize(folder / "tokenizer", PROMPTS)
        contexts = sampling.text_encoder(weights, torch.float32).encode(tokens)
        material = Material(setting, images, None, sampling.vae_of(weights))
        condition = row.condition(material)
        found = []

        def sample(start: torch.Tensor, given: Any) -> torch.Tensor:
            found.append(sampling.generate(weights, setting, contexts, start, condition=given).latents)
            return found[-1]

        video = row.film(sample, noise, condition, material)
        if condition is not None:  # it matters
            assert isinstance(condition, FirstFrame)
            sample(noise, FirstFrame(torch.zeros_like(condition.channels)))
            assert (found[0] - found[1]).abs().max() > 1e-2
    latents = theirs("latent").transpose(1, 2)
    assert latents.std() > 0.1
    assert (found[0] - latents).abs().max() <= 1e-4
    assert video.shape == (FRAMES, SIZE[1], SIZE[0], 3)
    assert (video - torch.from_numpy(theirs("np")[0])).abs().max() <= 1e-4
