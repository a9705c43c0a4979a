"""The course of a validation: encoders, probes, recording, a free run; what came out goes into the results."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanconv.engine.numerics import Numerics
from wanconv.engine.sampling import TRAIN_STEPS, exercised, fitting_frames, task_of
from wanconv.evaluation import results
from wanconv.evaluation.encoders import Encoders
from wanconv.evaluation.forced import Probe
from wanconv.evaluation.results import Inputs, Rows
from wanconv.generation import sampling, speech, tasks
from wanconv.generation.sampling import Run
from wanconv.generation.types import Condition, Input, Material, Setting
from wanconv.layouts.sizes import heads
from wanconv.metrics.perceptual import Perceptual
from wanconv.models import DENOISERS
from wanconv.types.documents import Json
from wanconv.types.figures import count
from wanconv.types.model import Component, Model
from wanconv.types.progress import Advance, Progress, total
from wanconv.verdict import Profile
from wanconv.weights.model import ModelWeights, Pair

Clips = dict[str, NDArray[np.float32]]
Kept = dict[str, tuple[Run, Json]]  # a reference's free runs by name, each with its row of `runs`

_WORTH_THREADS = 1 << 20  # elements of a matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """What to run, in addition to the profile; None leaves it to the profile, and numerics to the model.

    `files` are the inputs that the user hands over; those that a network needs and that are not there are made up.
    `kept` gets the reference's free runs and gives them to the next candidate: to be shared only among validations that
    differ in nothing else. `perceptual` is LPIPS' network, where the user handed it over.
    """

    numerics: str | None
    full_length: bool
    steps: int | None
    size: tuple[int, int] | None
    frames: int | None
    prompt: str
    seed: int
    memory_nbytes: int
    device: str
    files: Mapping[Input, Path] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    perceptual: Perceptual | None = None


class Measurement:
    """One validation on its way. `reference` is None when only the candidate's safety is asked for."""

    def __init__(
        self,
        candidate: ModelWeights,
        reference: ModelWeights | None,
        profile: Profile,
        wanted: MeasureSettings,
        tell: Progress,
    ) -> None:
        self.pair = Pair(candidate, reference)
        self.candidate, self.reference = candidate, reference
        self.profile, self.wanted, self.tell = profile, wanted, tell
        self.numerics = results.default_numerics(candidate.model, wanted.numerics)
        self.setting = _setting(candidate.model, profile, wanted)
        self.judged = tasks.judged(candidate.model)
        self.pictures = tasks.pictures_of(self.judged, self.setting, wanted.files)
        self.samples = speech.samples(wanted.files.get("audio"), self.setting) if "audio" in self.judged.needs else None
        self.rows = Rows()
        self.exercised: list[str] = []
        self.denoisers = [name for name in candidate.model.family.components if name in DENOISERS]

    def measure(self) -> tuple[Json, Clips]:
        """Returns the measured part of the results, and the frames of the free run."""
        with results.peak_anonymous() as peak:
            self._absent()
            inputs = self._inputs()
            self._stored()
            self._probes(inputs)
            if self.wanted.full_length:
                self._full_length(inputs)
            video, clips = self._free_run(inputs)
            self.rows.runs.append({"model": "whole validation", "peak_anonymous_nbytes": peak()})
        return {
            "notes": self.rows.notes,
            "experts_wanted": self.denoisers,
            "experts_exercised": self.exercised,
            "storage": self.rows.storage,
            "safety": self.rows.safety,
            "steps": self.rows.steps,
            "components": self.rows.components,
            "video": video,
            "runs": self.rows.runs,
        }, clips

    def _inputs(self) -> Inputs:
        """Returns what both denoisers are given: what of it is encoded, the reference's encoders encode."""
        encoders = Encoders(self.pair, self.numerics, self.setting, self.wanted.seed, self.rows, self.tell)
        contexts = encoders.contexts(self.wanted.prompt, padded=self.wanted.full_length)
        tokens, states = encoders.image_tokens(self.pictures), encoders.states(self.samples)
        having = self.pair.having("vae")
        vae = sampling.vae_of(having[0]) if having else None
        self.material = Material(self.setting, self.pictures, tokens, vae, states)
        condition = self.judged.condition(self.material)
        if condition is not None and vae is None:
            self.rows.notes.append("no VAE at hand: the image is grey latents")
        encoders.vae(self.pictures.get("image"))
        return Inputs(contexts, condition)

    def _absent(self) -> None:
        """Notes what neither is judged nor compared."""
        for what, weights in (("candidate", self.candidate), ("reference", self.reference)):
            for name in self.candidate.model.family.components:
                if weights is not None and name not in weights.model.components:
                    self.rows.notes.append(f"the {what} has no {name}")
        if self.reference is None:
            return
        for name, component in self.candidate.model.components.items():
            if self.pair.compares(name):
                theirs = self.reference.model.components[name].tensors.keys()
                for what, lone in (
                    ("reference", theirs - component.tensors),
                    ("candidate", component.tensors - theirs),
                ):
                    if lone:  # CLIP's text half, or the sines of CogVideoX-2B, which some layouts have no place for
                        words = "tensor that is never used is", "tensors that are never used are"
                        self.rows.notes.append(f"{name}: {count(len(lone), *words)} in the {what} alone")

    def _stored(self) -> None:
        """Compares or scans the stored numbers of every component, but for denoisers: those are read when they run."""
        alone = {name for name in self.candidate.model.components if not self.pair.compares(name)}
        read = {
            name: component
            for name, component in self.candidate.model.components.items()
            if name in alone or name not in DENOISERS
        }
        nbytes = sum(tensor.nbytes for component in read.values() for tensor in component.tensors.values())
        advance = total(self.tell, "reading the stored numbers", nbytes)
        for name, component in read.items():
            if self.reference is None or name in alone:
                tensors = results.scan_stored(component.tensors, advance)
            else:
                tensors = results.compare_stored(name, self.reference.model, self.candidate.model, advance)
            self.rows.storage += results.storage_rows(tensors)

    def _probes(self, inputs: Inputs) -> None:
        wanted = results.timesteps(self.profile, self.setting.task.boundary)
        probes = results.probes(self.setting, inputs, wanted)
        probes = {name: probe for name, probe in probes.items() if name in self.candidate.model.components}
        advance = total(self.tell, "probing", len(probes), "denoisers")
        for component, probe in probes.items():
            self._probe(component, probe)
            advance(1)

    def _probe(self, component: str, probe: Probe) -> None:
        if self.reference is not None and self.pair.compares(component):
            both = self.reference, self.candidate
            before = sum(weights.read_nbytes for weights in both)
            found, rows = results.compare_component(component, self.reference, self.candidate, probe)
            self.rows.steps += rows
            self.rows.storage += results.storage_rows(found.tensors)
            self.rows.runs.append(
                {
                    "model": f"{component}, both models, every probe",
                    "seconds": found.seconds,
                    "seconds_per_step": found.seconds / len(set(probe.timesteps.tolist())),
                    "read_nbytes": sum(weights.read_nbytes for weights in both) - before,
                }
            )
        self.rows.safety.append(
            results.record(component, self.candidate, self.numerics, probe, self.profile.accumulators)
        )
        if self.reference is None or self.pair.compares(component):
            self.exercised.append(component)

    def _full_length(self, inputs: Inputs) -> None:
        """Records one step at the task's own length and size: what a short clip does not reach."""
        task = self.setting.task
        long = tasks.setting(
            self.candidate.model, task, self.setting.grid, task.size, task.frames, self.wanted.seed, self.wanted.device
        )
        inputs = replace(inputs, condition=self.judged.condition(replace(self.material, setting=long, vae=None)))
        for component, probe in results.probes(long, inputs, [TRAIN_STEPS - 1]).items():
            row = results.record(component, self.candidate, self.numerics, probe, self.profile.accumulators)
            self.rows.safety.append({**row, "component": f"{component}, full length"})

    def _free_run(self, inputs: Inputs) -> tuple[Json | None, Clips]:
        """Generates with both models and with the reference one ulp away; compares the decoded clips."""
        if not self.profile.video or self.reference is None:
            return None, {}
        if not self.pair.having("vae") or not all(map(self.pair.compares, self.denoisers)):
            self.rows.notes.append("no free run: it takes every denoiser of both models, and a VAE")
            return None, {}
        starved = [
            name
            for name, count in exercised(self.setting.grid.timesteps, self.setting.task.boundary).items()
            if not count
        ]
        self.rows.notes += [f"the free run never reached {name}: ask for more steps" for name in starved]
        start = sampling.noise(self.setting)
        wanted = (
            ("reference", self.reference, start),
            ("candidate", self.candidate, start),
            ("control", self.reference, results.one_ulp_away(start)),
        )
        runs: dict[str, Run] = {}
        clips_each = 1 if self.material.states is None else len(speech.heard(self.material))
        lacking = sum(name not in self.wanted.kept for name, _, _ in wanted)
        advance = total(self.tell, "generating", lacking * clips_each * len(self.setting.grid), "steps")
        for name, weights, noise in wanted:
            found = self.wanted.kept.get(name) or self._generated(name, weights, noise, inputs, advance)
            if weights is self.reference:
                self.wanted.kept[name] = found
            runs[name], row = found
            self.rows.runs.append(row)
        clips = {name: run.video.cpu().numpy() for name, run in runs.items() if run.video is not None}
        return {
            "frames": len(clips["reference"]),
            "fps": self.setting.task.fps,
            "size": list(self.setting.size),
            "candidate": results.compare_videos(runs["reference"], runs["candidate"], self.wanted.perceptual),
            "control": results.compare_videos(runs["reference"], runs["control"], self.wanted.perceptual),
        }, clips

    def _generated(
        self, name: str, weights: ModelWeights, start: Tensor, inputs: Inputs, advance: Advance
    ) -> tuple[Run, Json]:
        before = weights.read_nbytes
        with results.peak_anonymous() as peak:
            vae = sampling.vae_of(weights if "vae" in weights.model.components else self.pair.having("vae")[0])
            sampled: list[Run] = []

            def sample(noise: Tensor, condition: Condition | None) -> Tensor:
                sampled.append(
                    sampling.generate(weights, self.setting, inputs.contexts, noise, self.numerics, condition, advance)
                )
                return sampled[-1].latents

            video = self.judged.film(sample, start, inputs.condition, replace(self.material, vae=vae))
            run = replace(sampled[-1], video=video)
        return run, {
            "model": name,
            "seconds_per_step": run.seconds_per_step,
            "peak_anonymous_nbytes": peak(),
            "read_nbytes": weights.read_nbytes - before,
        }


def measure(
    candidate: Model, reference: Model | None, profile: Profile, wanted: MeasureSettings, tell: Progress
) -> tuple[Json, Json, Clips]:
    """Returns (settings, measured results, frames by run) of a validation."""
    if reference is not None:
        candidate, reference = _told(candidate, reference), _told(reference, candidate)
    device = torch.device(wanted.device)
    share = wanted.memory_nbytes // (1 if reference is None else 2)
    with _threads(candidate), ExitStack() as opened:
        ours = opened.enter_context(ModelWeights(candidate, share, device))
        theirs = None if reference is None else opened.enter_context(ModelWeights(reference, share, device))
        measurement = Measurement(ours, theirs, profile, wanted, tell)
        measured, clips = measurement.measure()
        return _settings(measurement.setting, measurement.numerics, profile, wanted), measured, clips


def _setting(model: Model, profile: Profile, wanted: MeasureSettings) -> Setting:
    task = task_of(model.family.name, model.release.name if model.release else None)
    row, (width, height) = tasks.judged(model), map(int, profile.size.split("x"))
    frames = fitting_frames(task, profile.frames)
    if (limit := row.limit(model)) is not None:
        (widest, highest), most = limit
        width, height, frames = min(width, widest), min(height, highest), min(frames, most or frames)
    grid = row.schedule(model, task, wanted.steps or profile.steps or task.steps)
    size, frames = wanted.size or (width, height), wanted.frames or frames
    return tasks.setting(model, task, grid, size, frames, wanted.seed, wanted.device)


@contextmanager
def _threads(model: Model) -> Iterator[None]:
    """Computes a miniature on one thread: two would spend more time on waiting for each other."""
    before = torch.get_num_threads()
    largest = max(tensor.numel for tensor in model.tensors.values() if tensor.role.kind == "linear")
    torch.set_num_threads(1 if largest < _WORTH_THREADS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _told(model: Model, other: Model) -> Model:
    """Returns a model with the other's sizes where its own files do not say them, as those without config.json: heads,
    groups of norms, the size of a clip that it was trained for.
    """
    components = {
        name: replace(component, dims={**_sizes(other, component), **component.dims})
        for name, component in model.components.items()
    }
    return replace(model, components=components)


def _sizes(model: Model, like: Component) -> Mapping[str, int]:
    """Returns the sizes that a model knows of a component like this one."""
    component = model.components.get(like.name)
    if component is None or component.architecture != like.architecture:
        return {}
    if like.name in DENOISERS and "heads" not in like.dims:
        return {**component.dims, "heads": heads(model, component)}
    return component.dims


def _settings(setting: Setting, numerics: Numerics, profile: Profile, wanted: MeasureSettings) -> Json:
    return {
        "profile": profile.name,
        "numerics": numerics.name,
        "steps": len(setting.grid),
        "timesteps": setting.grid.timesteps.tolist(),
        "shift": setting.task.shift,
        "guidance": list(setting.task.guidance),
        "boundary": setting.task.boundary,
        "size": list(setting.size),
        "frames": setting.frames,
        "seed": setting.seed,
        "prompt": wanted.prompt,
        "device": wanted.device,
        "full_length": wanted.full_length,
        "given": {name: str(path) for name, path in wanted.files.items()},
    }


def cannot_judge(candidate: Model, reference: Model | None) -> list[str]:
    """Returns the sentences that keep a model from being judged at all."""
    reasons = []
    denoisers = [component for name, component in candidate.components.items() if name in DENOISERS]
    if not denoisers:
        reasons.append("the candidate holds no denoiser")
    reasons += [
        f"{component.name} is {component.architecture.name}, which the engine does not compute yet"
        for component in denoisers
        if component.architecture.name not in tasks.JUDGED
    ]
    reasons += [
        f"{which} says of itself that it is {model.title}, which the engine does not compute: "
        f"it would judge {model.mark.base}, whose tensors are the same"
        for which, model in (("the candidate", candidate), ("the reference", reference))
        if model is not None and model.mark is not None
    ]
    if reference is not None and reference.family != candidate.family:
        reasons.append(f"the candidate is {candidate.family.name}, and the reference {reference.family.name}")
    if reference is not None:
        reasons += _different_sizes(candidate, reference)
    return reasons


def _different_sizes(candidate: Model, reference: Model) -> Sequence[str]:
    both: Mapping[str, Mapping[str, int]] = {name: component.dims for name, component in reference.components.items()}
    return [
        f"{name} has other sizes in the reference"
        for name, component in candidate.components.items()
        if name in both and any(both[name].get(size, value) != value for size, value in component.dims.items())
    ]
