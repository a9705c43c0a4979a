"""Denoisers that break when they are computed in fp16, and what allows a conversion to fp16 anyway.

A file whose values fit fp16 may still break when it is computed in fp16. The proof is a passed validation of the same
source that imitated fp16; a sample of its numbers shows that it is the same source.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from wanconv.errors import InputError, Refused, UsageError
from wanconv.models import DENOISERS
from wanconv.planning import Plan
from wanconv.storage.reading import opened, read_at
from wanconv.types.model import Model
from wanconv.types.tensors import TensorRef
from wanconv.verdict import judge, load_profile
from wanconv.verdict.saved import read_results

_SAMPLE_NBYTES = 4096
_PROFILE = "standard"  # a report is judged by its figures, with any profile


def check(made: Plan, allowed: bool, report: Path | None) -> None:
    """Raises Refused for a plan that stores a denoiser in fp16 that breaks in fp16, or may do so by a fallback, unless
    `allowed` or a report proves it safe.

    Raises UsageError for a report that a plan does not need.
    """
    family = made.model.family
    stored = [
        step.tensor.name
        for step in made.steps
        if "fp16" in (step.format, step.fallback) and step.tensor.name.partition("/")[0] in DENOISERS
    ]
    if not family.breaks_in_fp16 or not stored:
        if report is not None:
            message = "`report` is for denoisers that break in fp16, and this plan stores none of those in it"
            raise UsageError(message, "leave it out")
        return
    if allowed:
        return
    if report is None:
        raise Refused(
            f"recipe {made.recipe.name} stores the denoiser of {family.name} in fp16, and {family.breaks_in_fp16}",
            "choose bf16; or prove it safe with `report`, the results.json of "
            '`validate(SRC, numerics="fp16").write_report(DIR)`; '
            "or say `allow_unsafe_fp16=True`",
        )
    if doubt := next(_doubts(report, made.model), None):
        raise Refused(
            f"{report} does not prove that {made.model.checkpoint.root} survives fp16: {doubt}",
            'run wanconv `validate(SRC, numerics="fp16").write_report(DIR)` on this source, '
            "and hand in its results.json",
        )


def _doubts(report: Path, model: Model) -> Iterator[str]:
    """Yields why a report does not prove a model; raises InputError for a file that is not a report."""
    results = read_results(report)
    candidate, settings = results["candidate"], results["settings"]
    assert isinstance(candidate, Mapping)
    assert isinstance(settings, Mapping)
    if results.get("reference") is not None:
        yield "it compares with another model instead of probing the source itself"
    if candidate.get("sample") != sample(model):
        yield f"it is about other numbers, those of {candidate.get('path')}"
    rows = results.get("safety", [])
    assert isinstance(rows, list)
    denoisers = {name for name in model.components if name in DENOISERS}
    probed = {row["component"] for row in rows if str(row["numerics"]).rpartition("-")[2] == "fp16"}
    if not denoisers <= probed:
        yield f"its numerics are {settings.get('numerics')}"
    outcome = judge(results, load_profile(_PROFILE)).outcome
    if outcome != "PASS":
        yield f"its verdict is {outcome}"


def sample(model: Model) -> str:
    """Returns a digest of a model's denoisers: the name, dtype and shape of each tensor, and its middle elements."""
    digest = hashlib.sha256()
    for name, component in model.components.items():
        if name in DENOISERS:
            for ref in sorted(component.part.tensors.values(), key=lambda ref: ref.name):
                digest.update(json.dumps([name, ref.name, ref.dtype, ref.shape]).encode())
                digest.update(_middle(ref))
    return digest.hexdigest()


def _middle(ref: TensorRef) -> bytes:
    nbytes = min(ref.nbytes, _SAMPLE_NBYTES)
    try:
        with opened(ref.file) as descriptor:
            found = read_at(descriptor, nbytes, ref.offset + (ref.nbytes - nbytes) // 2)
    except OSError as error:
        raise InputError(f"{ref.file} cannot be read: {error.strerror}", "check the file") from None
    if len(found) < nbytes:
        raise InputError(f"{ref.file} ends inside {ref.name}", "get the file again: it changed while it was read")
    return found
