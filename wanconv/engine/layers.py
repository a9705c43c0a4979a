"""Layers that Wan's denoisers share: weights of any float dtype, cast at each use to what the numerics say."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanconv.engine.numerics import Numerics

_EPSILON = 1e-6
_THETA = 10000.0


class Linear(nn.Module):
    """x Wᵀ + b in the dtype that it is told; weight (out, in)."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight.to(self.dtype), self.bias.to(self.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) · weight over all heads at once, squares and result in the dtypes of the numerics."""

    def __init__(self, d: int, numerics: Numerics) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d), requires_grad=False)
        self.numerics = numerics

    def forward(self, x: Tensor) -> Tensor:
        if self.numerics.rms == torch.float16:  # what no library kernel does: squares that end at 65504
            x = x.to(torch.float16)
            return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + _EPSILON) * self.weight.to(x.dtype)
        # The official norm rounds to the dtype of x before it multiplies by float32 weights.
        dtype = self.numerics.qk_norm
        if dtype == torch.float32 != x.dtype:
            return F.rms_norm(x, x.shape[-1:], eps=_EPSILON).to(dtype) * self.weight.to(dtype)
        return F.rms_norm(x.to(dtype), x.shape[-1:], self.weight.to(dtype), _EPSILON)


class LayerNorm(nn.Module):
    """The norm before cross-attention, the only one with parameters of its own."""

    def __init__(self, d: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(d), requires_grad=False)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.to(self.dtype), x.shape[-1:], self.weight.to(self.dtype), self.bias.to(self.dtype), _EPSILON
        )


def per_token(rows: Tensor, which: Tensor) -> Tensor:
    """Looks up (T, d) for which (B,) -> (B, 1, d), or (B, N) -> (B, N, d)."""
    found = rows[which]
    return found.unsqueeze(1) if which.dim() == 1 else found


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns norm(x) · (1 + scale) + shift, in their dtype."""
    return torch.addcmul(shift, F.layer_norm(x.to(shift.dtype), x.shape[-1:], eps=_EPSILON), 1 + scale)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q·kᵀ / √c)·v of (B, N, heads, c), as (B, N, heads · c); not masked."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rotations(grid: tuple[int, int, int], width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns exp(i · position · θ) (F·H·W, 1, width / 2), complex: pairs for time, then height, then width.

    Axes have 2·(width // 6) of `width` channels each, time has the rest: 44, 42, 42 of 128.
    """
    side = 2 * (width // 6)
    parts = []
    for axis, channels in enumerate((width - 2 * side, side, side)):
        frequency = 1.0 / _THETA ** (torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels)
        angle = torch.outer(torch.arange(grid[axis], dtype=torch.float64, device=device), frequency)
        around = [1, 1, 1, channels // 2]
        around[axis] = grid[axis]
        parts.append(torch.polar(torch.ones_like(angle), angle).view(around).expand(*grid, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2).unsqueeze(1).to(dtype.to_complex())


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns neighbouring channels of (B, N, heads, c) as complex numbers, in the precision of `rotation`."""
    pairs = torch.view_as_complex(x.to(rotation.dtype.to_real()).view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2)


def sinusoid(timestep: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Returns (T, width) of (T,): cosines, then sines, of timestep · 10000^(-i / half); float32."""
    half = width // 2
    frequency = torch.pow(_THETA, -torch.arange(half, dtype=dtype, device=timestep.device) / half)
    angle = torch.outer(timestep.to(dtype), frequency)
    return torch.cat((angle.cos(), angle.sin()), dim=1).float()
