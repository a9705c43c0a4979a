"""Dense optical flow between two frames: pyramidal, iterative Lucas-Kanade with Gaussian windows.

Every pixel's window of `first` is looked up in `second`; its displacement solves the 2 x 2 least squares system

    [sum gx gx   sum gx gy] [dx]     [sum gx d]
    [sum gx gy   sum gy gy] [dy] = - [sum gy d]      d = second(x + flow) - first(x),   g = gradient of first

over the window, some times per level, from a small copy of the frames to half of their full size; the last step to full
size is interpolated. `_DAMPING` on the diagonal keeps the coarser level's answer if there is no texture.

It serves to align a clip's neighbouring frames: it finds a translation of up to some 30 pixels to a tenth of a pixel,
for an image with detail at every scale. Limits: the flow at a motion edge is a blend over the window,
some 20 pixels wide, and flat ground next to a moving thing moves along, since the small copies' windows reach further.
It fails for objects that move further than their own size, repeated patterns, fine noise that moves more than 8 pixels
(small copies do not show it), changes of brightness, uncovered areas, and the rim where the motion leaves.

Sources: Lucas and Kanade 1981; Bouguet 2001, "Pyramidal Implementation of the Lucas Kanade Feature Tracker".
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_COARSEST = 24  # pixels: no level's shorter side is smaller, because a window needs room
_SMALLEST = 8
_ITERATIONS = 4
_STEP = 2.0  # pixels: the largest correction of one iteration, against runaway windows
_DAMPING = 2e-6  # in squared gradients of [0, 1]: below the noise of 8-bit frames, (1 / 255) ** 2 / 8


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Returns (2, H, W), dx and dy in pixels, so that second(x + flow) looks like first(x); both are (H, W) float32.

    Raises ValueError below 8 x 8 pixels.
    """
    if min(first.shape) < _SMALLEST:
        raise ValueError(
            f"optical flow needs {_SMALLEST} x {_SMALLEST} pixels, and the frames have {list(first.shape)}"
        )
    levels = [(_half(first), _half(second))]
    while min(levels[-1][0].shape) >= 2 * _COARSEST:
        levels.append((_half(levels[-1][0]), _half(levels[-1][1])))
    flow = torch.zeros(2, 1, 1, device=first.device)
    for coarse, fine in reversed(levels):
        flow = _refine(coarse, fine, _enlarge(flow, coarse.shape))
    return _enlarge(flow, first.shape)


def warp(frame: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the (C, H, W) frame looked up bilinearly at x + flow, and which (H, W) of these places lie inside it."""
    H, W = frame.shape[1:]
    x = flow[0] + torch.arange(W, device=flow.device)
    y = flow[1] + torch.arange(H, device=flow.device)[:, None]
    inside = (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)
    grid = torch.stack([x * (2 / max(W - 1, 1)) - 1, y * (2 / max(H - 1, 1)) - 1], dim=-1)
    return F.grid_sample(frame[None], grid[None], padding_mode="border", align_corners=True)[0], inside


def _refine(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    gradient = torch.stack(torch.gradient(first, dim=(1, 0)))  # (2, H, W): along x, along y
    gx, gy = gradient
    xx, xy, yy = _window(torch.stack([gx * gx, gx * gy, gy * gy]))
    xx, yy = xx + _DAMPING, yy + _DAMPING
    determinant = xx * yy - xy * xy
    for _ in range(_ITERATIONS):
        looked_up, inside = warp(second[None], flow)
        difference = (looked_up[0] - first) * inside
        x, y = _window(gradient * difference)
        correction = torch.stack([xy * y - yy * x, xy * x - xx * y]) / determinant
        flow = flow + correction.clamp_(-_STEP, _STEP)
    return flow


def _half(image: Tensor) -> Tensor:
    """Returns the image at half its size, each pixel the mean of four; an odd last row or column is left out."""
    return F.avg_pool2d(image[None, None], 2)[0, 0]


def _enlarge(flow: Tensor, shape: torch.Size) -> Tensor:
    """Returns a flow of the next larger level's shape, in its pixels."""
    scale = 2.0 if flow.shape[1:] != (1, 1) else 1.0
    return F.interpolate(flow[None], size=tuple(shape), mode="bilinear", align_corners=False)[0] * scale


def _window(maps: Tensor) -> Tensor:
    """Returns (C, H, W) maps averaged twice over 7 x 7, nearly a Gaussian of sigma 2.8; at the rims, what is inside."""
    for _ in range(2):
        maps = F.avg_pool2d(maps, (1, 7), 1, (0, 3), count_include_pad=False)
        maps = F.avg_pool2d(maps, (7, 1), 1, (3, 0), count_include_pad=False)
    return maps
