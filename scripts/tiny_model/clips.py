"""Draws clips of coloured shapes that move, antialiased, with their captions. The same seed gives the same clips."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wanconv.evaluation.captions import COLOURS, DIRECTIONS, SHAPES, Caption, captions

SIDE = 48
FRAMES = 17
_REACH = 1.35  # of a triangle's corner, in radii


def drawn(seed: int, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Returns clips (N, 3, FRAMES, SIDE, SIDE), float32 in -1 … 1, of random captions, and the captions' numbers."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(captions()), (count,), generator=generator)
    return draw([captions()[int(one)] for one in which], generator, device), which


def draw(wanted: Sequence[Caption], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Returns a clip of each caption; all that a caption leaves open is random."""
    count = len(wanted)
    random = torch.rand(16, count, generator=generator)
    radii, centres = _paths(wanted, random)
    colours = torch.tensor([COLOURS[caption.colour] for caption in wanted]) + 0.1 * (random[5:8].T - 0.5)
    shapes = torch.tensor([SHAPES.index(caption.shape) for caption in wanted])
    level = 0.15 + 0.7 * random[8]
    slope = 0.12 * random[9] * (random[10] < 0.5)  # half of the backgrounds are plain
    angle = 2 * torch.pi * random[11]
    radii, centres, colours, shapes, level = (part.to(device) for part in (radii, centres, colours, shapes, level))
    slopes = torch.stack((slope * angle.cos(), slope * angle.sin())).to(device)
    along = (torch.arange(SIDE, device=device) + 0.5) / SIDE
    background = (
        level[:, None, None]
        + slopes[0, :, None, None] * (along - 0.5)
        + (slopes[1, :, None, None] * (along[:, None] - 0.5))
    )
    inside = _inside(radii, centres, shapes)  # (N, FRAMES, SIDE, SIDE)
    picture = torch.lerp(
        background[:, None, None].expand(count, 3, FRAMES, SIDE, SIDE),
        colours.clamp(0, 1)[:, :, None, None, None].expand(count, 3, FRAMES, SIDE, SIDE),
        inside[:, None],
    )
    return picture * 2 - 1


def _paths(wanted: Sequence[Caption], random: Tensor) -> tuple[Tensor, Tensor]:
    """Returns radii (N, FRAMES) and centres (N, FRAMES, 2), in pixels."""
    time = torch.linspace(0, 1, FRAMES)
    motions = [caption.motion for caption in wanted]
    radius = 7.5 + 2.5 * random[0]
    radii = radius[:, None].expand(-1, FRAMES).clone()
    small, large = 4.5 + 1.5 * random[0], 10.5 + 2.5 * random[1]
    growth = small[:, None] + (large - small)[:, None] * time
    way = 13 + 5 * random[2]
    margin = _REACH * radius + 1
    free = margin[:, None] + (SIDE - 2 * margin)[:, None] * random[3:5].T  # anywhere, (N, 2)
    start = margin + (SIDE - 2 * margin - way) * random[12]  # with the way before it
    centres = free[:, None].expand(-1, FRAMES, -1).clone()
    for clip, motion in enumerate(motions):
        if motion in DIRECTIONS:
            axis = 0 if DIRECTIONS[motion][0] else 1
            forwards = DIRECTIONS[motion][axis] > 0
            centres[clip, :, axis] = start[clip] + way[clip] * (time if forwards else 1 - time)
        elif motion == "bounces":
            height = start[clip] + way[clip]
            centres[clip, :, 1] = height - 0.9 * way[clip] * (2 * torch.pi * time).sin().abs()
        else:
            radii[clip] = growth[clip] if motion == "grows" else growth[clip].flip(0)
            margin_here = _REACH * large[clip] + 1
            centres[clip] = margin_here + (SIDE - 2 * margin_here) * random[3:5, clip]
    return radii, centres


def _inside(radii: Tensor, centres: Tensor, shapes: Tensor) -> Tensor:
    """Returns how much of each pixel lies inside of the shape, by its distance from the edge."""
    pixel = torch.arange(SIDE, device=radii.device) + 0.5
    x = pixel - centres[:, :, 0, None, None]  # (N, FRAMES, 1, SIDE)
    y = pixel[:, None] - centres[:, :, 1, None, None]
    r = radii[:, :, None, None]
    circle = r - (x * x + y * y).sqrt()
    square = 0.886 * r - torch.maximum(x.abs(), y.abs())
    half = _REACH * r / 2  # of an equilateral triangle: from the centre to an edge, half as far as to a corner
    triangle = half - torch.maximum(y + 0 * x, 0.866 * x.abs() - 0.5 * y)
    distance = torch.stack([part.expand(*radii.shape, SIDE, SIDE) for part in (circle, square, triangle)])
    own = F.one_hot(shapes, len(SHAPES)).T[:, :, None, None, None]
    return ((distance * own).sum(0) + 0.5).clamp(0, 1)
