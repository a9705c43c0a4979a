"""A short reference generation: prompt to context, noise to latents along the official grid, latents to frames."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from wanconv.engine import t5, text
from wanconv.engine.audio import AudioEncoder
from wanconv.engine.image import ImageEncoder
from wanconv.engine.numerics import FP32, Imitation, Numerics
from wanconv.engine.sampling import expert_at, guided
from wanconv.engine.t5 import T5Encoder
from wanconv.engine.text import NEGATIVE_PROMPT, SPEECH_NEGATIVE_PROMPT, TextEncoder, synthetic_context, tokenize
from wanconv.engine.vae import CogVideoXVae, Vae, VaeCodec
from wanconv.generation.networks import hub_config, hub_names
from wanconv.generation.tasks import denoiser
from wanconv.generation.types import Condition, Setting
from wanconv.layouts import source_layout
from wanconv.models import DENOISERS
from wanconv.types.architecture import Family
from wanconv.types.model import Model
from wanconv.types.progress import Advance, unheard
from wanconv.weights.model import ModelWeights


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A finished generation: final latents (1, C, F, H, W), decoded frames (F, H, W, 3) or None, seconds per step."""

    latents: Tensor
    video: Tensor | None
    seconds_per_step: float


def noise(setting: Setting) -> Tensor:
    """Returns the seeded start noise (1, C, F, H, W) of every run, float32, the same on every device."""
    generator = torch.Generator().manual_seed(setting.seed)
    return torch.randn(1, *setting.latents, generator=generator).to(setting.device)


def tokenizer_folder(models: Sequence[Model]) -> Path | None:
    """Returns the first folder of these models with a tokenizer."""
    for model in models:
        folder = source_layout(model).folders.get("tokenizer")
        if folder and any(sidecar.startswith(f"{folder}/") for sidecar in model.checkpoint.sidecars):
            return model.checkpoint.root / folder
    return None


def text_encoder(weights: ModelWeights, dtype: torch.dtype) -> TextEncoder | T5Encoder:
    model = weights.model
    made = T5Encoder if _is_t5(model.family) else TextEncoder
    return made(weights, hub_names(model.components["text_encoder"]), hub_config(model, "text_encoder"), dtype)


def _is_t5(family: Family) -> bool:
    return family.components["text_encoder"].name == "t5-v1.1"


def _prompting(family: Family) -> tuple[str, int]:
    """Returns the negative prompt, and the number of tokens that a prompt may have."""
    if _is_t5(family):
        return "", t5.LENGTH
    return SPEECH_NEGATIVE_PROMPT if family.model_type == "s2v" else NEGATIVE_PROMPT, text.LENGTH


def image_encoder(weights: ModelWeights, dtype: torch.dtype = torch.float32) -> ImageEncoder:
    model = weights.model
    names = hub_names(model.components["image_encoder"])
    return ImageEncoder(weights, names, hub_config(model, "image_encoder"), dtype)


def audio_encoder(weights: ModelWeights) -> AudioEncoder:
    component = weights.model.components["audio_encoder"]
    return AudioEncoder(weights, hub_names(component), component.dims)


def tokens_of(models: Sequence[Model], prompt: str) -> list[list[int]] | None:
    """Returns the tokens of the prompt and of the negative prompt; None if there is no tokenizer."""
    folder = tokenizer_folder(models)
    negative, length = _prompting(models[0].family)
    return None if folder is None else tokenize(folder, [prompt, negative], length)


def made_up_contexts(model: Model, seed: int) -> tuple[Tensor, str]:
    """Returns contexts (2, tokens, text) for a model without text encoder or tokenizer, and a note about it."""
    _, length = _prompting(model.family)
    width = next(component.dims["text"] for component in model.components.values() if "text" in component.dims)
    (first, note), (second, _) = (synthetic_context(width, seed + branch, length) for branch in (0, 1))
    return torch.stack((first, second)), note


def vae_of(weights: ModelWeights, dtype: torch.dtype = torch.float32) -> VaeCodec:
    model = weights.model
    component = model.components["vae"]
    made = CogVideoXVae if component.architecture.name == "cogvideox-vae" else Vae
    return made(weights, hub_names(component), hub_config(model, "vae"), dtype)


def generate(
    weights: ModelWeights,
    setting: Setting,
    contexts: Tensor,
    start: Tensor,
    numerics: Numerics = FP32,
    condition: Condition | None = None,
    advance: Advance = unheard,
) -> Run:
    """Samples from `start` with guidance, both branches in one batch; `video` is left to the caller.

    contexts (2, tokens, text): prompt, negative prompt. fp16 is imitated on a CPU.
    """
    grid, task = setting.grid, setting.task
    solver, sample = grid.solver(setting.seed), start
    both = None if condition is None else condition.of(2)
    begin = time.perf_counter()
    networks = {name: denoiser(weights.model, name, numerics) for name in weights.model.components if name in DENOISERS}
    imitation = Imitation()
    with imitation if setting.device.type == "cpu" else nullcontext():
        for timestep in grid.timesteps.tolist():
            expert = expert_at(timestep, task.boundary)
            latents = sample.expand(2, -1, -1, -1, -1)
            times = torch.tensor([timestep, timestep], device=setting.device)
            strength = grid.guidance(task.guidance_at(timestep), timestep)
            velocity = networks[expert].denoise(partial(weights.tensors, expert), latents, times, contexts, both)
            sample = solver.step(guided(velocity[1:], velocity[:1], strength), sample)
            advance(1)
    sample = sample if condition is None else condition.pinned(sample)
    return Run(sample, None, (time.perf_counter() - begin) / len(grid))
