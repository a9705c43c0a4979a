"""Many clips of the small model at once: the same seeds for every set of weights that is compared.

It samples as the engine does, with the forwards of networks.py, which compute the same faster: whole clips, and one
padding token for all. Everything is float32: what differs between two models is what their files hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tiny_model import networks
from tiny_model.networks import LATENTS_MEAN, LATENTS_STD
from torch import Tensor

from wanconv.containers import open_checkpoint
from wanconv.engine import text
from wanconv.engine.sampling import Grid, expert_at, guided, task_of
from wanconv.engine.wan import Wan
from wanconv.evaluation.captions import captions
from wanconv.generation import sampling
from wanconv.layouts.sizes import heads
from wanconv.models import DENOISERS, identify
from wanconv.samples.shipped import FRAMES, SIZE
from wanconv.types.model import Model
from wanconv.weights.model import ModelWeights

LATENTS = (networks.CHANNELS, (FRAMES - 1) // 4 + 1, SIZE[1] // 8, SIZE[0] // 8)
_MEMORY_NBYTES = 1 << 30
_DECODED = 8  # clips at a time: their pixels stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """A model that is ready to generate. `contexts` (captions + 1, L, text): of every caption, and of none."""

    denoisers: Mapping[str, Wan]
    vae: networks.Weights
    contexts: Tensor
    lengths: Tensor


def opened(folder: Path) -> Model:
    return identify(open_checkpoint(folder))


def loaded(model: Model, source: Model, device: torch.device) -> Generator:
    """Returns a model's generator. Tokenizer and heads are its source's: not every layout has them."""
    model = _with_heads(model, source)
    folder = sampling.tokenizer_folder([source])
    assert folder is not None, "the source has one"
    prompts = text.tokenize(folder, [*map(str, captions()), text.NEGATIVE_PROMPT])
    with ModelWeights(model, _MEMORY_NBYTES, device) as weights:
        contexts = sampling.text_encoder(weights, torch.float32).encode(prompts)
        denoisers = {
            name: networks.denoiser(device).requires_grad_(False) for name in model.components if name in DENOISERS
        }
        for name, wan in denoisers.items():
            wan.load_state_dict(tensors(weights, name))
        vae = {
            name: value.contiguous(memory_format=torch.channels_last_3d) if value.dim() == 5 else value
            for name, value in tensors(weights, "vae").items()
        }
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    contexts = contexts[:, : int(lengths.max())].to(device)
    return Generator(denoisers, vae, contexts.clone(), lengths.to(device))


def _with_heads(model: Model, source: Model) -> Model:
    components = {
        name: replace(component, dims={**component.dims, "heads": heads(source, source.components[name])})
        if name in DENOISERS
        else component
        for name, component in model.components.items()
    }
    return replace(model, components=components)


def tensors(weights: ModelWeights, component: str) -> dict[str, Tensor]:
    """Returns every tensor of a component by its canonical name, in float32: what a client computes with."""
    below = {name.partition("/")[2].partition(".")[0] for name in weights.model.components[component].tensors}
    return {
        name: tensor.float() for prefix in sorted(below) for name, tensor in weights.tensors(component, prefix).items()
    }


def noise(seeds: Sequence[int]) -> Tensor:
    """Returns what each clip begins with, as validate draws it of the same seed."""
    return torch.stack([torch.randn(LATENTS, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def latents(made: Generator, which: Sequence[int], start: Tensor, grid: Grid) -> Tensor:
    """Returns the latents of a clip of each caption, by its number in captions()."""
    task = task_of("wan2.2-t2v-a14b")
    device = made.contexts.device
    rows = torch.tensor([*which, *[-1] * len(which)], device=device)
    contexts, lengths = made.contexts[rows], made.lengths[rows]
    solver, sample = grid.solver(0), start.to(device)
    for timestep in grid.timesteps.tolist():
        times = torch.full((len(rows),), timestep, device=device)
        wan = made.denoisers[expert_at(timestep, task.boundary)]
        both = networks.velocity(wan, sample.repeat(2, 1, 1, 1, 1), times, contexts, lengths)
        conditional, unconditional = both.chunk(2)
        sample = solver.step(guided(unconditional, conditional, task.guidance_at(timestep)), sample)
    return sample


@torch.inference_mode()
def decoded(made: Generator, sample: Tensor) -> Iterator[Tensor]:
    """Yields each clip in turn, float32 in 0 … 1, on the CPU.  # (N, 16, f, h, w) -> N of (F, H, W, 3)"""
    mean, deviation = (
        torch.tensor(values, device=sample.device).view(1, -1, 1, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD)
    )
    together = _DECODED if sample.device.type == "cpu" else len(sample)
    for part in (sample * deviation + mean).split(together):
        video = networks.decode(made.vae, part.contiguous(memory_format=torch.channels_last_3d))
        yield from (video * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).contiguous().cpu()
