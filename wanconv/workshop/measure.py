"""The course of a validation: contexts, probes, recording, a free run; what came out goes into the results."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanconv.engine.numerics import Numerics
from wanconv.engine.recorder import Recorder
from wanconv.engine.sampling import TRAIN_STEPS, official_grid, task_of
from wanconv.families import DENOISERS
from wanconv.metrics.tensors import compare
from wanconv.tensors import Model
from wanconv.verdict import Profile, coarsest
from wanconv.workshop import generation, validation
from wanconv.workshop.forced import Probe
from wanconv.workshop.generation import Run, Setting
from wanconv.workshop.progress import Progress
from wanconv.workshop.validation import Inputs, Json, agreement_figures
from wanconv.workshop.weights import ModelWeights

Clips = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to run, beside the profile; None leaves it to the profile, and numerics to the model."""

    numerics: str | None
    full_length: bool
    steps: int | None
    size: tuple[int, int] | None
    frames: int | None
    prompt: str
    seed: int
    memory_nbytes: int
    device: str


class Measurement:
    """One validation on its way. `reference` is None when only the candidate's safety is asked for."""

    def __init__(
        self, candidate: ModelWeights, reference: ModelWeights | None, profile: Profile, wanted: Wanted, tell: Progress
    ) -> None:
        self.candidate, self.reference, self.profile, self.wanted, self.tell = (
            candidate,
            reference,
            profile,
            wanted,
            tell,
        )
        model = candidate.model
        task = task_of(model.family.name, model.release.name if model.release else None)
        width, height = (int(side) for side in profile.size.split("x"))
        self.numerics = validation.default_numerics(model, wanted.numerics)
        self.setting = generation.setting(
            model,
            task,
            official_grid(wanted.steps or profile.steps or task.steps, task.shift),
            wanted.size or (width, height),
            wanted.frames or profile.frames,
            wanted.seed,
            wanted.device,
        )
        self.notes: list[str] = []
        self.storage: list[Json] = []
        self.safety: list[Json] = []
        self.steps: list[Json] = []
        self.components: list[Json] = []
        self.runs: list[Json] = []
        self.exercised: list[str] = []

    @property
    def models(self) -> list[ModelWeights]:
        """The models at hand, the reference first."""
        return [weights for weights in (self.reference, self.candidate) if weights is not None]

    def measure(self) -> tuple[Json, Clips]:
        """Returns the measured part of the results, and the frames of the free run."""
        with validation.peak_anonymous() as peak:
            inputs = self._inputs()
            self._vae()
            wanted = validation.timesteps(self.profile, self.setting.task.boundary)
            for number, (component, probe) in enumerate(validation.probes(self.setting, inputs, wanted).items()):
                self.tell("probing the denoisers", number, len(self.setting.task.guidance))
                self._probe(component, probe)
            if self.wanted.full_length:
                self._full_length(inputs)
            video, clips = self._free_run(inputs)
            self.runs.append({"model": "whole validation", "peak_anonymous_nbytes": peak()})
        return {
            "notes": self.notes,
            "experts_wanted": [name for name in self.candidate.model.family.components if name in DENOISERS],
            "experts_exercised": self.exercised,
            "storage": self.storage,
            "safety": self.safety,
            "steps": self.steps,
            "components": self.components,
            "video": video,
            "runs": self.runs,
        }, clips

    def _inputs(self) -> Inputs:
        """Returns the contexts both models get, and compares the text encoders where both have one."""
        having = [weights for weights in self.models if "text_encoder" in weights.model.components]
        tokens = generation.tokens_of([weights.model for weights in self.models], self.wanted.prompt)
        if not having or tokens is None:
            contexts, note = generation.made_up_contexts(self.candidate.model, self.wanted.seed)
            self.notes.append(note)
            return Inputs(contexts.to(self.setting.device), self._condition())
        self.tell("encoding the prompt", 0, len(having))
        encoded = [generation.text_encoder(weights, torch.float32).encode(tokens) for weights in having]
        if len(encoded) == 2:
            self._compared("text_encoder", "text context", *encoded)
        if self.candidate in having:
            half = torch.float16 in (self.numerics.linear, self.numerics.residual)
            encoder = generation.text_encoder(self.candidate, torch.float16 if half else torch.bfloat16)
            recorder = Recorder()
            recorder.watch(encoder.module)
            with recorder:
                encoder.encode(tokens)
            self.safety.append(validation.safety_row("text_encoder", "fp16" if half else "bf16", recorder))
        return Inputs(encoded[0].to(self.setting.device), self._condition())

    def _condition(self) -> Tensor | None:
        if self.candidate.model.family.model_type != "i2v":
            return None
        having = [weights for weights in self.models if "vae" in weights.model.components]
        if not having:
            self.notes.append("no VAE at hand: the image condition is grey latents")
        return generation.condition_of(self.setting, generation.vae_of(having[0]) if having else None)

    def _vae(self) -> None:
        """Compares what both VAEs make of the same latents and of the same image, and records the candidate's."""
        having = [weights for weights in self.models if "vae" in weights.model.components]
        if self.candidate not in having:
            return
        latents, image = validation.clean_latents(self.setting), generation.image_of(self.setting).unsqueeze(2)
        vaes = [generation.vae_of(weights) for weights in having]
        if len(vaes) == 2:
            self._compared("vae", "decoded video", *(vae.decode(latents) for vae in vaes))
            self._compared("vae", "encoded image", *(vae.encode(image) for vae in vaes))
        strict = self.numerics.name == "fp16"
        recorded = generation.vae_of(self.candidate, torch.float16 if strict else torch.float32)
        recorder = Recorder()
        recorder.watch(recorded.module)
        with recorder:
            recorded.decode(latents)
        self.safety.append(validation.safety_row("vae", "fp16" if strict else "fp32", recorder))

    def _compared(self, component: str, what: str, reference: Tensor, candidate: Tensor) -> None:
        pairs = self._dtypes(component)
        figures = agreement_figures(compare(reference.float(), candidate.float()))
        self.components.append({"component": component, "what": what, "format": coarsest(pairs), **figures})
        if not any(str(row["tensor"]).startswith(f"{component}/") for row in self.storage):
            assert self.reference is not None
            stored = validation.compare_stored(component, self.reference.model, self.candidate.model)
            self.storage += validation.storage_rows(stored)

    def _dtypes(self, component: str) -> list[tuple[str, str]]:
        assert self.reference is not None
        theirs, ours = (one.model.components[component].tensors for one in (self.reference, self.candidate))
        return [(theirs[name].dtype, ours[name].dtype) for name in theirs]

    def _probe(self, component: str, probe: Probe) -> None:
        if component not in self.candidate.model.components:
            return
        if self.reference is not None and component in self.reference.model.components:
            found, rows = validation.compare_component(component, self.reference, self.candidate, probe)
            self.steps += rows
            self.storage += validation.storage_rows(found.tensors)
            self.runs.append({"model": f"{component}, both models, every probe", "seconds": found.seconds})
        self.safety.append(
            validation.record(component, self.candidate, self.numerics, probe, self.profile.accumulators)
        )
        self.exercised.append(component)

    def _full_length(self, inputs: Inputs) -> None:
        """Records one step at the task's own length and size: what a short clip does not reach."""
        task = self.setting.task
        long = generation.setting(
            self.candidate.model, task, self.setting.grid, task.size, task.frames, self.wanted.seed, self.wanted.device
        )
        if inputs.condition is not None:
            inputs = replace(inputs, condition=generation.condition_of(long, None))
        for component, probe in validation.probes(long, inputs, [TRAIN_STEPS - 1]).items():
            row = validation.record(component, self.candidate, self.numerics, probe, self.profile.accumulators)
            self.safety.append({**row, "component": f"{component}, full length"})

    def _free_run(self, inputs: Inputs) -> tuple[Json | None, Clips]:
        """Generates with both models and with the reference one ulp away; compares the decoded clips."""
        if not self.profile.video or self.reference is None:
            return None, {}
        vaes = [weights for weights in self.models if "vae" in weights.model.components]
        complete = all(
            name in weights.model.components
            for weights in self.models
            for name in self.candidate.model.family.components
            if name in DENOISERS
        )
        if not vaes or not complete:
            self.notes.append("no free run: it takes every denoiser of both models, and a VAE")
            return None, {}
        start = generation.noise(self.setting)
        wanted = (
            ("reference", self.reference, start),
            ("candidate", self.candidate, start),
            ("control", self.reference, validation.one_ulp_away(start)),
        )
        runs: dict[str, Run] = {}
        for number, (name, weights, noise) in enumerate(wanted):
            self.tell("generating with both models and a control", number, len(wanted))
            before = weights.read_nbytes
            run = generation.generate(weights, self.setting, inputs.contexts, noise, self.numerics, inputs.condition)
            source = weights if weights in vaes else vaes[0]
            runs[name] = replace(run, video=generation.vae_of(source).decode(run.latents))
            figures = {"seconds_per_step": run.seconds_per_step, "read_nbytes": weights.read_nbytes - before}
            self.runs.append({"model": name, **figures})
        clips = {name: run.video.cpu().numpy() for name, run in runs.items() if run.video is not None}
        width, height = self.setting.size
        return {
            "frames": self.setting.frames,
            "fps": self.setting.task.fps,
            "size": [width, height],
            "candidate": validation.compare_videos(runs["reference"], runs["candidate"]),
            "control": validation.compare_videos(runs["reference"], runs["control"]),
        }, clips


def measure(
    candidate: Model, reference: Model | None, profile: Profile, wanted: Wanted, tell: Progress
) -> tuple[Json, Json, Clips]:
    """Returns (settings, measured results, frames by run) of a validation."""
    device = torch.device(wanted.device)
    share = wanted.memory_nbytes // (1 if reference is None else 2)
    with ExitStack() as opened:
        ours = opened.enter_context(ModelWeights(candidate, share, device))
        theirs = None if reference is None else opened.enter_context(ModelWeights(reference, share, device))
        measurement = Measurement(ours, theirs, profile, wanted, tell)
        measured, clips = measurement.measure()
        return _settings(measurement.setting, measurement.numerics, profile, wanted), measured, clips


def _settings(setting: Setting, numerics: Numerics, profile: Profile, wanted: Wanted) -> Json:
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
        if component.architecture.name not in validation.JUDGED
    ]
    if reference is not None and reference.family is not candidate.family:
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
