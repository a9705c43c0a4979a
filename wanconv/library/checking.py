"""Verifies and validates checkpoints."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wanconv.commands import verify as verifying
from wanconv.conversion.options import default_jobs
from wanconv.errors import UsageError
from wanconv.library.paths import given, given_or_none
from wanconv.report import Finding, Report
from wanconv.types.model import Model, Opened
from wanconv.types.progress import Progress, silent
from wanconv.verdict import Check, Outcome, Profile

if TYPE_CHECKING:  # validating imports torch
    from wanconv.commands.validate import Validated


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`: `ok` if nothing failed, `findings` with every failure, `report` with tables and
    figures."""

    report: Report

    @property
    def ok(self) -> bool:
        """True if nothing failed."""
        return self.report.exit_code == 0

    @property
    def findings(self) -> Sequence[Finding]:
        """Failures, warnings and notes, each with its place."""
        return self.report.findings


def verify(
    path: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    client: str | None = None,
    checksums: Sequence[str | os.PathLike[str]] = (),
    hub: str | None = None,
    token: str | None = None,
    loras: Sequence[str] = (),
    expert: Literal["high", "low"] | None = None,
    exclude: Sequence[str] = (),
    jobs: int | None = None,
    progress: Progress = silent,
) -> Verification:
    """Check headers, cover and digests; against its source, each element within its format's worst-case bound.

    Args:
        path: A model folder or one weight file.
        against: The source that it was converted from.
        client: A layout whose client must be able to read it.
        checksums: Lists of sha256sum or md5sum; none for those in the folder.
        hub: A repository to compare with, such as "hf://OWNER/NAME", or "recorded".
        token: The hub's access token.
        loras: The LoRAs that were merged, as `plan` took them.
        expert: The role of a lone Wan 2.2 expert.
        exclude: Globs on the paths or names of files to leave out.
        jobs: Threads; None for two more than there are cores, at most 8.
        progress: Called with a `ProgressStep`, on any thread, as work is done.

    Returns:
        What was checked, and every failure.

    Raises:
        InputError: If headers or cover are already wrong.
        UsageError: For an invalid client, list or LoRA.

    Examples:
        >>> import wanconv as wc
        >>> wc.verify(checkpoint).ok
        True
    """
    options = verifying.VerifyOptions(
        given_or_none(against, "against"),
        tuple(given(one, "checksums") for one in checksums),
        expert,
        tuple(exclude),
        jobs or default_jobs(),
        hub,
        token,
        client,
        tuple(loras),
    )
    return Verification(verifying.verify(given(path, "path"), options, progress))


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a validation runs its generations; None leaves the choice to the profile or the model.

    Args:
        steps: Sampling steps.
        size: Width and height in pixels.
        frames: Frames of the clip.
        prompt: What to generate.
        seed: Seed of the noise.
        image: The first frame, for a model that takes one.
        last_image: The last frame, likewise.
        audio: A sound file with a voice, for S2V.
        lpips: A folder with AlexNet's and LPIPS' weights, to compare clips also by LPIPS.
        full_length: One more step at the task's own length.
        device: "cpu", "cuda" or "cuda:N".
        memory_nbytes: Weights that may stay in memory, in bytes.

    Examples:
        >>> import wanconv as wc
        >>> wc.RunSettings(size=(64, 64), steps=4).device
        'cpu'
    """

    steps: int | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    prompt: str | None = None
    seed: int = 0
    image: str | os.PathLike[str] | None = None
    last_image: str | os.PathLike[str] | None = None
    audio: str | os.PathLike[str] | None = None
    lpips: str | os.PathLike[str] | None = None
    full_length: bool = False
    device: str = "cpu"
    memory_nbytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Validation:
    """A verdict, its measurements, and a report to write."""

    judged: "Validated"

    @property
    def outcome(self) -> Outcome:
        """ "PASS", "FAIL", "NOT FINITE" or "CANNOT JUDGE"."""
        return self.judged.verdict.outcome

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check, with its value and its limit."""
        return self.judged.verdict.checks

    @property
    def results(self) -> "Mapping[str, object]":
        """All measurements, as in results.json."""
        return self.judged.results

    @property
    def report(self) -> Report:
        """Figures, tables and findings, as the command line shows them."""
        return self.judged.report()

    def write_report(self, folder: str | os.PathLike[str]) -> None:
        """Write results.json, the page validation.html, and the clips.

        Args:
            folder: The folder to write; it is created.

        Raises:
            UsageError: If the folder holds files of that name that no validation wrote.
            OutputError: If it cannot be written.
        """
        from wanconv.commands.validate import make_room, write

        out = given(folder, "folder")
        make_room(out)
        write(out, self.judged.results, self.judged.verdict, self.judged.profile, self.judged.clips)


def validate(
    candidate: str | os.PathLike[str] | Model,
    *,
    reference: str | os.PathLike[str] | Model | None = None,
    profile: str | Profile = "standard",
    numerics: str | None = None,
    settings: RunSettings | None = None,
    progress: Progress = silent,
) -> Validation:
    """Run the same short generation with both models and judge their difference.

    Args:
        candidate: The model to judge, or its path.
        reference: The model that it was made from, or its path; None probes the candidate's numbers alone.
        profile: "quick", "standard" or "full", the path of a .toml file, or a Profile.
        numerics: The precision to imitate, such as "fp16"; None for that of the candidate's client.
        settings: How to run; None for what the profile says.
        progress: Called with a `ProgressStep`, on any thread, as work is done.

    Returns:
        The verdict: `.outcome`, `.checks`, `.results`, `.write_report(folder)`.

    Raises:
        InputError: If a model cannot be read.
        UsageError: For settings that the model does not take, or where the extra `wanconv[validate]` is missing.

    Examples:
        >>> import wanconv as wc
        >>> wc.validate(checkpoint, profile="standrad")
        Traceback (most recent call last):
            ...
        wanconv.errors.UsageError: there is no profile 'standrad'
    """
    from wanconv.commands import validate as validating
    from wanconv.evaluation.backbone import Backbone

    asked = settings or RunSettings()
    opened = _opened(candidate, "candidate")
    options = validating.ValidateOptions(
        against=None if reference is None else _opened(reference, "reference").source,
        profile=profile,
        numerics=numerics,
        full_length=asked.full_length,
        steps=asked.steps,
        size=asked.size,
        frames=asked.frames,
        seed=asked.seed,
        image=given_or_none(asked.image, "image"),
        last_image=given_or_none(asked.last_image, "last_image"),
        audio=given_or_none(asked.audio, "audio"),
        lpips=None if asked.lpips is None else Backbone(given(asked.lpips, "lpips")),
        memory_nbytes=asked.memory_nbytes,
        device=asked.device,
        expert=opened.expert,
        exclude=opened.exclude,
        prompt=validating.PROMPT if asked.prompt is None else asked.prompt,
    )
    return Validation(validating.judged(opened.source, options, progress))


def _opened(model: str | os.PathLike[str] | Model, name: str) -> Opened:
    if not isinstance(model, Model):
        return Opened(given(model, name))
    if model.loras:
        raise UsageError("a model with LoRAs that are not merged on disk cannot be judged", "convert it, judge that")
    return model.opened or Opened(model.checkpoint.root)
