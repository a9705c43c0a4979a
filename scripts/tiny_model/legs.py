"""Training in stages and legs: the VAE, one denoiser with the text encoder, then the two experts that it splits into.

A leg goes on from the state that the last one left, and what is random in a step depends on the seed and the step
alone, so that legs change nothing.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny_model import clips, networks
from tiny_model.networks import DIT, LATENTS_MEAN, LATENTS_STD, TEXT, TOKENS, VAE, WORDS, Weights
from tiny_model.optimizer import Optimizer
from torch import Tensor, nn

from wanconv.engine.sampling import task_of
from wanconv.errors import UsageError
from wanconv.evaluation.captions import SHAPES, captions

_TASK = task_of("wan2.2-t2v-a14b")
BOUNDARY, SHIFT = _TASK.boundary, _TASK.shift
_INSIDE, _EDGE = 4.0, 6.0  # how much more a shape's error weighs than its background's, and more than that at its edge
_CONTRAST = 10.0  # how sure a pixel is that has all of the shape's colour
_CERTAIN = 8.0  # how much more it matters near an edge which side a pixel is on
_NOISE = 0.5  # at most, on the latents that are decoded, in deviations: the denoisers' are not exact
_PROBE, _PROBE_NOISE = 0.3, 1.0  # weight of the probe, and the most noise, in deviations, that it reads through
_PULL = 1e-2  # of the latents towards the official mean and deviation
_UNCONDITIONAL = 0.1
_DECAY = 0.999  # of the average of the weights that is kept


@dataclass(frozen=True)
class Stage:
    """`noise` is the range of noise levels; `after` the stage whose weights it begins with."""

    steps: int
    batch: int
    rate: float
    noise: tuple[float, float] = (0.0, 1.0)
    after: str | None = None


STAGES: Mapping[str, Stage] = {
    "vae": Stage(5000, 14, 1.5e-3),
    "base": Stage(12000, 1024, 1.5e-3),
    "high": Stage(4000, 1024, 7e-4, (BOUNDARY, 1.0), "base"),
    "low": Stage(4000, 1024, 7e-4, (0.0, BOUNDARY), "base"),
}


@dataclass
class Leg:
    """Where training stands. `weights` are averaged ones of finished stages; `current` is of the running one."""

    folder: Path
    device: str
    seed: int
    clips: int
    stages: Mapping[str, Stage]
    weights: dict[str, Weights] = field(default_factory=dict)
    current: dict[str, object] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "state.pt"

    @property
    def latents(self) -> Path:
        return self.folder / "latents.pt"

    @property
    def settings(self) -> dict[str, int]:
        found = {"seed": self.seed, "clips": self.clips}
        for name, stage in self.stages.items():
            found |= {f"{name} steps": stage.steps, f"{name} batch": stage.batch}
        return found

    def read(self) -> None:
        """Goes on from what the last leg saved; raises UsageError where that had other settings."""
        if not self.file.exists():
            return
        state = torch.load(self.file, map_location=self.device, weights_only=True)
        other = [f"{key} was {value}" for key, value in state["settings"].items() if value != self.settings.get(key)]
        if other:
            raise UsageError(f"{self.folder} holds another training: {', '.join(other)}", "name another --state")
        self.weights, self.current = state["weights"], state["current"]

    def save(self) -> None:
        write({"settings": self.settings, "weights": self.weights, "current": self.current}, self.file)

    def tell(self, **row: object) -> None:
        with (self.folder / "log.jsonl").open("a") as log:
            print(json.dumps(row), file=log)
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)


def write(value: object, file: Path) -> None:
    """Puts a file in the place of another, whole or not at all."""
    beside = file.with_suffix(".new")
    torch.save(value, beside)
    beside.replace(file)


def train(leg: Leg, minutes: float) -> bool:
    """Returns whether training is done; it stops, with its state saved, after so many minutes."""
    deadline = time.monotonic() + 60 * minutes
    leg.folder.mkdir(parents=True, exist_ok=True)
    leg.read()
    made: dict[str, Callable[[Leg], Callable[[Weights, int], Tensor]]] = {
        "vae": _vae_loss,
        "base": _flow_loss,
        "high": _flow_loss,
        "low": _flow_loss,
    }
    for name in leg.stages:
        if name in leg.weights:
            continue
        if not _run(leg, name, made[name], deadline):
            return False
    return True


def _begin(leg: Leg, name: str) -> Weights:
    stage = leg.stages[name]
    if stage.after:
        start = {key: value for key, value in leg.weights[stage.after].items() if not key.startswith("text/")}
    elif name == "vae":
        start = networks.initial(VAE, leg.seed)
        start |= {"probe.weight": torch.zeros(1 + len(SHAPES), networks.CHANNELS, 1, 3, 3)}
        start |= {"probe.bias": torch.zeros(1 + len(SHAPES))}
    else:
        start = networks.initial(DIT, leg.seed + 1)
        start |= {f"text/{key}": value for key, value in networks.initial(TEXT, leg.seed + 2).items()}
    layout = {True: torch.channels_last_3d, False: torch.contiguous_format}
    return {key: value.to(leg.device).clone(memory_format=layout[value.dim() == 5]) for key, value in start.items()}


def _run(leg: Leg, name: str, made: Callable[..., Callable[[Weights, int], Tensor]], deadline: float) -> bool:
    """Returns whether the stage is done, its averaged weights being in `leg.weights` then."""
    stage = leg.stages[name]
    if leg.current.get("stage") != name:
        begun = _begin(leg, name)
        leg.current = {"stage": name, "step": 0, "weights": begun, "optimizer": None}
        leg.current["average"] = {key: value.clone() for key, value in begun.items()}
    weights: Weights = {key: nn.Parameter(value) for key, value in leg.current["weights"].items()}
    average: Weights = leg.current["average"]
    optimizer = Optimizer(weights, stage.rate)
    if leg.current["optimizer"]:
        optimizer.load_state_dict(leg.current["optimizer"])
    loss_of = made(leg, name)
    step, begin, losses = leg.current["step"], time.monotonic(), []
    while step < stage.steps and time.monotonic() < deadline:
        rate = stage.rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        loss = loss_of(weights, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0, foreach=True)
        optimizer.step(rate)
        step += 1
        decay = min(_DECAY, step / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [value.detach() for value in weights.values()], 1 - decay)
        losses.append(loss.detach())
        if step % 100 == 0 or step == stage.steps:
            mean = torch.stack(losses).mean().item()
            leg.tell(stage=name, step=step, loss=round(mean, 5), seconds=round(time.monotonic() - begin, 1))
            losses = []
    done = step == stage.steps
    detached = {key: value.detach() for key, value in weights.items()}
    leg.current = {"stage": name, "step": step, "weights": detached, "average": average}
    leg.current["optimizer"] = optimizer.state_dict()
    if done:
        leg.weights[name], leg.current = average, {}
        if name == "vae":
            _normalise(leg)
            leg.latents.unlink(missing_ok=True)  # of another one
    leg.save()
    return done


def _seed(leg: Leg, name: str, step: int) -> int:
    return ((leg.seed * 8 + list(STAGES).index(name) + 1) << 32) + step


# --- the VAE


def _vae_loss(leg: Leg, name: str) -> Callable[[Weights, int], Tensor]:
    """Returns the error of clips that are decoded from noisy latents, and of what a probe reads in the latents."""
    pool, which = _drawn(leg, 1000, min(leg.clips, 4096))
    shapes = torch.tensor([SHAPES.index(caption.shape) for caption in captions()], device=leg.device)[which]
    batch = leg.stages[name].batch
    middle, deviation = _statistics(leg.device)

    def loss(weights: Weights, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(_seed(leg, name, step))
        chosen = torch.randint(len(pool), (batch,), generator=generator).to(leg.device)
        video = _cropped(pool[chosen], step, generator).float() / 127.5 - 1
        latents = networks.encode(weights, video)
        spread = latents.detach().std((0, 2, 3, 4), keepdim=True)
        noise, further = (
            spread * torch.randn(latents.shape, generator=generator).to(leg.device) for _ in ("decoder", "probe")
        )
        level, level_further = torch.rand(2, len(video), 1, 1, 1, 1, generator=generator).to(leg.device)
        decoded = networks.decode(weights, latents + _NOISE * level**2 * noise)
        seen = latents + _PROBE_NOISE * level_further * further
        pull = (((latents - middle) / deviation) ** 2).mean()
        probe = _probe_error(weights, seen, video, shapes[chosen][: len(video)])
        return _picture_error(decoded, video) + _PROBE * probe + _PULL * pull

    return loss


def _picture_error(decoded: Tensor, video: Tensor) -> Tensor:
    """Returns how far pixels are off, and how many are on the wrong side of the shape's edge; edges weigh most."""
    share = _coloured(video)
    inside = (share > 0.5).float()
    edge = F.max_pool2d(inside, 5, 1, 2) + F.max_pool2d(-inside, 5, 1, 2)
    error = decoded - video
    off = ((1 + _INSIDE * inside + _EDGE * edge)[:, None] * (error.abs() + error**2)).mean()
    sure = _CONTRAST * (_saturation(decoded) / _saturation(video).amax((1, 2, 3), keepdim=True).clamp(min=0.6) - 0.5)
    side = F.binary_cross_entropy_with_logits(sure, inside, reduction="none")
    return off + ((1 + _CERTAIN * edge) * side).mean()


def _probe_error(weights: Weights, latents: Tensor, video: Tensor, shapes: Tensor) -> Tensor:
    """Returns how badly one convolution tells from noisy latents which cells a shape covers, and which shape it is."""
    share = F.avg_pool2d(_coloured(video), 8)  # (B, F, h, w)
    share = torch.cat((share[:, :1], share[:, 1:].unflatten(1, (-1, 4)).mean(2)), dim=1)
    cells = torch.where(share > 0.2, shapes.view(-1, 1, 1, 1) + 1, 0)
    cells = cells.masked_fill((share > 0.02) & (share <= 0.2), -100)  # neither
    guessed = F.conv3d(latents, weights["probe.weight"], weights["probe.bias"], padding=(0, 1, 1))
    rare = torch.ones(guessed.shape[1], device=guessed.device)
    rare[0] = 0.3
    return F.cross_entropy(guessed, cells, weight=rare)


def _saturation(video: Tensor) -> Tensor:
    """Returns what a shape's pixels have and a background's have not, as backgrounds are grey.  # (B, F, H, W)"""
    return video.amax(1) - video.amin(1)


def _coloured(video: Tensor) -> Tensor:
    """Returns how much of each pixel the shape covers."""
    saturation = _saturation(video)
    return saturation / saturation.amax((1, 2, 3), keepdim=True).clamp(min=0.6)


def _cropped(video: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Returns 9 frames of 24 x 24 or 32 x 32 pixels around each shape, or in every 16th step a few whole clips.

    Plain background teaches little, and edges are what is hard: small crops have more of them.
    """
    if step % 16 == 15:
        return video[: max(1, len(video) // 5)]
    side = 32 if step % 3 == 0 else 24
    crops = []
    for clip in video[: max(1, len(video) * 24**2 // side**2)]:
        first, *moved = (int(torch.randint(size, (1,), generator=generator)) for size in (9, 13, 13))
        part = clip[:, first : first + 9]
        coloured = (part.amax(0).int() - part.amin(0).int() > 60).any(0)
        places = coloured.nonzero().float()  # rows of (y, x)
        middle = (places.amin(0) + places.amax(0)) / 2
        top, left = (
            min(clips.SIDE - side, max(0, int(place) - side // 2 + move - 6))
            for place, move in zip(middle.tolist(), moved, strict=True)
        )
        crops.append(part[:, :, top : top + side, left : left + side])
    return torch.stack(crops)


def _statistics(device: str) -> tuple[Tensor, Tensor]:
    """Returns the official mean and deviation of the latents' channels, (CHANNELS, 1, 1, 1)."""
    mean, deviation = (torch.tensor(values, device=device) for values in (LATENTS_MEAN, LATENTS_STD))
    return mean.view(-1, 1, 1, 1), deviation.view(-1, 1, 1, 1)


def _drawn(leg: Leg, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Returns clips as bytes, and their captions' numbers."""
    sizes = [min(256, count - begin) for begin in range(0, count, 256)]
    seeds = range(leg.seed * 100_000 + first, leg.seed * 100_000 + first + len(sizes))
    parts = [_bytes(*clips.drawn(seed, size, leg.device)) for seed, size in zip(seeds, sizes, strict=True)]
    return torch.cat([video for video, _ in parts]), torch.cat([which for _, which in parts]).to(leg.device)


def _bytes(video: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    return ((video + 1) * 127.5).round().byte(), which


@torch.no_grad()
def _normalise(leg: Leg) -> None:
    """Folds into the outermost layers of the latents what gives them the official mean and deviation per channel."""
    weights = leg.weights["vae"]
    del weights["probe.weight"], weights["probe.bias"]
    pool, _ = _drawn(leg, 2000, min(leg.clips, 2048))
    modes = _modes(weights, pool)
    mean, deviation = modes.mean(dim=(0, 2, 3, 4)), modes.std(dim=(0, 2, 3, 4))
    theirs, scale = (part.flatten() for part in _statistics(leg.device))
    factor = scale / deviation
    out, into = "encoder.latent_proj", "decoder.latent_proj"
    weight, bias = weights[f"{out}.weight"], weights[f"{out}.bias"]
    weight[:16] *= factor.view(-1, 1, 1, 1, 1)
    bias[:16] = bias[:16] * factor + theirs - mean * factor
    bias[16:] += 2 * factor.log()
    weight, bias = weights[f"{into}.weight"], weights[f"{into}.bias"]
    bias += weight[:, :, 0, 0, 0] @ (mean - theirs / factor)
    weight /= factor.view(1, -1, 1, 1, 1)


def _modes(weights: Weights, pool: Tensor) -> Tensor:
    return torch.cat([networks.encode(weights, part.float() / 127.5 - 1).contiguous() for part in pool.split(32)])


# --- the denoisers


def _flow_loss(leg: Leg, name: str) -> Callable[[Weights, int], Tensor]:
    """Returns the error of the velocity, of the text encoder's and the denoiser's weights together."""
    latents, which = _latents(leg)
    stage = leg.stages[name]
    device = leg.device
    wan = networks.denoiser(device)
    table = tokens().to(device)
    frozen = {key[5:]: value for key, value in leg.weights.get("base", {}).items() if key.startswith("text/")}
    low, high = (level / (SHIFT - (SHIFT - 1) * level) for level in stage.noise)  # before the shift

    def loss(weights: Weights, step: int) -> Tensor:
        random = torch.Generator(device).manual_seed(_seed(leg, name, step))
        chosen = torch.randint(len(latents), (stage.batch,), generator=random, device=device)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=random, device=device)
        even = low + (high - low) * torch.rand(stage.batch, generator=random, device=device)
        sigma = SHIFT * even / (1 + (SHIFT - 1) * even)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        words = _dropped(table[which[chosen]], random)
        text = frozen or {key[5:]: value for key, value in weights.items() if key.startswith("text/")}
        own = {key: value for key, value in weights.items() if not key.startswith("text/")}
        context = networks.encode_text(text, words)
        lengths = (words != 0).sum(1)
        predicted = networks.velocity(networks.holding(wan, own), noisy, 1000 * sigma, context, lengths)
        return F.mse_loss(predicted, noise - clean)

    return loss


def _latents(leg: Leg) -> tuple[Tensor, Tensor]:
    """Returns the normalised latents of the training clips, from a file where they are there, and their captions."""
    if not leg.latents.exists():
        mean, deviation = _statistics(leg.device)
        parts, captions_of = [], []
        with torch.no_grad():
            for first in range(0, leg.clips, 2048):
                pool, which = _drawn(leg, 3000 + first // 256, min(2048, leg.clips - first))
                parts.append((_modes(leg.weights["vae"], pool) - mean) / deviation)
                captions_of.append(which)
        write({"latents": torch.cat(parts), "which": torch.cat(captions_of)}, leg.latents)
    found = torch.load(leg.latents, map_location=leg.device, weights_only=True)
    return found["latents"], found["which"]


def tokens() -> Tensor:
    """Returns the tokens of every caption, filled up with <pad>.  # (captions, TOKENS)"""
    rows = [[WORDS.index(word) for word in str(caption).split()] + [1] for caption in captions()]
    return torch.tensor([row + [0] * (TOKENS - len(row)) for row in rows])


def _dropped(words: Tensor, random: torch.Generator) -> Tensor:
    """Returns tokens, some without their caption: as the negative prompt <unk>, as nothing, or as several <unk>."""
    device = words.device
    draw, length = torch.rand(2, len(words), generator=random, device=device)
    places = torch.arange(TOKENS, device=device)
    count = torch.where(draw < 0.5 * _UNCONDITIONAL, 1, (length * (TOKENS - 1)).long())
    count = torch.where(draw > 0.8 * _UNCONDITIONAL, 0, count)[:, None]
    empty = 2 * (places < count) + (places == count)
    return torch.where(draw[:, None] < _UNCONDITIONAL, empty, words)


def components(leg: Leg) -> Iterator[tuple[str, Weights]]:
    """Yields the trained networks as export.write takes them."""
    for component, stage in (("vae", "vae"), ("expert.high", "high"), ("expert.low", "low")):
        yield component, leg.weights[stage]
    yield "text_encoder", {key[5:]: value for key, value in leg.weights["base"].items() if key.startswith("text/")}
