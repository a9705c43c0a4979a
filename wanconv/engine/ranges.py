"""The range of fp16: where a kernel would overflow inside an operation, and inside a sum.

fp16 ends at 65504; from 65520 on a number rounds to infinity. Nonzero numbers up to 2^-25 round to zero, those below
2^-14 lose bits (IEEE 754-2019 binary16, ties to even).

Three ways to fail are kept apart. Activations are the results of operations: the recorder sees them. Inside an
operation are squares, cubes and logits that no tensor shows. torch's kernels compute them in float32; others may not,
so INSIDE says for which inputs a kernel in fp16 would fail. Finally, a sum whose result fits may overflow on its way:
that depends on the kernel's order, but cannot happen if the sum of magnitudes fits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 65504.0
OVERFLOWS = 65520.0
FLUSHED = 2.0**-25
SUBNORMAL = 2.0**-14
_UNIT = 2.0**-11  # half the spacing of numbers in [1, 2)


@dataclass(frozen=True, slots=True)
class Inside:
    """An intermediate value of an fp16 kernel for input x: infinite for |x| >= `limit`; `harmless` if the result is
    right.

    GELU's x³ only saturates a tanh that is 1 by then.
    """

    what: str
    limit: float
    harmless: bool = False


_SQUARE = Inside("x²", OVERFLOWS**0.5)  # 255.97
_CENTRED = Inside("(x - mean)²", OVERFLOWS**0.5)
_CUBE = Inside("x³", OVERFLOWS ** (1 / 3), harmless=True)  # 40.31
_LOGIT = Inside("q·kᵀ", OVERFLOWS)
# aten operation -> rule on its first argument; composite operations arrive whole in inference mode, else in parts
INSIDE: Mapping[str, Inside] = {
    "rms_norm": _SQUARE,
    "_fused_rms_norm": _SQUARE,
    "pow": _SQUARE,  # with exponent 2
    "square": _SQUARE,
    "linalg_vector_norm": _SQUARE,  # F.normalize: the RMS norm of the Wan VAE
    "layer_norm": _CENTRED,
    "native_layer_norm": _CENTRED,
    "group_norm": _CENTRED,
    "native_group_norm": _CENTRED,
    "gelu": _CUBE,
    "softmax": _LOGIT,
    "_softmax": _LOGIT,
    "_safe_softmax": _LOGIT,
}


@dataclass(frozen=True, slots=True)
class Accumulator:
    """The largest sum of |x|·|w| of a matrix product, or an upper bound of it, and a limit that no order can
    overflow."""

    bound: float
    limit: float
    exact: bool

    @property
    def safe(self) -> bool:
        return self.bound < self.limit  # False for NaN


def accumulator(x: Tensor, weight: Tensor) -> Accumulator:
    """Bounds every partial sum of x Wᵀ, x (..., K) and W (out, K), in any order of fp16 additions.

    A sum of K terms rounded at each step stays below Σ|x·w| · (1 + K·u), u = 2^-11, so it cannot overflow where
    Σ|x·w| < 65504 / (1 + K·u) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Row norms bound the sums
    first (Cauchy-Schwarz); the product of magnitudes is formed only of the rows for which that is not enough.
    """
    x = x.reshape(-1, x.shape[-1])
    limit = LARGEST / (1 + x.shape[-1] * _UNIT)
    rows, columns = _norms(x), _norms(weight)
    widest, heaviest = rows.max(), columns.max()
    if float(widest * heaviest) < limit:
        return Accumulator(float(widest * heaviest), limit, exact=False)
    safe, others = rows * heaviest < limit, columns * widest < limit  # NaN is not
    filtered = max(_largest(rows[safe] * heaviest), _largest(columns[others] * widest))
    sums = float((x[~safe].float().abs() @ weight[~others].float().abs().T).max())
    return Accumulator(filtered, limit, exact=False) if sums < filtered else Accumulator(sums, limit, exact=True)


def _largest(bounds: Tensor) -> float:
    return float(bounds.max()) if bounds.numel() else 0.0


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    return norms


def small_shares(wide: Tensor, rounded: Tensor | None = None) -> tuple[float, float]:
    """Returns the shares of elements that fp16 flushes to zero, and that it keeps as subnormals with fewer bits.

    `wide` has the numbers before rounding; `rounded`, if given, those after it.
    """
    magnitude = wide.abs()
    zero = magnitude <= FLUSHED if rounded is None else rounded == 0
    flushed = (zero & (magnitude > 0)).sum()
    subnormal = ((magnitude < SUBNORMAL) & ~zero).sum()
    return int(flushed) / wide.numel(), int(subnormal) / wide.numel()
