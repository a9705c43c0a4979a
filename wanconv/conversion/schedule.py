"""Schedule of source files: when each must have arrived and when it can be deleted.

A position counts the bytes of all images, one after the other. A writer finishes whole blocks, in this order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wanconv.planning import Output, Plan
from wanconv.types.tensors import TensorRef

Known = Callable[[str, int], object]


@dataclass(frozen=True, slots=True)
class Need:
    """A source file, as the plan's tensors name it, and the positions between which it is read."""

    file: Path
    first: int
    end: int


def needs(made: Plan, block_nbytes: int, known: Known = lambda image, block: None) -> list[Need]:
    """Returns the files for the blocks that are not `known` (by an image's identity and their number), in order."""
    copies = ties(made)
    spans: dict[Path, tuple[int, int]] = {}
    base = 0
    for image in made.images:
        identity = image.identity
        for payload in image.payloads:
            blocks = range(payload.offset // block_nbytes, -(-(payload.offset + payload.nbytes) // block_nbytes))
            if missing := [block for block in blocks if known(identity, block) is None]:
                first, end = missing[0] * block_nbytes, min(image.nbytes, (missing[-1] + 1) * block_nbytes)
                for file in _files_of(made.outputs[payload.key], copies):
                    before = spans.get(file, (base + first, base + end))
                    spans[file] = min(before[0], base + first), max(before[1], base + end)
        base += image.nbytes
    found = [Need(file, first, end) for file, (first, end) in spans.items()]
    return sorted(found, key=lambda need: (need.first, need.end, need.file))


def ties(made: Plan) -> dict[str, list[TensorRef]]:
    """Returns the tied copies of tensors, by the canonical name of the one that is written."""
    found: dict[str, list[TensorRef]] = {}
    for component in made.model.components.values():
        for copy, canonical in component.tied:
            found.setdefault(component.tensors[canonical].name, []).append(copy)
    return found


def _files_of(output: Output, copies: Mapping[str, Sequence[TensorRef]]) -> set[Path]:
    """Returns the source files that a tensor is made from, and those of its tied copies, which are compared with it."""
    found = set()
    for step in (output.scales_of,) if output.scales_of is not None else output.steps:
        tensor = step.tensor
        found |= {piece.ref.file for piece in tensor.pieces}
        found |= {ref.file for ref in (tensor.scales, tensor.whole) if ref is not None}
        found |= {copy.file for copy in copies.get(tensor.name, ())}
    return found


def blocking(needed: Sequence[Need], index: int) -> list[Need]:
    """Returns the files that must be deleted before a file is begun: it may come while the one before it is used, and
    while those are present that are needed together with it."""
    return [need for need in needed[: max(0, index - 1)] if need.end <= needed[index].first]


def peak_nbytes(needed: Sequence[Need], nbytes_of: Callable[[Path], int]) -> int:
    """Returns the most bytes that the files take at a time."""
    return max(
        (
            sum(nbytes_of(need.file) for need in needed[: index + 1] if need not in blocking(needed, index))
            for index in range(len(needed))
        ),
        default=0,
    )
