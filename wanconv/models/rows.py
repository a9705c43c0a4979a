"""How a table row becomes roles: a module is written once, its weight and bias follow."""

from collections.abc import Iterable
from dataclasses import replace

from wanconv.types.architecture import Kind, Role, Scheme, Spelling

Leaves = tuple[tuple[str, str], ...]
Size = int | str
Column = str | Spelling | None
# kind of the weight, leaves, canonical name, shape of the weight, one column per scheme
Row = tuple[Kind, Leaves, str, tuple[Size, ...], *tuple[Column, ...]]

# (canonical leaf, leaf on disk)
WHOLE: Leaves = (("", ""),)
W: Leaves = (("weight", "weight"),)
WB: Leaves = (("weight", "weight"), ("bias", "bias"))
GAMMA: Leaves = (("weight", "gamma"),)

SCHEMES: tuple[Scheme, ...] = ("official", "hub")


def roles(table: Iterable[Row], schemes: tuple[Scheme, ...] = SCHEMES) -> tuple[Role, ...]:
    """Returns the roles of a table whose columns are `schemes`."""
    found = []
    for kind, leaves, name, shape, *columns in table:
        for leaf, on_disk in leaves:
            spellings = {scheme: _spell(column, on_disk) for scheme, column in zip(schemes, columns, strict=True)}
            if leaf == "bias":
                found.append(Role(_join(name, leaf), "bias", shape[:1], spellings))
            else:
                found.append(Role(_join(name, leaf), kind, shape, spellings))
    return tuple(found)


def inside(name: str, prefixes: tuple[str, ...], table: Iterable[Row]) -> tuple[Row, ...]:
    """Returns the rows below a canonical name, each column below its prefix."""
    return tuple(
        (kind, leaves, f"{name}.{row_name}", shape, *map(_below, prefixes, columns))
        for kind, leaves, row_name, shape, *columns in table
    )


def _below(prefix: str, column: Column) -> Column:
    if isinstance(column, Spelling):
        return replace(column, name=f"{prefix}.{column.name}")
    return column and f"{prefix}.{column}"


def _spell(column: Column, leaf: str) -> Spelling | None:
    if column is None:
        return None
    if isinstance(column, str):
        return Spelling(_join(column, leaf))
    aliases = tuple(_join(alias, leaf) for alias in column.aliases)
    return replace(column, name=_join(column.name, leaf), aliases=aliases)


def _join(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if leaf else name
