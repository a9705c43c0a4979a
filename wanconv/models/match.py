"""The architecture and naming scheme of a file's tensors: an exact cover of names and shapes, or the differences.

A name is split at its dots and looked up whole; a segment that is a number is also tried as a placeholder.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from wanconv.models.names import block_of, fill, letter_of, parse_size, shape_of, shape_on_disk
from wanconv.models.releases import ARCHITECTURES
from wanconv.quantization.packings import Packed, unpack
from wanconv.types.architecture import Architecture, Dead, Role, Scheme, Spelling
from wanconv.types.model import ModelTensor, Piece
from wanconv.types.tensors import Part, Shape, TensorRef

_HOLE = "#"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One spelling of one role: `key` is its name with `#` for the number, `letter` says what the number counts."""

    key: str
    letter: str | None
    role: Role
    spelling: Spelling
    alias: bool


@dataclass(frozen=True, slots=True)
class _Table:
    """`keys` are those of all entries and of the `dead` tensors, by key."""

    architecture: Architecture
    scheme: Scheme
    entries: tuple[_Entry, ...]
    dead: Mapping[str, Dead]
    keys: frozenset[str]
    letters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WrongShape:
    name: str
    found: Shape
    expected: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """How well a file fits one architecture in one scheme: `found` maps (role, number) to its tensor on disk.

    `dead` are tensors that no client reads.
    """

    architecture: Architecture
    scheme: Scheme
    dims: Mapping[str, int]
    found: Mapping[tuple[Role, int | None], tuple[TensorRef, Spelling]]
    tied: tuple[tuple[TensorRef, str], ...]
    dead: tuple[tuple[TensorRef, Dead], ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    wrong: tuple[WrongShape, ...]

    @property
    def differences(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.wrong)


@dataclass(frozen=True, slots=True)
class Claim:
    """A part, what it fits, and the component it claims to be."""

    component: str
    part: Part
    fit: Match
    evidence: str = ""

    @property
    def packed(self) -> Mapping[str, Packed]:
        return unpack(self.part)[1]


def fits(tensors: Mapping[str, TensorRef]) -> list[Match]:
    """Returns the exact fit alone, or every fit that names at least one of the tensors, the nearest first.

    An exact one has no differences. If both schemes spell a network alike, it is the official one.
    """
    groups = _group(tensors)
    candidates = [table for table in _tables() if not table.keys.isdisjoint(groups)]
    for table in candidates:
        if _covered(table, groups) == len(tensors):
            fit = _fit(table, tensors, groups)
            if not fit.differences:
                return [fit]
    return sorted((_fit(table, tensors, groups) for table in candidates), key=lambda fit: fit.differences)


def model_tensors(fit: Match, component: str, packed: Mapping[str, Packed]) -> dict[str, ModelTensor]:
    """Returns the canonical tensors of an exact fit, by full name, in the table's order; `packed` by name on disk."""
    tensors = {}
    for (role, index), (ref, spelling) in fit.found.items():
        name = f"{component}/{fill(role.name, index)}"
        shape = shape_of(role.shape, fit.dims)
        count = prod(shape) // len(spelling.parts)
        pieces = tuple(Piece(ref, part * count, count) for part in spelling.parts)
        stored = packed.get(ref.name)
        packing, scales, whole = (stored.packing, stored.scales, stored.whole) if stored else (None, None, None)
        tensors[name] = ModelTensor(
            name, role, block_of(role, index), shape, pieces, spelling.transposed, packing, scales, whole=whole
        )
    return tensors


@cache
def _tables() -> tuple[_Table, ...]:
    return tuple(_table(architecture, scheme) for architecture in ARCHITECTURES for scheme in architecture.schemes)


@cache
def _known_keys() -> frozenset[str]:
    return frozenset[str]().union(*(table.keys for table in _tables()))


def _table(architecture: Architecture, scheme: Scheme) -> _Table:
    entries = tuple(
        _Entry(fill(name, _HOLE), letter, role, spelling, name != spelling.name)
        for role in architecture.roles
        if (spelling := role.spellings.get(scheme)) is not None
        for name in (spelling.name, *spelling.aliases)
        for letter in (letter_of(name),)
    )
    letters = tuple(dict.fromkeys(entry.letter for entry in entries if entry.letter is not None))
    dead = {fill(one.name, _HOLE): one for one in architecture.dead if one.scheme == scheme}
    keys = frozenset([*(entry.key for entry in entries), *dead])
    return _Table(architecture, scheme, entries, dead, keys, letters)


def _group(tensors: Mapping[str, TensorRef]) -> dict[str, dict[int | None, TensorRef]]:
    """Returns key -> number -> tensor, for every key of any table that a name can be read as."""
    known = _known_keys()
    groups: dict[str, dict[int | None, TensorRef]] = {}
    for name, ref in tensors.items():
        if name in known:
            groups.setdefault(name, {})[None] = ref
        segments = name.split(".")
        for position, segment in enumerate(segments):
            number = _number(segment)
            if number is None:
                continue
            key = ".".join((*segments[:position], _HOLE, *segments[position + 1 :]))
            if key in known:
                groups.setdefault(key, {})[number] = ref
    return groups


def _number(segment: str) -> int | None:
    """Returns a block number as the clients write it: ASCII digits, no leading zero."""
    if not (segment.isascii() and segment.isdigit()) or len(segment) > 6:
        return None
    return int(segment) if segment == str(int(segment)) else None


def _covered(table: _Table, groups: Mapping[str, Mapping[int | None, TensorRef]]) -> int:
    return sum(len(groups[key]) for key in table.keys if key in groups)


def _fit(
    table: _Table, tensors: Mapping[str, TensorRef], groups: Mapping[str, Mapping[int | None, TensorRef]]
) -> Match:
    counts = {letter: _count(table, letter, groups) for letter in table.letters}
    found: dict[tuple[Role, int | None], tuple[TensorRef, Spelling]] = {}
    tied: list[tuple[TensorRef, str]] = []
    for entry, index in _numbered(table, counts):
        ref = groups.get(entry.key, {}).get(index)
        if ref is None:
            continue
        if (entry.role, index) in found:
            tied.append((ref, fill(entry.role.name, index)))
        else:
            found[entry.role, index] = (ref, entry.spelling)
    missing = [
        fill(entry.spelling.name, index)
        for entry, index in _numbered(table, counts)
        if (entry.role, index) not in found and not entry.alias and not entry.spelling.optional
    ]
    dead = tuple(_dead(table, counts, groups))
    used = {ref.name for ref, _ in (*found.values(), *tied, *dead)}
    sizes, wrong = _unify(found, tied)
    return Match(
        architecture=table.architecture,
        scheme=table.scheme,
        dims=counts | sizes,
        found=found,
        tied=tuple(tied),
        dead=dead,
        missing=tuple(dict.fromkeys(missing)),
        extra=tuple(name for name in tensors if name not in used),
        wrong=(*wrong, *_odd_dead(dead, counts | sizes)),
    )


def _dead(
    table: _Table, counts: Mapping[str, int], groups: Mapping[str, Mapping[int | None, TensorRef]]
) -> Iterator[tuple[TensorRef, Dead]]:
    """Yields a file's tensors without use in its network, for the blocks that the file has."""
    for key, dead in table.dead.items():
        letter = letter_of(dead.name)
        for index, ref in groups.get(key, {}).items():
            if letter is None or (index is not None and index < counts[letter]):
                yield ref, dead


def _odd_dead(dead: Sequence[tuple[TensorRef, Dead]], dims: Mapping[str, int]) -> Iterator[WrongShape]:
    """Yields those whose shape does not fit their name: they are something else."""
    for ref, one in dead:
        if not all(isinstance(size, int) or parse_size(size)[1] in dims for size in one.shape):
            yield WrongShape(ref.name, ref.shape, one.shape)
        elif ref.shape != (expected := shape_of(one.shape, dims)):
            yield WrongShape(ref.name, ref.shape, expected)


def _numbered(table: _Table, counts: Mapping[str, int]) -> Iterator[tuple[_Entry, int | None]]:
    for entry in table.entries:
        for index in range(counts[entry.letter]) if entry.letter else (None,):
            yield entry, index


def _count(table: _Table, letter: str, groups: Mapping[str, Mapping[int | None, TensorRef]]) -> int:
    """Returns the number of blocks in a file's table: up to the last number that at least half of the rows have."""
    keys = {entry.key for entry in table.entries if entry.letter == letter and not entry.spelling.optional}
    votes = Counter(number for key in keys for number in groups.get(key, ()) if number is not None)
    rows = len({entry.role for entry in table.entries if entry.letter == letter})
    # contiguous from 0: a file cannot mean more blocks than it has numbered tensors
    limit = max((len(groups.get(key, ())) for key in keys), default=0) + 1
    held = [number for number, count in votes.items() if 2 * count >= min(rows, len(keys)) and number <= limit]
    return max(held, default=0) + 1


def _unify(
    found: Mapping[tuple[Role, int | None], tuple[TensorRef, Spelling]], tied: Sequence[tuple[TensorRef, str]]
) -> tuple[dict[str, int], tuple[WrongShape, ...]]:
    """Returns the size of every symbol (what most shapes say) and the tensors whose shape disagrees."""
    alike: dict[tuple[Role, Shape], tuple[Spelling, list[TensorRef]]] = {}  # a role has one spelling in a scheme
    for (role, _), (ref, spelling) in found.items():
        alike.setdefault((role, ref.shape), (spelling, []))[1].append(ref)
    votes: dict[str, Counter[int]] = {}
    for (role, shape), (spelling, refs) in alike.items():
        for symbol, size in _solve(role, spelling, shape):
            votes.setdefault(symbol, Counter())[size] += len(refs)
    sizes = {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}
    wrong: dict[str, WrongShape] = {}
    for (role, shape), (spelling, refs) in alike.items():
        expected = _expected(role, spelling, sizes)
        if shape != expected:
            pattern = role.shape if expected is None else expected
            wrong.update((ref.name, WrongShape(ref.name, shape, pattern)) for ref in refs)
    if tied:
        originals = {fill(role.name, index): ref for (role, index), (ref, _) in found.items()}
        for ref, name in tied:
            if ref.shape != originals[name].shape:
                wrong[ref.name] = WrongShape(ref.name, ref.shape, originals[name].shape)
    return sizes, tuple(wrong.values())


def _expected(role: Role, spelling: Spelling, sizes: Mapping[str, int]) -> Shape | None:
    """Returns the shape on disk; None if one of its sizes is not known from any shape."""
    try:
        return shape_on_disk(role, spelling, sizes)
    except KeyError:
        return None


def _solve(role: Role, spelling: Spelling, shape: Shape) -> Iterator[tuple[str, int]]:
    """Yields what one tensor's shape says about the symbols in its row."""
    pattern = role.shape if spelling.shape is None else spelling.shape
    if spelling.transposed:
        pattern = pattern[::-1]
    if len(pattern) != len(shape):
        return
    for axis, (size, length) in enumerate(zip(pattern, shape, strict=True)):
        if isinstance(size, int):
            continue
        factor, symbol, divisor = parse_size(size)
        if axis == 0:  # fused: (3 * d, ...)
            factor, divisor = factor * spelling.of, divisor * len(spelling.parts)
        if length and length * divisor % factor == 0:
            yield symbol, length * divisor // factor
