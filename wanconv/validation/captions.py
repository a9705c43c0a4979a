"""What the small model's captions say, and what a clip shows: the vocabulary, and a classifier of drawn shapes.

The classifier knows no model. Of what differs from the background it takes the mean colour, the share of its bounding
box that it fills, and the paths of its centroid and its area.
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

_CLEAR = 0.35  # from here on, a pixel's colour differs from the background's grey
_TURNED = 1.8  # factor of the area that is no move any more
_FAR = 0.12  # of the clip's width


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


def directed() -> list[Caption]:
    """Returns the captions of one of the four directions."""
    return [caption for caption in captions() if caption.motion in DIRECTIONS]
