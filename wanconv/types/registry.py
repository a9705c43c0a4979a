"""Tables by name: wanconv's own values, and those of installed distributions, which are loaded when first needed.

A distribution adds values by entry points of a group such as `wanconv.layouts`. A value is pickled as its name, so that
another process reads the value of its own table.
"""

import copyreg
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeVar

from wanconv.errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

SWITCH = "WANCONV_PLUGINS"  # 0: no distribution adds anything
DISABLE = f"update or remove it, or set {SWITCH}=0, which disables every plugin"


class Named(Protocol):
    """A value that its table knows by its name."""

    @property
    def name(self) -> str: ...


Value = TypeVar("Value", bound=Named)
Kind = TypeVar("Kind", bound=Named, covariant=True)


@dataclass(frozen=True, slots=True, order=True)
class Distribution:
    """The installed distribution that a value is from, and its version."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Plugin:
    """What one entry point holds, and where it is from; `name` is the entry point's."""

    name: str
    value: object
    origin: Distribution


@cache
def plugins(group: str) -> tuple[Plugin, ...]:
    """Return what installed distributions add to a group, by distribution and name of the entry point.

    Raises:
        PluginError: if one of them cannot be imported.
    """
    if os.environ.get(SWITCH, "") == "0":
        return ()
    from importlib.metadata import entry_points  # imported once, and only by commands that need it

    found = [(_origin(point), point) for point in entry_points(group=group)]
    return tuple(
        Plugin(point.name, _loaded(point, origin), origin)
        for origin, point in sorted(found, key=lambda pair: (pair[0], pair[1].name))
    )


def _origin(point: "EntryPoint") -> Distribution:
    if point.dist is None:
        return Distribution("an unknown distribution", "")
    return Distribution(point.dist.name, point.dist.version)


def _loaded(point: "EntryPoint", origin: Distribution) -> object:
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # any exception: this is third-party code
        what = f"the plugin {origin} cannot be loaded ({point.group}, {point.name})"
        raise PluginError(f"{what}: {reason(error)}", DISABLE) from error


def reason(error: BaseException) -> str:
    """Return what third-party code raised, on one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Registry(Mapping[str, Value]):
    """Values by name: `own` ones, and those that `more` finds; it is called once, and only if the own ones are not
    enough."""

    def __init__(
        self, what: str, own: Sequence[Value], more: Callable[[], Iterable[tuple[Value, Distribution]]]
    ) -> None:
        self._what, self._more = what, more
        self._own = {value.name: value for value in own}
        self._all: dict[str, Value] | None = None
        self._origins: dict[str, Distribution] = {}

    def __getitem__(self, name: str) -> Value:
        return self._own[name] if name in self._own else self._every()[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in self._every() if name not in self._own)

    def __len__(self) -> int:
        return len(self._every())

    def named(self, name: str) -> Value:
        """Return the value of a name; raises LookupError if there is none."""
        if name in self:
            return self[name]
        raise LookupError(f"wanconv knows no {self._what} {name!r}; is the plugin that adds it installed?")

    def origin(self, name: str) -> Distribution | None:
        """Return the distribution that a value is from; None for one of wanconv's own."""
        return None if name in self._own or name not in self else self._origins[name]

    def _every(self) -> dict[str, Value]:
        if self._all is None:
            values = dict(self._own)
            for value, origin in self._more():
                if (taken := values.get(value.name)) is not None and taken != value:
                    other = self._origins.get(value.name, "wanconv itself")
                    raise PluginError(
                        f"the {self._what} {value.name!r} is in {other} and in the plugin {origin}", DISABLE
                    )
                if taken is None:
                    values[value.name] = value
                    self._origins[value.name] = origin
            self._all = values
        return self._all


class Values(Sequence[Kind]):
    """The values of a table, in its order."""

    def __init__(self, table: Mapping[str, Kind]) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._table.values())

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # of a number or a slice
        return tuple(self._table.values())[index]


def of_group(group: str, *kinds: type[Kind]) -> Iterator[tuple[Kind, Distribution]]:
    """Yield the values that installed distributions add to a group, each with its origin.

    An entry point holds a value, or a list or tuple of values.

    Raises:
        PluginError: for a value that is of none of the `kinds`.
    """
    for plugin in plugins(group):
        for value in plugin.value if isinstance(plugin.value, list | tuple) else (plugin.value,):
            if not isinstance(value, kinds):
                wanted = " or ".join(f"a {kind.__name__}" for kind in kinds)
                found = f"holds a {type(value).__name__}, and {group} takes {wanted}"
                raise PluginError(f"the plugin {plugin.origin} ({plugin.name}) {found}", DISABLE)
            yield value, plugin.origin


def pickle_by_name(kind: type[Value], find: Callable[[str], Value]) -> None:
    """Have values of `kind` pickled as a call of `find` with their name.

    A value that the table lacks, or another one under the same name, is pickled with all of its fields.

    Args:
        kind: the class of the table's values.
        find: a module's function that returns the table's value of a name; raises LookupError if there is none.
    """

    def reduced(value: Value) -> str | tuple[object, ...]:
        try:
            known = find(value.name) == value
        except LookupError:
            known = False
        return (find, (value.name,)) if known else object.__reduce_ex__(value, 4)

    copyreg.pickle(kind, reduced)  # type: ignore[arg-type]  # of any class, says the documentation
