"""LPIPS v0.1 on AlexNet: the network, and its distance between two frames.

The features after each of AlexNet's five convolutions are scaled to length 1 at every place; their squared differences
are weighed by channel, summed, and averaged over places. Frames are taken at their own size, without resizing.

Definition: Zhang et al. 2018 (arXiv:1801.03924), lpips/lpips.py of richzhang/PerceptualSimilarity; convolutions and
pools as in torchvision's alexnet (Krizhevsky 2014, arXiv:1404.5997). Tests compare with the package `lpips`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 31  # pixels: the first convolution and two pools reduce this to one place
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # for R, G and B in -1 … 1
_EPSILON = 1e-10


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution of AlexNet, named as in torchvision; `pooled`: a max pool of 3 × 3 at stride 2 comes before it."""

    name: str
    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    pooled: bool


# fmt: off
LAYERS = (
    Layer("features.0",  ( 64,   3, 11, 11), 4, 2, pooled=False),
    Layer("features.3",  (192,  64,  5,  5), 1, 2, pooled=True),
    Layer("features.6",  (384, 192,  3,  3), 1, 1, pooled=True),
    Layer("features.8",  (256, 384,  3,  3), 1, 1, pooled=False),
    Layer("features.10", (256, 256,  3,  3), 1, 1, pooled=False),
)
# fmt: on


@dataclass(frozen=True, slots=True, eq=False)
class Perceptual:
    """LPIPS' weights, layer by layer: convolutions' weights and biases, and the channels' weights (C,)."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]

    @classmethod
    def of(cls, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> "Perceptual":
        """Returns the network of two state dicts: torchvision's alexnet, and LPIPS' heads `lin0` to `lin4`."""
        return cls(
            tuple(backbone[f"{layer.name}.weight"].detach() for layer in LAYERS),
            tuple(backbone[f"{layer.name}.bias"].detach() for layer in LAYERS),
            tuple(heads[f"lin{index}.model.1.weight"].detach().flatten() for index in range(len(LAYERS))),
        )


@torch.inference_mode()
def distance(network: Perceptual, one: Tensor, other: Tensor) -> float:
    """Returns the LPIPS of two frames (3, H, W), R'G'B' within [0, 1], both sides at least SMALLEST."""
    total = 0.0
    pairs = zip(_features(network, one), _features(network, other), strict=True)
    for head, (mine, theirs) in zip(network.heads, pairs, strict=True):
        weighed = (mine - theirs).square_() * head.to(mine.device).view(-1, 1, 1)
        total += weighed.sum(dim=0).mean(dtype=torch.float64).item()
    return total


def _features(network: Perceptual, frame: Tensor) -> Iterator[Tensor]:
    """Yields what each convolution sees, (C, h, w), of length 1 over its channels."""
    shift, scale = (frame.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (_SHIFT, _SCALE))
    x = (2 * frame.float() - 1 - shift) / scale
    for layer, weight, bias in zip(LAYERS, network.weights, network.biases, strict=True):
        if layer.pooled:
            x = F.max_pool2d(x, 3, 2)
        x = F.relu(F.conv2d(x, weight.to(x.device), bias.to(x.device), layer.stride, layer.padding))
        yield x / (torch.linalg.vector_norm(x, dim=0) + _EPSILON)
