"""What is generated, and how each network is run: the table of those that the engine computes, and what they are given.

A row says how a denoiser is built, what it is given in addition to a prompt, and how that becomes its condition. An
input that a network needs and the user does not give is made up. A network without a row is converted and verified, but
not judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wanconv.engine.image import TOKENS, ImageEncoder, prepared
from wanconv.engine.numerics import Numerics
from wanconv.engine.sampling import Grid, Schedule, given_video, image_condition, latent_size, official_grid
from wanconv.engine.sampling import Task as Defaults
from wanconv.engine.wan import Wan, WanSizes
from wanconv.engine.wan import WanCondition as WanCondition
from wanconv.errors import UsageError
from wanconv.generation import cogvideox, pictures, speech
from wanconv.generation.networks import sizes
from wanconv.generation.types import Condition, Denoiser, Input, Limit, Material, Picture, Setting
from wanconv.models import DENOISERS
from wanconv.types.architecture import Family
from wanconv.types.model import Model

LATENT_CHANNELS = {"wan-vae-2.1": 16, "wan-vae-2.2": 48, "cogvideox-vae": 16}


def setting(
    model: Model, task: Defaults, grid: Schedule, size: tuple[int, int], frames: int, seed: int, device: str
) -> Setting:
    """Returns what to generate with a model; raises UsageError for a size or length that it cannot have."""
    _check_limit(model, size, frames)
    count, height, width = latent_size(task, size, frames)
    padding = -count % task.token_frames
    latents = (LATENT_CHANNELS[model.family.components["vae"].name], padding + count, height, width)
    return Setting(task, grid, latents, size, frames, seed, torch.device(device), padding)


def _check_limit(model: Model, size: tuple[int, int], frames: int) -> None:
    limit = judged(model).limit(model)
    if limit is None:
        return
    (width, height), most = limit
    if size[0] > width or size[1] > height or frames > (most or frames):
        reach = f"{width}x{height}" + (f" and {most} frames" if most else "")
        raise UsageError(
            f"{frames} frames of {size[0]}x{size[1]} cannot be generated: the model's positions end at {reach}",
            f"ask for at most {reach}",
        )


Film = Callable[[Callable[[Tensor, Any], Tensor], Tensor, Any, Material], Tensor]


def _one_clip(sample: Callable[[Tensor, Any], Tensor], start: Tensor, condition: Any, material: Material) -> Tensor:
    assert material.vae is not None
    return material.vae.decode(sample(start, condition)[:, :, material.setting.padding :])


def _flow(model: Model, task: Defaults, steps: int) -> Grid:
    return official_grid(steps, task.shift)


def _anything(model: Model) -> None:
    return None


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """How a network is run. `needs` is made up where it is not handed over, `takes` is left out.

    `build` gets a model and its component's name. `film` makes frames (F, H, W, 3), float32 in 0 … 1, of noise, with a
    function that samples latents from noise under a condition. `schedule` gives the timesteps of a number of steps,
    `limit` the largest clip.
    """

    build: Callable[[Model, str, Numerics], Denoiser]
    condition: Callable[[Material], Condition | None]
    needs: tuple[Input, ...] = ()
    takes: tuple[Input, ...] = ()
    film: Film = _one_clip
    schedule: Callable[[Model, Defaults, int], Schedule] = _flow
    limit: Callable[[Model], Limit | None] = _anything


def _wan(model: Model, name: str, numerics: Numerics, positions: int = 0) -> Denoiser:
    return Wan(WanSizes.of(*sizes(model, name), positions), numerics)


def _cogvideox(condition: Callable[[Material], Condition | None], *needs: Input) -> ModelRunner:
    return ModelRunner(cogvideox.build, condition, needs, schedule=cogvideox.schedule, limit=cogvideox.limit)


_flf = partial(_wan, positions=2 * TOKENS)


def _nothing(material: Material) -> None:
    return None


def _channels(material: Material) -> WanCondition:
    """Returns I2V's further channels: mask, and the encoded video of its images; grey latents without a VAE."""
    setting, last = material.setting, "last_image" in material.pictures
    images = {name: _interpolated(picture, setting) for name, picture in material.pictures.items()}
    encoded = (
        torch.zeros(1, *setting.latents, device=setting.device)
        if material.vae is None
        else material.vae.encode(given_video(images["image"], setting.frames, images.get("last_image")))
    )
    return WanCondition(image_condition(encoded, last), material.tokens)


def _interpolated(picture: Image.Image, setting: Setting) -> Tensor:
    return pictures.interpolated(_proportioned(picture, setting), setting.size)


def _proportioned(picture: Image.Image, setting: Setting) -> Tensor:
    return pictures.pixels(pictures.cropped(picture, setting.size)).to(setting.device)


def image_tokens(encoder: ImageEncoder, setting: Setting, given: Mapping[Picture, Image.Image]) -> Tensor:
    """Returns CLIP's tokens of the pictures as the clip shows them, one after the other.  # (1, 257 · pictures, d)"""
    seen = torch.cat([prepared(_proportioned(picture, setting)) for picture in given.values()])
    return encoder.encode(seen).flatten(0, 1).unsqueeze(0)


def _first(material: Material) -> WanCondition | None:
    """Returns TI2V's first latent frame, where an image is given; grey without a VAE."""
    setting, picture = material.setting, material.pictures.get("image")
    if picture is None:
        return None
    channels, _, height, width = setting.latents
    if material.vae is None:
        return WanCondition(first=torch.zeros(1, channels, 1, height, width, device=setting.device))
    image = pictures.pixels(pictures.covering(picture, setting.size)).to(setting.device)
    return WanCondition(first=material.vae.encode(image.unsqueeze(2)))


# fmt: off
JUDGED: Mapping[str, ModelRunner] = {
    # network              built by  condition   needs       takes
    "wan-t2v":      ModelRunner(_wan,     _nothing),
    "wan-i2v":      ModelRunner(_wan,     _channels,  ("image",)),
    "wan-i2v-clip": ModelRunner(_wan,     _channels,  ("image",)),
    "wan-flf2v":    ModelRunner(_flf,     _channels,  ("image", "last_image")),
    "wan-ti2v":     ModelRunner(_wan,     _first,     (),         ("image",)),
    "wan-s2v":      ModelRunner(speech.build, speech.condition, ("image", "audio"), (), speech.film),
    "cogvideox-t2v":    _cogvideox(_nothing),
    "cogvideox-i2v":    _cogvideox(cogvideox.first_frame, "image"),
    "cogvideox1.5-t2v": _cogvideox(_nothing),
    "cogvideox1.5-i2v": _cogvideox(cogvideox.first_frame, "image"),
}
# fmt: on


def judged(model: Model) -> ModelRunner:
    """Returns how a model's denoisers are run; a model that cannot be judged has none."""
    return JUDGED[next(model.components[name].architecture.name for name in DENOISERS if name in model.components)]


def check_inputs(family: Family, files: Mapping[Input, Path]) -> None:
    """Raises UsageError for a file that the networks of a family do not look at."""
    network = next(family.components[name].name for name in DENOISERS if name in family.components)
    known = (*JUDGED[network].needs, *JUDGED[network].takes) if network in JUDGED else ()
    for name in files:
        if name not in known:
            looks = f"it takes {' and '.join(map(option, known))}" if known else "it takes a prompt alone"
            raise UsageError(f"{family.name} is not given {option(name)}: {looks}", f"leave {option(name)} out")


def option(name: Input) -> str:
    """Returns the argument that hands an input over."""
    return f"`{name}`"


def pictures_of(row: ModelRunner, setting: Setting, files: Mapping[Input, Path]) -> dict[Picture, Image.Image]:
    """Returns the pictures that a network is given, from their files, or drawn where it needs them.

    Raises InputError for a file that is not an image, and UsageError if a clip is too short for a first and a last one.
    """
    known = (name for name in (*row.needs, *row.takes) if name != "audio")
    wanted: Sequence[Picture] = [name for name in known if name in row.needs or name in files]
    if len(wanted) > setting.frames:
        raise UsageError(f"{setting.frames} frame cannot begin with one image and end with another", "ask for 5 frames")
    return {
        name: pictures.read(files[name]) if name in files else pictures.drawn(name, setting.size) for name in wanted
    }


def denoiser(model: Model, component: str, numerics: Numerics) -> Denoiser:
    """Returns the network of a denoiser, without weights."""
    return JUDGED[model.components[component].architecture.name].build(model, component, numerics)
