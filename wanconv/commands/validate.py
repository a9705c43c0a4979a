"""validate: run the same short generation with both models, measure how far they part, and judge."""

import json
import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from wanconv import __version__
from wanconv.containers import open_checkpoint
from wanconv.conversion.fp16_gate import sample
from wanconv.errors import InputError, Occupied, UsageError
from wanconv.evaluation.backbone import Backbone
from wanconv.evaluation.report import summary
from wanconv.layouts import source_layout
from wanconv.models import Expert, identify
from wanconv.planning import family_in_words, left_out
from wanconv.provenance import manifest
from wanconv.report import Report
from wanconv.storage.local import describe_output_error, write_anew
from wanconv.storage.paths import check_target
from wanconv.types.documents import Json
from wanconv.types.extras import need
from wanconv.types.model import Model
from wanconv.types.names import suggestion
from wanconv.types.progress import Progress, silent, total
from wanconv.verdict import Profile, Verdict, judge, load_profile
from wanconv.verdict.saved import SCHEMA, read_results

if TYPE_CHECKING:
    from wanconv.evaluation.measure import Clips, Kept, MeasureSettings
    from wanconv.generation.types import Input
    from wanconv.metrics.perceptual import Perceptual

_WRITTEN = ("results.json", "validation.html", "reference", "reference.mp4", "candidate", "candidate.mp4")

PROMPT = "A cat walks on the grass, realistic style."


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """What `validate` is asked for; None leaves the choice to the profile or the model.

    `kept` is handed from one validation to the next of several with the same reference and the same settings.
    """

    against: Path | None = None
    profile: str | Profile = "standard"
    numerics: str | None = None
    full_length: bool = False
    steps: int | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    prompt: str = PROMPT
    seed: int = 0
    image: Path | None = None
    last_image: Path | None = None
    audio: Path | None = None
    lpips: Backbone | None = None
    memory_nbytes: int = 2 << 30
    device: str = "cpu"
    out: Path | None = None
    expert: Expert | None = None
    exclude: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    kept: "Kept" = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Validated:
    """A verdict, and what it stands on: saved results, the profile's limits, the frames of the free run."""

    results: Json
    verdict: Verdict
    profile: Profile
    clips: "Clips"
    out: Path | None = None

    def report(self) -> Report:
        return summary.report(self.results, self.verdict, self.profile, self.out, tuple(self.clips))


def recheck(path: Path, profile_name: str) -> Report:
    """Returns the verdict on saved results under another profile, or under thresholds that have changed."""
    results = read_results(path)
    profile = load_profile(profile_name)
    return summary.report(results, judge(results, profile), profile, None, ())


def validate(path: Path, options: ValidateOptions, progress: Progress = silent) -> Report:
    """Returns the verdict on a model; raises InputError and UsageError where it cannot even be asked for."""
    return judged(path, options, progress).report()


def judged(path: Path, options: ValidateOptions, progress: Progress = silent) -> Validated:
    """Returns the verdict on a model with all that was measured; raises as `validate` does."""
    need("validate", "validate")
    from wanconv.evaluation.measure import cannot_judge, measure  # imports torch
    from wanconv.generation.tasks import check_inputs

    profile = options.profile if isinstance(options.profile, Profile) else load_profile(options.profile)
    _check(options)
    perceptual = _perceptual(options, profile)
    candidate = identify(open_checkpoint(path, options.exclude), options.expert)
    check_inputs(candidate.family, _files(options))
    reference = None if options.against is None else _reference(options.against, options.expert)
    results: Json = {
        "schema": SCHEMA,
        "candidate": _describe(path, candidate),
        "reference": None if reference is None or options.against is None else _describe(options.against, reference),
        "settings": {"profile": profile.name},
        "notes": [],
        "cannot_judge": cannot_judge(candidate, reference),
    }
    clips: Clips = {}
    if not results["cannot_judge"]:
        wanted = _wanted(options, perceptual)
        results["settings"], measured, clips = measure(candidate, reference, profile, wanted, progress)
        results |= measured
    merged = _merged(path) if reference is not None else []
    found_out = [f"{finding.where}: {finding.message}" for finding in left_out(candidate)]
    results["notes"] = [*found_out, *_stale(path, candidate, progress), *merged, *_list(results["notes"])]
    results["settings"] = {**_dict(results["settings"]), "command": shlex.join(options.command)}
    results["tool"] = {"wanconv": __version__, "python": platform.python_version(), **_versions()}
    found = judge(results, profile)
    if options.out is not None:
        write(options.out, results, found, profile, clips)
    return Validated(results, found, profile, clips, options.out)


def _check(options: ValidateOptions) -> None:
    """Raises UsageError and OutputError for what would otherwise be found out after an hour."""
    import torch

    from wanconv.engine.numerics import PRESETS

    if options.numerics is not None and options.numerics not in PRESETS:
        raise UsageError(f"there are no numerics {options.numerics!r}", suggestion(options.numerics, PRESETS))
    kind, _, number = options.device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in ("cpu", "cuda") or (kind == "cpu" and number) or (number and not number.isdecimal()):
        raise UsageError(f"there is no device {options.device!r}", "name cpu, cuda or cuda:N")
    if int(number or 0) >= count:
        raise UsageError(f"there is no device {options.device!r}: torch sees {count} of its kind", 'use `device="cpu"`')
    if options.out is not None:
        make_room(options.out)


def make_room(out: Path) -> None:
    """Makes the folder for a report; raises UsageError and OutputError where it cannot be or holds others' files."""
    _refuse_others(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise describe_output_error(error, out) from error


def _refuse_others(out: Path) -> None:
    """Raises UsageError where a report would be written over what no validation wrote, or through a link."""
    check_target(out, ".html", ".json", ".mp4")
    there = [out / name for name in _WRITTEN if os.path.lexists(out / name)]
    hint = "choose another folder for the report, or move it away by hand"
    if links := [path for path in there if path.is_symlink()]:
        raise UsageError(f"{links[0]} is a link", hint)
    if not there:
        return
    try:
        read_results(out / _WRITTEN[0])
    except InputError:
        raise Occupied(f"{there[0]} is not from a report of validate, and is not replaced", hint) from None


def _reference(path: Path, expert: Expert | None) -> Model:
    """Returns --against as a model; --expert is the role of a lone candidate, and of a lone reference."""
    checkpoint = open_checkpoint(path)
    try:
        model = identify(checkpoint)
    except (UsageError, InputError):
        if expert is None:
            raise
        return identify(checkpoint, expert)  # its role is open, or its witnesses contradict each other
    return identify(checkpoint, expert) if expert is not None and "dit" in model.components else model


def _perceptual(options: ValidateOptions, profile: Profile) -> "Perceptual | None":
    """Returns LPIPS' network where it is handed over; raises UsageError if the run makes none to compare."""
    if options.lpips is None:
        return None
    if options.against is None or not profile.video:
        why = "without `against`" if options.against is None else f"under profile {profile.name}"
        hint = "name a reference" if options.against is None else 'use `profile="standard"`'
        raise UsageError(f"`lpips` compares clips, and {why} there are none", hint)
    return options.lpips.read()


def _wanted(options: ValidateOptions, perceptual: "Perceptual | None") -> "MeasureSettings":
    from wanconv.evaluation.measure import MeasureSettings

    return MeasureSettings(
        numerics=options.numerics,
        full_length=options.full_length,
        steps=options.steps,
        size=options.size,
        frames=options.frames,
        prompt=options.prompt,
        seed=options.seed,
        memory_nbytes=options.memory_nbytes,
        device=options.device,
        files=_files(options),
        kept=options.kept,
        perceptual=perceptual,
    )


def _files(options: ValidateOptions) -> "Mapping[Input, Path]":
    """Returns the files that a generation is to be given."""
    handed: dict[Input, Path | None] = {
        "image": options.image,
        "last_image": options.last_image,
        "audio": options.audio,
    }
    return {name: path for name, path in handed.items() if path is not None}


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def _dict(value: object) -> Json:
    assert isinstance(value, dict)
    return value


def _versions() -> Json:
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def _describe(path: Path, model: Model) -> Json:
    dtypes: dict[str, int] = {}
    for tensor in model.tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.nbytes
    known = manifest.read(path) if path.is_dir() else None
    return {
        "path": str(path),
        "family": family_in_words(model),
        "release": model.release.name if model.release else None,
        "layout": source_layout(model).name,
        "nbytes": sum(dtypes.values()),
        "sample": sample(model),
        "dtypes": dtypes,
        "components": {
            name: {
                "network": component.architecture.name,
                "nbytes": sum(one.nbytes for one in component.tensors.values()),
            }
            for name, component in model.components.items()
        },
        "manifest": None if known is None else known["plan"],
    }


def _stale(path: Path, model: Model, progress: Progress) -> list[str]:
    """Returns a note per file whose digest is not the manifest's: the bytes that are there are judged all the same."""
    known = manifest.read(path) if path.is_dir() else None
    if known is None:
        return []
    tell = total(progress, "checking digests", sum(file.nbytes for file in manifest.files(known)))
    return [f"stale: {one.where} {one.message}" for one in manifest.check_files(path, known, tell)]


def _merged(path: Path) -> list[str]:
    """Returns a note for a candidate that LoRAs are merged into: its reference lacks their changes."""
    known = manifest.read(path) if path.is_dir() else None
    names = [] if known is None else [str(lora["file"]) for lora in manifest.loras(known)]
    return [f"what its merged LoRAs change counts as the candidate's error: {', '.join(names)}"] if names else []


def write(out: Path, results: Json, found: Verdict, profile: Profile, clips: "Clips") -> None:
    """Writes results.json, validation.html, and the free run's frames and clips."""
    from wanconv.evaluation.report import clips as media
    from wanconv.evaluation.report.html import render

    write_anew(out / "results.json", json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")
    write_anew(out / summary.PAGE, render(results, found, profile, clips).encode())
    for name, frames in clips.items():
        fps = _dict(results["video"])["fps"]
        assert isinstance(fps, int)
        write_anew(out / f"{name}.mp4", media.mp4(frames, fps))
        for number, still in enumerate(media.pngs(frames)):
            write_anew(out / name / f"{number:04}.png", still)
