"""Teacher forcing: both denoisers on the same inputs, in lockstep, block by block, and one pass over the weights.

Whole videos are chaotic: two runs that differ by one unit in the last place can end far apart. What a conversion did to
a model shows where nothing can build up: at one step, from the same latents, and at one block, from the same input.
Every timestep and both branches of guidance are one batch, so each block is read once per model.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from wanconv.engine.numerics import FP32, Numerics
from wanconv.engine.recorder import Recorder
from wanconv.engine.weights import Fetch
from wanconv.generation.tasks import denoiser
from wanconv.generation.types import Condition, Denoiser
from wanconv.metrics.tensors import Agreement, Comparison, NonFinite, compare
from wanconv.types.architecture import Kind
from wanconv.types.model import ModelTensor
from wanconv.weights.model import ModelWeights

Weights = Mapping[str, Tensor]

_PART = 1 << 18  # elements at a time: their masks stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A batch of inputs: latents (B, C, F, H, W), timesteps (B,), contexts (B, tokens, text); `labels` name each.

    The condition is of the whole batch.
    """

    latents: Tensor
    timesteps: Tensor
    contexts: Tensor
    labels: tuple[tuple[int, str], ...]
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class BlockError:
    """How far a part of the stack moved apart, per label: fed the reference's input (`forced`), or its own (`running`).

    Both relative to what the part adds to the residual stream; None where one side is not finite.
    """

    block: str
    forced: tuple[float | None, ...]
    running: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class TensorError:
    """What storing did to one tensor: relative L2 (None: infinite), and the share of its numbers that became zero."""

    name: str
    kind: Kind
    source: str
    stored: str
    relative_l2: float | None
    flushed_share: float
    first_not_finite: str | None


@dataclass(slots=True)
class Forced:
    """What a pass over one component found; `predictions` compares the velocities per label."""

    component: str
    predictions: list[Agreement | NonFinite] = field(default_factory=list)
    blocks: list[BlockError] = field(default_factory=list)
    tensors: list[TensorError] = field(default_factory=list)
    seconds: float = 0.0


def compare_denoisers(component: str, reference: ModelWeights, candidate: ModelWeights, probe: Probe) -> Forced:
    """Returns how far the candidate's denoiser is from the reference's, both computed in float32."""
    start = time.perf_counter()
    found = Forced(component)
    theirs, ours = partial(reference.tensors, component), partial(candidate.tensors, component)
    first, second = (denoiser(one.model, component, FP32) for one in (reference, candidate))
    state, other_state = _embedded(first, theirs, probe), _embedded(second, ours, probe)
    for prefix in _ends(reference, candidate, component, first.stack):
        found.tensors += _compare_weights(component, reference, candidate, theirs(prefix), ours(prefix))
    for name in first.stack:
        before, weights = state, theirs(name)
        state = first.block(name, partial(_given, weights), before)
        others = ours(name)
        found.tensors += _compare_weights(component, reference, candidate, weights, others)
        del weights  # of 14B, a block in fp32 has 1.4 GB
        forced = second.block(name, partial(_given, others), before)
        other_state = second.block(name, partial(_given, others), other_state)
        del others
        update = state.x - before.x
        errors = (_errors(update, one.x - state.x) for one in (forced, other_state))
        found.blocks.append(BlockError(name, *errors))
    wanted, given = first.unembed(theirs, state), second.unembed(ours, other_state)
    found.predictions = [compare(one, other) for one, other in zip(wanted, given, strict=True)]
    found.seconds = time.perf_counter() - start
    return found


def record_denoiser(
    component: str, weights: ModelWeights, numerics: Numerics, probe: Probe, recorder: Recorder
) -> Tensor:
    """Runs a denoiser under `numerics` with every operation recorded; returns the velocities."""
    network = denoiser(weights.model, component, numerics)
    network.watch(recorder)
    with recorder:
        recorder.at(expert=component)
        return network.denoise(
            partial(weights.tensors, component), probe.latents, probe.timesteps, probe.contexts, probe.condition
        )


def _embedded(network: Denoiser, fetch: Fetch, probe: Probe) -> Any:
    return network.embed(fetch, probe.latents, probe.timesteps, probe.contexts, probe.condition)


def _given(weights: Weights, prefix: str) -> Weights:
    """A Fetch of weights that are at hand."""
    return weights


def _ends(reference: ModelWeights, candidate: ModelWeights, component: str, stack: Iterable[str]) -> list[str]:
    """Returns the prefixes of everything that both have and that is not in the stack."""
    stacked = {name.split(".")[0] for name in stack}
    theirs, ours = (one.model.components[component].tensors for one in (reference, candidate))
    names = (name.partition("/")[2].split(".")[0] for name in theirs if name in ours)
    return [name for name in dict.fromkeys(names) if name not in stacked]


def _errors(update: Tensor, error: Tensor) -> tuple[float | None, ...]:
    """Returns ||error|| / ||update|| per sample, in float64."""
    found: list[float | None] = []
    for one, other in zip(update, error, strict=True):
        norm, size = (float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in (one, other))
        ratio = size / norm if norm else (0.0 if size == 0 else inf)
        found.append(ratio if ratio < inf else None)  # NaN, too
    return tuple(found)


def _compare_weights(
    component: str, reference: ModelWeights, candidate: ModelWeights, theirs: Weights, ours: Weights
) -> list[TensorError]:
    sources, stored = (one.model.components[component].tensors for one in (reference, candidate))
    return [
        compare_tensor(sources[f"{component}/{name}"], stored[f"{component}/{name}"], [(tensor, ours[name])])
        for name, tensor in theirs.items()
    ]


def compare_tensor(source: ModelTensor, stored: ModelTensor, runs: Iterable[tuple[Tensor, Tensor]]) -> TensorError:
    """Returns what storing did to a tensor, given runs of decoded (reference, candidate) elements."""
    comparison, flushed = Comparison(), 0
    for first, second in runs:
        comparison.add(first, second)
        parts = (torch.split(values.reshape(-1), _PART) for values in (first, second))
        flushed += sum(_flushed(one, other) for one, other in zip(*parts, strict=True))
    result, error, bad = comparison.result(), None, None
    if isinstance(result, NonFinite):
        whose = "in both models" if result.reference and result.candidate else "in one of the models"
        bad = f"NaN or infinity {whose}, the first at element {result.first}"
    else:
        error = result.relative_l2
    return TensorError(stored.name, stored.role.kind, source.dtype, stored.dtype, error, flushed / source.numel, bad)


def _flushed(one: Tensor, other: Tensor) -> int:
    """Returns how many numbers of `one` are zero in `other` alone."""
    kept = int(torch.count_nonzero(other))
    return 0 if kept == other.numel() else int(torch.count_nonzero(torch.logical_or(one, other))) - kept
