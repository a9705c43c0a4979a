"""S2V's part in a generation: a voice from a file or synthetic, the part for each clip, and clips one after the other.

Wan-Video/Wan2.2 wan/speech2video.py: without the prompt, guidance has silence, too. A first clip has no motion: it is
decoded after the reference image, and loses its first three frames. Each later one begins where the one before ended,
with the last 73 frames encoded anew as its motion. Latents are float32 here, where the official code has bf16.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from wanconv.engine import audio
from wanconv.engine.numerics import Numerics
from wanconv.engine.sampling import TIME_STRIDE
from wanconv.engine.wan_s2v import MOTION_FRAMES, MOTION_LATENTS, S2VSizes, Speech, WanS2V
from wanconv.generation import pictures
from wanconv.generation.networks import sizes
from wanconv.generation.types import Denoiser, Material, Setting
from wanconv.types.model import Model

CLIPS = 2  # clips of a free run: the second is the first one with motion
_DROPPED = 3  # frames of the first clip


def build(model: Model, name: str, numerics: Numerics) -> Denoiser:
    return WanS2V(S2VSizes.of(*sizes(model, name)), numerics)


def samples(file: Path | None, setting: Setting) -> Tensor:
    """Returns the sound for the clips, from a file or from the speech that ships with wanconv."""
    seconds = CLIPS * setting.frames / setting.task.fps
    if file is not None:
        return audio.read(file, seconds)
    with resources.as_file(resources.files("wanconv") / "generation" / "speech.wav") as shipped:
        return audio.read(shipped, seconds)


def synthetic_states(dims: Mapping[str, int], setting: Setting) -> tuple[Tensor, str]:
    """Returns made-up hidden states for a model without audio encoder, and a note about it."""
    generator = torch.Generator().manual_seed(setting.seed)
    count = ceil(CLIPS * setting.frames / setting.task.fps * audio.STATES)
    states = torch.randn(dims["states"], count, dims["audio"], generator=generator)
    return states, f"synthetic sound instead of a voice: normal numbers (seed {setting.seed})"


def heard(material: Material) -> Tensor:
    """Returns the states for each clip, as far as there is sound (clips, states, width, frames)."""
    assert material.states is not None
    setting = material.setting
    return audio.clips(audio.features(material.states), setting.frames, setting.task.fps)[:CLIPS]


def condition(material: Material) -> Speech:
    """Returns the probes' conditions, with and without the prompt: a still person who fades in before the clip."""
    setting, vae = material.setting, material.vae
    channels, _, height, width = setting.latents
    if vae is None:
        reference = torch.zeros(1, channels, 1, height, width, device=setting.device)
    else:
        image = pictures.pixels(pictures.covering(material.pictures["image"], setting.size))
        reference = vae.encode(image.unsqueeze(2).to(setting.device))
    rising = torch.linspace(0.5, 1, MOTION_LATENTS, device=setting.device).view(1, 1, -1, 1, 1)
    return Speech(
        reference=reference,
        motion=reference * rising,
        pose=torch.zeros(1, *setting.latents, device=setting.device),
        audio=_with_silence(heard(material)[0]),
    )


def film(sample: Callable[[Tensor, Speech], Tensor], start: Tensor, given: Speech, material: Material) -> Tensor:
    """Returns the frames (F, H, W, 3) of several clips; `sample` makes latents from noise and a clip's condition."""
    setting, vae = material.setting, material.vae
    assert vae is not None
    width, height = setting.size
    last = torch.zeros(1, 3, MOTION_FRAMES, height, width, device=setting.device)
    motion: Tensor | None = None
    shown: list[Tensor] = []
    for number, sound in enumerate(heard(material)):
        if number:
            last = torch.cat((last, shown[-1].permute(3, 0, 1, 2).unsqueeze(0) * 2 - 1), dim=2)[:, :, -MOTION_FRAMES:]
            motion = vae.encode(last)
            vae.release()
        generator = torch.Generator().manual_seed(setting.seed + number)
        noise = torch.randn(start.shape, generator=generator).to(start.device) if number else start
        latents = sample(noise, replace(given, motion=motion, audio=_with_silence(sound)))
        before = given.reference if motion is None else motion
        frames = vae.decode(torch.cat((before, latents), dim=2))[-TIME_STRIDE * latents.shape[2] :]
        shown.append(frames if number else frames[_DROPPED:])
    return torch.cat(shown)


def _with_silence(sound: Tensor) -> Tensor:
    return torch.stack((sound, torch.zeros_like(sound)))
