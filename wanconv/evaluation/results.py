"""What a validation measures, as the results that verdict judges (schema wanconv.validation/1)."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from pathlib import Path

import torch
from torch import Tensor

from wanconv.engine.numerics import PRESETS, Numerics
from wanconv.engine.recorder import Incident, Range, Recorder
from wanconv.engine.sampling import TRAIN_STEPS, expert_at
from wanconv.evaluation.forced import Forced, Probe, TensorError, compare_denoisers, compare_tensor, record_denoiser
from wanconv.generation import sampling
from wanconv.generation.sampling import Run
from wanconv.generation.types import Condition, Setting
from wanconv.layouts import source_layout
from wanconv.metrics import video as video_metrics
from wanconv.metrics.perceptual import Perceptual
from wanconv.metrics.tensors import Agreement, NonFinite
from wanconv.models import DENOISERS
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX
from wanconv.quantization.codec import runs
from wanconv.quantization.plain import decode
from wanconv.types.documents import Json
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import Model, ModelTensor
from wanconv.types.progress import Advance, unheard
from wanconv.verdict import Profile, coarsest
from wanconv.weights.model import ModelWeights
from wanconv.weights.reader import Reader, Sources

_SHOWN = 20  # tensors per pair of dtypes, and ranges per component
# All of Wan's and the larger CogVideoX compute in bf16: zai-org/CogVideo README.md.
_RELEASED_IN_FP16 = ("cogvideox-2b",)
_LARGEST = {"float16": DTYPES["fp16"].largest, "bfloat16": DTYPES["bf16"].largest, "float32": DTYPES["fp32"].largest}


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What both models are fed: contexts (2, tokens, text), with the prompt and without, and one sample's condition."""

    contexts: Tensor
    condition: Condition | None


@dataclass(slots=True, eq=False)
class Rows:
    """What a validation has found so far: the lists of its results (verdict.py says what a row holds)."""

    notes: list[str] = field(default_factory=list)
    storage: list[Json] = field(default_factory=list)
    safety: list[Json] = field(default_factory=list)
    steps: list[Json] = field(default_factory=list)
    components: list[Json] = field(default_factory=list)
    runs: list[Json] = field(default_factory=list)


def default_numerics(model: Model, asked: str | None) -> Numerics:
    """Returns the numerics to imitate: what was asked for, or what the model's layout and dtypes call for."""
    denoiser = next(component for name, component in model.components.items() if name in DENOISERS)
    dtypes = [tensor.dtype for tensor in denoiser.tensors.values() if tensor.role.kind == "linear"]
    half = max(set(dtypes), key=dtypes.count) == "fp16"
    name = asked or source_layout(model).numerics
    if asked is None and name == "comfyui-fp16" and model.family.name in COGVIDEOX and not half:
        name = "diffusers"  # in bf16, which ComfyUI prefers for CogVideoX: comfy/supported_models.py
    if name == "official" and model.family.name in _RELEASED_IN_FP16:
        return PRESETS["official-fp16"]
    return PRESETS["diffusers-fp16" if name == "diffusers" and half else name]


def timesteps(profile: Profile, boundary: float | None) -> list[int]:
    """Returns the probes' timesteps: names (`first`, `boundary`, `below_boundary`) become numbers, doubles go."""
    edge = None if boundary is None else round(boundary * TRAIN_STEPS)
    named = {"first": TRAIN_STEPS - 1, "boundary": edge, "below_boundary": None if edge is None else edge - 1}
    found = [named[probe] if isinstance(probe, str) else probe for probe in profile.probes]
    return sorted({timestep for timestep in found if timestep is not None}, reverse=True)


def probes(setting: Setting, inputs: Inputs, wanted: Sequence[int]) -> dict[str, Probe]:
    """Returns component -> its batch: every timestep that is its own, with and without the prompt."""
    clean, start = clean_latents(setting), sampling.noise(setting)
    by_component: dict[str, list[int]] = {}
    for timestep in wanted:
        by_component.setdefault(expert_at(timestep, setting.task.boundary), []).append(timestep)
    made = {}
    for component, own in by_component.items():
        latents = torch.cat([setting.grid.noised(clean, start, timestep).expand(2, -1, -1, -1, -1) for timestep in own])
        made[component] = Probe(
            latents=latents,
            timesteps=torch.tensor([timestep for timestep in own for _ in range(2)], device=setting.device),
            contexts=inputs.contexts.repeat(len(own), 1, 1),
            labels=tuple((timestep, branch) for timestep in own for branch in ("prompt", "negative prompt")),
            condition=None if inputs.condition is None else inputs.condition.of(len(latents)),
        )
    return made


def clean_latents(setting: Setting) -> Tensor:
    """Returns smooth made-up latents (1, C, F, H, W) of unit deviation, as a clip's are: noise, blurred and scaled."""
    generator = torch.Generator().manual_seed(setting.seed + 1)
    rough = torch.randn(1, *setting.latents, generator=generator)
    smooth = torch.nn.functional.avg_pool3d(rough, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    return (smooth / smooth.std()).to(setting.device)


# --- class E and A: both models


def compare_component(
    component: str, reference: ModelWeights, candidate: ModelWeights, probe: Probe
) -> tuple[Forced, list[Json]]:
    """Returns the pass over a denoiser and its rows of `steps`."""
    found = compare_denoisers(component, reference, candidate, probe)
    held_to = gate(component, reference.model, candidate.model)
    rows: list[Json] = []
    for index, ((timestep, branch), agreement) in enumerate(zip(probe.labels, found.predictions, strict=True)):
        blocks = [
            {
                "block": one.block,
                "forced_relative_l2": one.forced[index],
                "running_relative_l2": one.running[index],
            }
            for one in found.blocks
        ]
        forced = [one.forced[index] for one in found.blocks]
        worst = forced.index(None) if None in forced else max(range(len(forced)), key=lambda part: forced[part] or 0.0)
        row: Json = {"component": component, "timestep": timestep, "branch": branch, "format": held_to}
        rows.append({**row, **agreement_figures(agreement), "worst_block": found.blocks[worst].block, "blocks": blocks})
    return found, rows


def gate(component: str, reference: Model, candidate: Model) -> str:
    """Returns the format whose limit a network is held to: its matrices' coarsest; a norm in fp8 loosens nothing."""
    theirs, ours = (model.components[component].tensors for model in (reference, candidate))
    pairs = [(tensor.role.kind, (tensor.dtype, ours[name].dtype)) for name, tensor in theirs.items() if name in ours]
    held_to = coarsest([pair for kind, pair in pairs if kind in ("linear", "conv")])
    return coarsest([pair for _, pair in pairs]) if held_to == "exact" else held_to


def agreement_figures(agreement: Agreement | NonFinite) -> Json:
    if isinstance(agreement, NonFinite):
        return {"relative_l2": None, "sqnr_db": None, "cosine": None}
    return {"relative_l2": agreement.relative_l2, "sqnr_db": agreement.sqnr_db, "cosine": agreement.cosine}


def compare_stored(component: str, reference: Model, candidate: Model, advance: Advance = unheard) -> list[TensorError]:
    """Returns what storing did to each tensor, read in runs: UMT5's embedding has 2.1 GB.

    What the candidate alone has is looked through for NaN and infinity.
    """
    theirs, ours = (model.components[component].tensors for model in (reference, candidate))
    with closing(Sources()) as sources:
        one, other = Reader(sources), Reader(sources)
        found = []
        for name, tensor in theirs.items():
            if name in ours:
                values = (
                    (decode(one.values(tensor, *run)), decode(other.values(ours[name], *run)))
                    for run in runs(0, tensor.numel)
                )
                found.append(compare_tensor(tensor, ours[name], values))
                advance(ours[name].nbytes)
    return found + scan_stored({name: tensor for name, tensor in ours.items() if name not in theirs}, advance)


def scan_stored(tensors: Mapping[str, ModelTensor], advance: Advance = unheard) -> list[TensorError]:
    """Returns the tensors, by canonical name, that hold NaN or infinity: all that can be said without a reference."""
    found = []
    with closing(Sources()) as sources:
        reader = Reader(sources)
        for name, tensor in tensors.items():
            for start, count in runs(0, tensor.numel):
                finite = torch.isfinite(decode(reader.values(tensor, start, count)))
                if not finite.all():
                    bad = f"NaN or infinity, the first at element {start + int(finite.int().argmin())}"
                    found.append(TensorError(name, tensor.role.kind, tensor.dtype, tensor.dtype, None, 0.0, bad))
                    break
            advance(tensor.nbytes)
    return found


def storage_rows(tensors: Sequence[TensorError]) -> list[Json]:
    """Returns class A's rows: all that is not finite or lost 1 % to zero, and the worst of each kind and its dtypes."""
    groups: dict[tuple[str, str, str], list[TensorError]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.kind, tensor.source, tensor.stored), []).append(tensor)
    shown = {tensor.name: tensor for tensor in tensors if tensor.first_not_finite or tensor.flushed_share > 0.01}
    for group in groups.values():
        worst = sorted(group, key=lambda tensor: -(inf if tensor.relative_l2 is None else tensor.relative_l2))
        shown |= {tensor.name: tensor for tensor in worst[:_SHOWN]}
    return [
        {
            "tensor": tensor.name,
            "kind": tensor.kind,
            "source": tensor.source,
            "dtype": tensor.stored,
            "format": coarsest([(tensor.source, tensor.stored)]),
            "relative_l2": tensor.relative_l2,
            "flushed_share": tensor.flushed_share,
            "first_not_finite": tensor.first_not_finite,
        }
        for tensor in shown.values()
    ]


# --- classes B, C and D: the candidate alone, recorded


def record(component: str, weights: ModelWeights, numerics: Numerics, probe: Probe, sums: bool) -> Json:
    """Returns a denoiser's row of `safety`."""
    recorder = Recorder(sums=sums)
    record_denoiser(component, weights, numerics, probe, recorder)
    return safety_row(component, numerics.name, recorder)


def safety_row(component: str, numerics: str, recorder: Recorder) -> Json:
    """Returns what a recorder saw as a row of `safety`."""
    ranges = [one for one in recorder.ranges if one.path]
    largest = max(ranges, key=_pressure, default=None)
    by_size = sorted(ranges, key=lambda one: -one.amax if isfinite(one.amax) else -inf)
    inside = [one for one in recorder.inside if one.what != "Σ|x·w|" and one.overflows and not one.harmless]
    inside = inside if "fp16" in numerics else []  # the rules are about fp16's kernels
    sums = [one for one in recorder.inside if one.what == "Σ|x·w|" and one.overflows]
    return {
        "component": component,
        "numerics": numerics,
        "operations": len(recorder.ranges),
        "largest": _finite(largest.amax) if largest else None,
        "largest_at": _where(largest) if largest else None,
        "headroom": _finite(1 / _pressure(largest)) if largest and _pressure(largest) else None,
        "first_bad": _incident(recorder.first_bad),
        "last_operations": [_range(one) for one in recorder.first_bad.before] if recorder.first_bad else [],
        "op_internal": [
            {"path": _where(one.where), "value": _finite(one.where.amax), "limit": one.limit, "why": one.what}
            for one in inside
        ],
        "accumulators": [
            {"path": _where(one.where), "value": _finite(one.where.amax), "limit": one.limit} for one in sums
        ],
        "ranges": [_range(one) for one in by_size[:_SHOWN]],
    }


def _pressure(one: Range) -> float:
    """Returns the largest magnitude over the largest number of the dtype that held it."""
    return one.amax / _LARGEST.get(one.dtype, _LARGEST["float32"])


def _where(one: Range) -> str:
    return f"{one.path}:{one.operation}" if one.path else one.operation


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _range(one: Range) -> Json:
    return {"path": one.path, "op": one.operation, "dtype": one.dtype, "largest": _finite(one.amax)}


def _incident(incident: Incident | None) -> Json | None:
    if incident is None:
        return None
    bad = incident.bad
    return {
        "path": bad.path,
        "op": bad.operation,
        "cause": incident.cause,
        "step": bad.step,
        "timestep": bad.timestep,
        "expert": bad.expert,
    }


# --- the free run


def compare_videos(reference: Run, candidate: Run, network: Perceptual | None = None) -> Json:
    """Returns every video metric as JSON values; where a clip is not finite, whose it is."""
    assert reference.video is not None
    assert candidate.video is not None
    clips = video_metrics.clip(reference.video), video_metrics.clip(candidate.video)
    first, second = clips
    if isinstance(first, video_metrics.NonFiniteFrames) or isinstance(second, video_metrics.NonFiniteFrames):
        bad = [isinstance(one, video_metrics.NonFiniteFrames) for one in clips]
        return {"not_finite": [whose for whose, is_bad in zip(("reference", "candidate"), bad, strict=True) if is_bad]}
    return asdict(video_metrics.compare(first, second, network))


def one_ulp_away(start: Tensor) -> Tensor:
    """Returns the noise with every number moved to its float32 neighbour: what no eye and no model should notice."""
    return torch.nextafter(start, torch.full_like(start, inf))


@contextmanager
def peak_anonymous() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the largest anonymous memory since it was entered, in bytes (Linux; else 0)."""
    peak, stop = [_anonymous()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], _anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak[0], _anonymous())
    finally:
        stop.set()
        thread.join()


def _anonymous() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:")), 0)
