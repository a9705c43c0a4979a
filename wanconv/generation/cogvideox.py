"""CogVideoX's part in a generation: its denoiser's configuration, its scheduler, its first frame, and the largest clip
for its positions.

    what         profiles say      CogVideoX runs
    frames       5, 17             9, 17: 8 n + 1, as its VAE decodes two latent frames at a time, and one more first
    latents                        1.5 generates an even number, and drops the surplus at the front
    size         128x128 and up    the same, up to the size that 1.5 and 5B-I2V were trained for
"""

import torch
from torch import Tensor

from wanconv.engine.cogvideox import CogVideoX, FirstFrame, trained_size
from wanconv.engine.diffusion import NoiseSchedule
from wanconv.engine.numerics import Numerics
from wanconv.engine.sampling import TIME_STRIDE
from wanconv.engine.sampling import Task as Defaults
from wanconv.engine.vae import CogVideoXVae
from wanconv.errors import InputError
from wanconv.generation import pictures
from wanconv.generation.networks import hub_config, hub_names
from wanconv.generation.types import Denoiser, Limit, Material
from wanconv.layouts import diffusers_cogvideox
from wanconv.storage.reading import TEXT_NBYTES, parsed_json, read_small
from wanconv.types.model import Model

_SCHEDULER = "scheduler/scheduler_config.json"


def build(model: Model, name: str, numerics: Numerics) -> Denoiser:
    return CogVideoX(hub_names(model.components[name]), hub_config(model, name), numerics)


def schedule(model: Model, task: Defaults, steps: int) -> NoiseSchedule:
    """Returns the timesteps of the checkpoint's own scheduler; of the released one, if it has none."""
    if _SCHEDULER not in model.checkpoint.sidecars:
        return NoiseSchedule(diffusers_cogvideox.scheduler(model), steps)
    path = model.checkpoint.root / _SCHEDULER
    try:
        config = parsed_json(read_small(path, TEXT_NBYTES))
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
        return NoiseSchedule(config, steps)
    except (OSError, ValueError, TypeError, ArithmeticError, RuntimeError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path} cannot be read: {reason}", "download the scheduler's folder again") from error


def limit(model: Model) -> Limit | None:
    """Returns the largest clip with positions; None if they are computed for any size."""
    config = hub_config(model, "dit")
    learned, sliced = bool(config.get("use_learned_positional_embeddings")), bool(config.get("patch_size_t"))
    if not learned and not sliced:
        return None
    frames, height, width = trained_size(config)
    return (8 * width, 8 * height), (frames - 1) * TIME_STRIDE + 1 if learned else None


def first_frame(material: Material) -> FirstFrame:
    """Returns I2V's further channels: the encoded image, then zeros; zeros alone without a VAE."""
    setting, vae = material.setting, material.vae
    channels: Tensor = torch.zeros(1, *setting.latents, device=setting.device)
    if vae is not None:
        assert isinstance(vae, CogVideoXVae)
        image = pictures.pixels(pictures.covering(material.pictures["image"], setting.size))
        # the noise uses `seed`
        channels[:, :, :1] = vae.encode(image.unsqueeze(2).to(setting.device), setting.seed + 2)
    return FirstFrame(channels)
