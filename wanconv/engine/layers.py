"""Layers shared by Wan's denoisers: weights of any float dtype, cast at each use as the numerics say."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanconv.engine.numerics import Numerics

_EPSILON = 1e-6
_IMAGE_EPSILON = 1e-5
_THETA = 10000.0


class Linear(nn.Module):
    """x Wᵀ + b in the given dtype; weight (out, in)."""

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
        if self.numerics.rms == torch.float16:  # squares that end at 65504, which no library kernel computes
            x = x.to(torch.float16)
            return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + _EPSILON) * self.weight.to(x.dtype)
        # The official norm rounds to the dtype of x before it multiplies by float32 weights.
        dtype = self.numerics.qk_norm
        if dtype == torch.float32 != x.dtype:
            return F.rms_norm(x, x.shape[-1:], eps=_EPSILON).to(dtype) * self.weight.to(dtype)
        return F.rms_norm(x.to(dtype), x.shape[-1:], self.weight.to(dtype), _EPSILON)


class LayerNorm(nn.Module):
    """A norm with parameters of its own: before cross-attention, and around the embedding of image tokens."""

    def __init__(self, d: int, dtype: torch.dtype, epsilon: float = _EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.empty(d), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(d), requires_grad=False)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.to(self.dtype), x.shape[-1:], self.weight.to(self.dtype), self.bias.to(self.dtype), self.epsilon
        )


class ImageEmbedding(nn.Module):
    """CLIP's tokens (B, 257 or 514, image) -> (.., d), normed before and after; those of two images have positions."""

    def __init__(self, d: int, image: int, positions: int, numerics: Numerics) -> None:
        super().__init__()
        if positions:
            self.position_embedding = nn.Parameter(torch.empty(1, positions, image), requires_grad=False)
        self.norm_in = LayerNorm(image, numerics.modulation, _IMAGE_EPSILON)
        self.add_module("in", Linear(image, image, numerics.linear))  # a keyword
        self.out = Linear(d, image, numerics.linear)
        self.norm_out = LayerNorm(d, numerics.modulation, _IMAGE_EPSILON)
        self.positions, self.dtype = positions, numerics.residual

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)  # clients with a narrow residual stream pass CLIP's tokens in its dtype
        if self.positions:
            x = x + self.position_embedding.to(x.dtype)
        y: Tensor = self.norm_out(self.out(F.gelu(self.get_submodule("in")(self.norm_in(x)))))
        return y


def modulate(x: Tensor, shift: Tensor, scale: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns norm(x) · (1 + scale) + shift, in their dtype: (B, N, d), and rows (B, S, d) for S runs of tokens."""
    normed = F.layer_norm(x.to(shift.dtype), x.shape[-1:], eps=_EPSILON)
    parts = zip(_runs(normed, lengths), torch.split(shift, 1, 1), torch.split(scale, 1, 1), strict=True)
    return _joined([torch.addcmul(own_shift, part, 1 + own_scale) for part, own_shift, own_scale in parts])


class Modulate(nn.Module):
    """`modulate` under a name of its own: a block has two, without parameters, and a recorder sees them apart."""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, lengths: Sequence[int]) -> Tensor:
        return modulate(x, shift, scale, lengths)


def gated(x: Tensor, y: Tensor, gate: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns x + gate · y in the gate's dtype: (B, N, d), and rows (B, S, d) for S runs of tokens."""
    both = (_runs(one.to(gate.dtype), lengths) for one in (x, y))
    parts = zip(*both, torch.split(gate, 1, 1), strict=True)
    return _joined([torch.addcmul(part, added, own_gate) for part, added, own_gate in parts])


def _runs(x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.split(x, list(lengths), dim=1)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q·kᵀ / √c)·v of (B, N, heads, c), as (B, N, heads · c); not masked."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rotations(places: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
    """Returns exp(i · position · θ) (F·H·W, 1, width / 2), complex: pairs for time, then height, then width.

    `places`: the positions (F,), (H,) and (W,) along the axes. Axes have 2·(width // 6) of `width` channels each, time
    has the rest: 44, 42, 42 of 128.
    """
    side, grid = 2 * (width // 6), [len(axis) for axis in places]
    parts = []
    for axis, channels in enumerate((width - 2 * side, side, side)):
        own = places[axis].double()
        frequency = 1.0 / _THETA ** (torch.arange(0, channels, 2, dtype=torch.float64, device=own.device) / channels)
        angle = torch.outer(own, frequency)
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
