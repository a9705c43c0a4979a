"""The proof of a conversion: every element of every tensor within its format's bound of the source, streamed."""

import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from math import inf, isfinite, prod

from wanconv.errors import CheckFailed, NotFinite, Refused
from wanconv.models import DENOISERS, homeless
from wanconv.quantization.codec import UNSCALED, Violation
from wanconv.quantization.codecs import Codecs
from wanconv.report import Cell, Finding, Table
from wanconv.types.model import Model, ModelTensor
from wanconv.types.progress import Progress, total
from wanconv.types.tensors import Shape
from wanconv.weights.reader import Reader, Sources, invalid_scale
from wanconv.weights.threads import single_threaded

_COLUMNS = ("from", "stored", "tensors", "elements", "worst_error_to_bound")


def compare(
    model: Model, source: Model, progress: Progress, jobs: int, unclipped: Collection[str] = ()
) -> tuple[Table, list[Finding]]:
    """Returns each format's largest share of its bound, and a failure for every tensor that breaks it or has no twin.

    `unclipped` are tensors whose scales are known to cover every number: rounding `mse` may have clipped the others.
    """
    if stranger := _stranger(model, source):
        return Table("formats", _COLUMNS, ()), [stranger]
    ours, theirs = model.tensors, source.tensors
    findings = _without_twin(model, source)
    both = [name for name in theirs if name in ours]
    tell = total(progress, "comparing", sum(theirs[name].nbytes for name in both))
    lock, local, sources = threading.Lock(), threading.local(), Sources()
    seen: dict[tuple[str, str], tuple[int, int, float]] = {}

    def one(name: str) -> Finding | None:
        if not hasattr(local, "tools"):
            local.tools = _Tools(sources)
        finding, ratio = _compare_tensor(theirs[name], ours[name], local.tools, name not in unclipped)
        pair = theirs[name].stored_as, ours[name].stored_as
        with lock:
            tensors, elements, worst = seen.get(pair, (0, 0, 0.0))
            seen[pair] = tensors + 1, elements + ours[name].numel, max(worst, ratio)
            tell(theirs[name].nbytes)
        return finding

    with closing(sources), single_threaded(), ThreadPoolExecutor(jobs) as pool:
        findings += [finding for finding in pool.map(one, both) if finding is not None]
    rows = tuple(
        (*pair, tensors, elements, _nearness(worst)) for pair, (tensors, elements, worst) in sorted(seen.items())
    )
    return Table("formats", _COLUMNS, rows), findings


def _nearness(worst: float) -> Cell:
    """Returns the largest error over its bound, and whether it is right: rounding alone reaches at most 1."""
    if not worst <= 1.0:
        return Cell("broken", "broken: above 1", "failure")
    return Cell(round(worst, 6), f"{worst:.3g}, normal" if worst else "0, exact")


def _stranger(model: Model, source: Model) -> Finding | None:
    """Returns a failure if the two are different networks: one sentence instead of one for every tensor."""
    ours, theirs = model.components, source.components
    shared = ours.keys() & theirs.keys()
    two_families = model.family != source.family and all(set(DENOISERS) & part.keys() for part in (ours, theirs))
    if shared and not two_families and all(ours[name].architecture == theirs[name].architecture for name in shared):
        return None
    message = (
        f"is not the source of this model: it is {source.family.name} ({', '.join(theirs)}), "
        f"and this is {model.family.name} ({', '.join(ours)})"
    )
    return _failure(str(source.checkpoint.root), message, "give the folder that it was made from")


def _without_twin(model: Model, source: Model) -> list[Finding]:
    """Returns a failure for every component, and in shared ones every tensor, that only one side has."""
    ours, theirs = model.components, source.components
    findings = [_failure(name, "is in the source and not here") for name in theirs if name not in ours]
    findings += [
        _failure(name, "is here and not in the source", "give the folder that it was made from")
        for name in ours
        if name not in theirs
    ]
    for name in (name for name in theirs if name in ours):
        component, other = ours[name], theirs[name]
        dropped = homeless(component.architecture, component.scheme, other.dims, other.scheme)
        left_out = {f"{name}/{path}" for path in dropped}
        missing = other.tensors.keys() - component.tensors.keys() - left_out
        extra = component.tensors.keys() - other.tensors.keys()
        findings += [_failure(tensor, "is in the source and not here") for tensor in sorted(missing)]
        findings += [_failure(tensor, "is here and not in the source") for tensor in sorted(extra)]
    return findings


class _Tools:
    """One thread's readers of both sides."""

    def __init__(self, sources: Sources) -> None:
        self.source, self.stored = Reader(sources), Reader(sources)
        self.files, self.codecs = sources, Codecs()


def _compare_tensor(
    source: ModelTensor, stored: ModelTensor, tools: _Tools, clips: bool
) -> tuple[Finding | None, float]:
    """Returns the first bad element, if any, and the largest error / bound seen."""
    if (finding := _bad_scale(source, stored, tools)) is not None:
        return finding, inf
    worst, columns = 0.0, source.shape[-1] if source.shape else 1
    if source.shape != stored.shape:
        return _failure(source.name, f"has shape {list(stored.shape)}, and {list(source.shape)} in the source"), worst
    codec = tools.codecs.of(stored.dtype, stored.packing)
    decoded = codec.stable and source.dtype == stored.dtype and not source.patches
    if decoded:
        codec = tools.codecs.of("fp32", None)
    read = tools.stored.values if decoded else tools.stored.payload
    judge = codec.judge(UNSCALED if decoded else tools.stored.scales(stored), columns, clips)
    for start, count in codec.runs(0, source.numel, columns):
        try:
            violation, ratio = judge.run(tools.source.values(source, start, count), read(stored, start, count), start)
        except Refused as error:  # no format makes this change of dtype
            return _failure(source.name, error.message), worst
        worst = max(worst, ratio)
        if violation is not None:
            return _bad_element(source, violation), worst
    if fault := judge.fault():
        return _failure(source.name, fault), inf
    return None, worst


def _bad_element(tensor: ModelTensor, bad: Violation) -> Finding:
    message = f"element {_position(bad.index, tensor.shape)} is {bad.stored:.9g}, and {bad.source:.9g} in the source: "
    if not isfinite(bad.source) or not isfinite(bad.stored):
        return Finding("failure", tensor.name, message + "not finite", "convert again", NotFinite.code)
    return _failure(tensor.name, message + (f"more than {bad.bound:.3g} apart" if bad.bound else "not the same"))


def _bad_scale(source: ModelTensor, stored: ModelTensor, tools: _Tools) -> Finding | None:
    """Returns a failure if a scale on either side is invalid."""
    sides = ((source, " in the source", "get the source again"), (stored, "", "convert again"))
    for tensor, where, fix in sides:
        if (scale := invalid_scale(tools.files, tensor, tools.codecs)) is not None:
            message = f"has a scale of {scale:.9g}{where}, and a scale is a positive number"
            return Finding("failure", tensor.name, message, fix, (CheckFailed if isfinite(scale) else NotFinite).code)
    return None


def _position(index: int, shape: Shape) -> list[int]:
    return [index // prod(shape[axis + 1 :]) % size for axis, size in enumerate(shape)]


def _failure(where: str, message: str, fix: str = "convert again") -> Finding:
    return Finding("failure", where, message, fix, CheckFailed.code)
