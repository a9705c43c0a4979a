"""What the small model's captions say, and what a clip shows: the vocabulary, and a classifier of drawn shapes.

The classifier knows no model. It looks at the pixels that differ from the background: their mean colour, the share of
their bounding box that they fill, and the paths of their centroid and area.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# fmt: off
COLOURS: Mapping[str, tuple[float, float, float]] = {  # RGB in 0 … 1
    "red":     (0.90, 0.10, 0.10),
    "green":   (0.10, 0.75, 0.15),
    "blue":    (0.10, 0.20, 0.90),
    "yellow":  (0.95, 0.85, 0.10),
    "magenta": (0.90, 0.10, 0.80),
    "cyan":    (0.10, 0.85, 0.90),
}
FILLED: Mapping[str, float] = {"circle": 0.785, "square": 1.0, "triangle": 0.5}  # of the bounding box
DIRECTIONS: Mapping[str, tuple[int, int]] = {  # of the centroid, (x, y), y downwards
    "moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1),
}
# fmt: on
SHAPES = tuple(FILLED)
MOTIONS = (*DIRECTIONS, "grows", "shrinks", "bounces")

_FAINT = 0.2  # a frame that differs less from its background's grey shows nothing
_FAR = 0.12  # of the clip's width: from here on, a centroid's way is a move
_TURNED = 1.8  # factor of the area from which on it grows or shrinks


@dataclass(frozen=True, slots=True)
class Caption:
    """What one clip shows; `str` is the prompt."""

    colour: str
    shape: str
    motion: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} {self.motion}"


def captions() -> list[Caption]:
    """Returns every caption, colours slowest."""
    return [Caption(colour, shape, motion) for colour in COLOURS for shape in SHAPES for motion in MOTIONS]


def classify(clip: NDArray[np.uint8]) -> Caption | None:
    """Returns what a clip (frames, height, width, 3) shows; None where nothing differs from the background."""
    pixels = clip.astype(np.float64) / 255
    border = np.concatenate((pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]), axis=1)
    background = np.median(border, axis=1)[:, None, None]  # of each frame
    difference = np.abs(pixels - background).max(axis=-1)
    clear = difference > np.maximum(difference.max(axis=(1, 2)), _FAINT)[:, None, None] / 2
    area = clear.sum(axis=(1, 2))
    if (area < 4).any():
        return None
    boxes = [np.argwhere(frame) for frame in clear]  # rows of (y, x)
    filled = np.median([len(box) / np.prod(np.ptp(box, axis=0) + 1) for box in boxes])
    path = np.array([box.mean(axis=0)[::-1] for box in boxes]) / clip.shape[2]  # (x, y) of the centroid
    mean = pixels[clear].mean(axis=0)
    return Caption(
        min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum())),
        min(FILLED, key=lambda name: abs(filled - FILLED[name])),
        _motion(path, area),
    )


def _motion(path: NDArray[np.float64], area: NDArray[np.int64]) -> str:
    """Returns the motion: where the centroid ends decides first, as an area is less sure than a place."""
    way = path[-2:].mean(axis=0) - path[:2].mean(axis=0)
    if np.abs(way).max() >= _FAR:
        return max(DIRECTIONS, key=lambda name: float(way @ np.array(DIRECTIONS[name])))
    growth = area[-3:].mean() / area[:3].mean()
    if growth > _TURNED or growth < 1 / _TURNED:
        return "grows" if growth > 1 else "shrinks"
    return "bounces"
