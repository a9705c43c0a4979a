"""How the small model's weights move: those between a network's ends that have two dimensions or more by their
orthogonalized momentum ("Muon"; the gains of the VAE's norms count as columns), all else by AdamW.

When the shipped VAE was trained, 150 steps of this did what took AdamW alone 225, on the same clips.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

MATRICES = 6.7  # times the rate of all else
_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)  # a x + b x³ + c x⁵ brings singular values near 1 in five rounds (Keller Jordan)
_INSIDE = ("encoder.", "decoder.", "blocks.", "text/blocks.")  # the layers between a network's ends


class Optimizer:
    """Of named weights; the momentum of matrices and AdamW's state are what `state_dict` holds."""

    def __init__(self, weights: Mapping[str, Tensor], rate: float) -> None:
        self._matrices = {name: value for name, value in weights.items() if _is_matrix(name, value)}
        self._momentum = {name: torch.zeros_like(value) for name, value in self._matrices.items()}
        rest = [value for name, value in weights.items() if name not in self._matrices]
        self._adam = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
        self._all = list(weights.values())

    def state_dict(self) -> dict[str, object]:
        return {"momentum": self._momentum, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        self._momentum = state["momentum"]
        self._adam.load_state_dict(state["adam"])

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Moves every weight by its gradient, which is gone then."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        gradients = [value.grad for value in self._matrices.values()]
        torch._foreach_lerp_(list(self._momentum.values()), gradients, 1 - _MOMENTUM)
        alike: dict[torch.Size, list[str]] = {}
        for name, value in self._matrices.items():
            alike.setdefault(value.flatten(1).shape, []).append(name)
        for names in alike.values():
            ahead = (self._matrices[name].grad.lerp(self._momentum[name], _MOMENTUM).flatten(1) for name in names)
            for name, move in zip(names, _orthogonal(ahead), strict=True):
                self._matrices[name].add_(move.reshape(self._matrices[name].shape), alpha=-MATRICES * rate)
        for value in self._all:
            value.grad = None


def _is_matrix(name: str, value: Tensor) -> bool:
    table = name.endswith("relative_bias.weight")
    return name.startswith(_INSIDE) and name.endswith(".weight") and value.dim() >= 2 and not table


def _orthogonal(matrices: Iterable[Tensor]) -> Tensor:
    """Returns matrices nearby with singular values about 1, a tall one's larger.  # n of (r, c) -> (n, r, c)"""
    x = torch.stack(list(matrices))
    rows, columns = x.shape[1:]
    x = x.mT if rows > columns else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-9)
    first, third, fifth = _QUINTIC
    for _ in range(5):
        square = x @ x.mT
        x = first * x + (third * square + fifth * square @ square) @ x
    return (x.mT if rows > columns else x) * max(1, rows / columns) ** 0.5
