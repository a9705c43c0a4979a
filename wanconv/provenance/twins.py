"""Detects two experts that are the same: equal numbers under both names, as when one file was copied over the other.

Before a conversion, samples are compared: equal experts are equal in all samples, and others differ in the first one.
For a repository, the digests that its hub lists are compared; after a conversion, the digests of the written tensors.
"""

import struct
from collections.abc import Mapping, Sequence

from wanconv.containers.files import explained
from wanconv.errors import CheckFailed, InputError
from wanconv.planning import Output, Plan
from wanconv.report import Finding, Severity
from wanconv.storage.local import Written
from wanconv.storage.reading import opened, read_at
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import Component, Model, ModelTensor, Piece

_SAMPLE_NUMEL = 1024
_FLOATS = {"fp32": "f", "fp16": "e", "bf16": "f"}
_HINT = "get the expert again that the other was copied over, or convert one of the two files alone, as what it is"


def sampled(model: Model) -> InputError | None:
    """Returns an error if the experts' files hold the same numbers, as far as the middle of every tensor shows.

    Zeros do not count: both files may have them, as incomplete files do.
    """
    if (pair := _experts(model)) is None:
        return None
    high, low = pair
    counted = 0
    for name, tensor in high.tensors.items():
        other = low.tensors.get(_twin(name))
        if other is None or tensor.shape != other.shape:
            return None
        ours, theirs = _samples(tensor, other)
        if ours != theirs:
            return None
        counted += any(any(sample) for sample in ours)
    detail = f"each of the {counted} tensors that are not zero is the same in both, as samples of them show"
    return _same(pair, detail) if counted else None


def listed(model: Model, digests: Mapping[str, str]) -> InputError | None:
    """Returns an error if a hub lists the same digests (path -> digest) for the files of both experts."""
    if (pair := _experts(model)) is None:
        return None
    high, low = (sorted(digests.get(file) or file for file in expert.part.files) for expert in pair)
    return _same(pair, "their repository lists the same digests for both") if high == low else None


def written(plan: Plan, files: Sequence[Written]) -> InputError | None:
    """Returns an error if the digests of both experts are the same, tensor by tensor and scale by scale, for all
    tensors that both store alike; None if these are fewer than half."""
    if (pair := _experts(plan.model)) is None:
        return None
    digests = {key: digest for file in files for key, digest in file.tensors.items()}
    outputs = [output for output in plan.outputs.values() if output.step.tensor.name in pair[0].tensors]
    alike = [
        (output.slot.key, other.slot.key)
        for output in outputs
        if (other := plan.outputs.get(_twin(output.slot.key))) is not None and _stored(output) == _stored(other)
    ]
    if 2 * len(alike) <= len(outputs) or any(digests[one] != digests[other] for one, other in alike):
        return None
    return _same(pair, f"the digests of {len(alike)} tensors are the same in both")


def finding(error: InputError | None, severity: Severity = "failure") -> list[Finding]:
    """Returns the error as a finding, for a command that goes on."""
    if error is None:
        return []
    code = CheckFailed.code if severity == "failure" else ""
    return [Finding(severity, "expert.low", f"{error.message}: {error.details[0]}", error.hint, code)]


def _same(pair: tuple[Component, Component], detail: str) -> InputError:
    high, low = (expert.part.path for expert in pair)
    return InputError(f"{high} and {low} are the same expert, under both names", _HINT, [detail])


def _experts(model: Model) -> tuple[Component, Component] | None:
    high, low = (model.components.get(name) for name in ("expert.high", "expert.low"))
    return (high, low) if high is not None and low is not None else None


def _twin(name: str) -> str:
    """Returns the low expert's name of a high expert's tensor."""
    return "expert.low/" + name.partition("/")[2]


def _stored(output: Output) -> object:
    return output.slot.dtype, output.step.label, output.transposed


def _samples(tensor: ModelTensor, other: ModelTensor) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    """Returns the middles of two tensors' pieces, with those of their scales: bytes, or values if only these can
    be compared."""
    ours, theirs = _middles(tensor), _middles(other)
    if tensor.stored_as == other.stored_as or not all(each.dtype in _FLOATS for each in (tensor, other)):
        return list(ours), list(theirs)
    return [_numbers(raw, tensor.dtype) for raw in ours], [_numbers(raw, other.dtype) for raw in theirs]


def _middles(tensor: ModelTensor) -> list[bytes]:
    scales = [Piece(ref, 0, ref.numel) for ref in (tensor.scales, tensor.whole) if ref is not None]
    return [_middle(piece) for piece in (*tensor.pieces, *scales)]


def _middle(piece: Piece) -> bytes:
    ref, dtype = piece.ref, DTYPES[piece.ref.dtype]
    count = min(piece.count, _SAMPLE_NUMEL)
    first = piece.start + (piece.count - count) // 2 // dtype.block * dtype.block
    with explained(ref.file), opened(ref.file) as descriptor:
        return read_at(descriptor, dtype.nbytes(count), ref.offset + dtype.nbytes(first))


def _numbers(raw: bytes, dtype: str) -> tuple[float, ...]:
    if dtype == "bf16":  # the upper half of a float32
        whole = bytearray(2 * len(raw))
        whole[2::4], whole[3::4] = raw[0::2], raw[1::2]
        raw = bytes(whole)
    return struct.unpack(f"<{len(raw) // struct.calcsize(_FLOATS[dtype])}{_FLOATS[dtype]}", raw)
