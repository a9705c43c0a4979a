"""Names spelled out from a table at given sizes: a scheme's tensors on disk, a family's canonical names."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from wanconv.types.architecture import Architecture, Family, Kind, Role, Scheme, Spelling
from wanconv.types.tensors import Shape, TensorRef

Size = int | str


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor that a scheme wants on disk: `sources` are canonical names (no component), laid end to end on axis 0.

    A single source is written unchanged, in the target's `shape`, or transposed if `transposed`. Files of the
    scheme may lack it if `optional`.
    """

    name: str
    shape: Shape
    sources: tuple[str, ...]
    transposed: bool = False
    optional: bool = False


@cache
def parse_size(size: str) -> tuple[int, str, int]:
    """Returns (factor, symbol, divisor) of `6*d`, `d` or `d/4`."""
    product, _, divisor = size.partition("/")
    factor, star, symbol = product.partition("*")
    return (int(factor), symbol, int(divisor or 1)) if star else (1, product, int(divisor or 1))


def size_of(size: Size, dims: Mapping[str, int]) -> int:
    """Returns a table's size as a number; KeyError where `dims` lacks its symbol."""
    if isinstance(size, int):
        return size
    factor, symbol, divisor = parse_size(size)
    return factor * dims[symbol] // divisor


def shape_of(shape: tuple[Size, ...], dims: Mapping[str, int]) -> Shape:
    return tuple(size_of(size, dims) for size in shape)


def shape_on_disk(role: Role, spelling: Spelling, dims: Mapping[str, int]) -> Shape:
    """Returns the shape of the tensor that holds the role: fused, transposed or with other axes."""
    shape = shape_of(role.shape if spelling.shape is None else spelling.shape, dims)
    if spelling.transposed:
        shape = shape[::-1]
    if spelling.of > 1:  # (d, ...) -> (3 * d, ...)
        shape = (shape[0] * spelling.of // len(spelling.parts), *shape[1:])
    return shape


@cache
def letter_of(template: str) -> str | None:
    """Returns the placeholder letter of a template: `n` for `blocks.{n}.ffn.up.weight`."""
    letters = [segment[1:-1] for segment in template.split(".") if segment[:1] == "{"]
    assert len(letters) <= 1, f"{template} has several placeholders"
    return letters[0] if letters else None


def fill(template: str, index: int | str | None) -> str:
    """Returns the template with its placeholder, if any, filled."""
    letter = letter_of(template)
    return template if letter is None else template.format_map({letter: index})


def numbered(architecture: Architecture, dims: Mapping[str, int]) -> Iterator[tuple[Role, int | None]]:
    """Yields every role with every number it stands for; neighbours that share a placeholder go block by block."""
    counts = {**architecture.full, **dims}
    for letter, group in groupby(architecture.roles, key=lambda role: letter_of(role.name)):
        rows = tuple(group)
        for index in range(counts[letter]) if letter else (None,):
            yield from ((role, index) for role in rows)


def block_of(role: Role, index: int | None) -> int | None:
    """Returns the block number: `{n}` counts blocks, other letters count other lists."""
    return index if letter_of(role.name) == "n" else None


def targets(architecture: Architecture, scheme: Scheme, dims: Mapping[str, int]) -> tuple[Target, ...]:
    """Returns the tensors that a scheme stores, in the table's order; roles that it does not store are left out.

    Sizes that `dims` does not know are the released ones (CLIP's text half, read from a hub file).
    """
    return _targets(architecture, scheme, tuple(dims.items()))


@cache
def _targets(architecture: Architecture, scheme: Scheme, sizes: tuple[tuple[str, int], ...]) -> tuple[Target, ...]:
    dims = dict(sizes)
    assert scheme in architecture.schemes, f"{architecture.name} has no {scheme} names"
    slots: dict[str, tuple[Role, Spelling, dict[int, str]]] = {}
    for role, index in numbered(architecture, dims):
        spelling = role.spellings.get(scheme)
        if spelling is not None:
            _, _, sources = slots.setdefault(fill(spelling.name, index), (role, spelling, {}))
            sources[spelling.parts[0]] = fill(role.name, index)
    return tuple(
        Target(
            name=name,
            shape=shape_on_disk(role, spelling, {**architecture.full, **dims}),
            sources=tuple(source for _, source in sorted(sources.items())),
            transposed=spelling.transposed,
            optional=spelling.optional,
        )
        for name, (role, spelling, sources) in slots.items()
    )


def expand(architecture: Architecture, scheme: Scheme, dims: Mapping[str, int]) -> dict[str, Shape]:
    """Returns on-disk name -> shape of a whole network of the given sizes."""
    return {target.name: target.shape for target in targets(architecture, scheme, dims)}


def homeless(
    architecture: Architecture, scheme: Scheme, dims: Mapping[str, int], source: Scheme | None = None
) -> list[str]:
    """Returns the canonical names that a scheme does not store (CLIP's text half in diffusers); with the source's
    scheme, also those that are optional in another scheme (CLIP's projection)."""
    housed = [(fill(role.name, index), role.spellings.get(scheme)) for role, index in numbered(architecture, dims)]
    without = source is not None and source != scheme
    return [name for name, home in housed if home is None or (home.optional and without)]


def vocabulary(
    family: Family, dims_by_component: Mapping[str, Mapping[str, int]] | None = None
) -> list[tuple[str, Kind, int | None]]:
    """Returns (canonical name, kind, block) of every tensor of a family, absent components in their released size."""
    known = dims_by_component or {}
    return [
        (f"{component}/{fill(role.name, index)}", role.kind, block_of(role, index))
        for component, architecture in family.components.items()
        for role, index in numbered(architecture, known.get(component, architecture.full))
    ]


def fingerprint(tensors: Mapping[str, TensorRef] | Mapping[str, Shape]) -> str:
    """Returns DiffSynth-Studio's hash of names and shapes (diffsynth/core/loader/file.py, hash_state_dict_keys)."""
    words = []
    for name, tensor in tensors.items():
        shape = tensor.shape if isinstance(tensor, TensorRef) else tensor
        words += [name, name + ":" + "_".join(map(str, shape))]
    return hashlib.md5(",".join(sorted(words)).encode(), usedforsecurity=False).hexdigest()
