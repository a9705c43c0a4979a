"""Values of tables, pickled as their names: what another process reads is its own table's value."""

import copyreg
from collections.abc import Callable
from typing import Protocol, TypeVar


class Named(Protocol):
    """A value that its table knows by its name."""

    @property
    def name(self) -> str: ...


Value = TypeVar("Value", bound=Named)


def pickle_by_name(kind: type[Value], find: Callable[[str], Value]) -> None:
    """Has values of `kind` pickled as a call of `find` with their name.

    A value that the table lacks, or another one under the same name, is pickled with all that it holds.

    Args:
        kind: the class of the table's values.
        find: a module's function that returns the table's value of a name; raises LookupError where there is none.
    """

    def reduced(value: Value) -> str | tuple[object, ...]:
        try:
            known = find(value.name) == value
        except LookupError:
            known = False
        return (find, (value.name,)) if known else object.__reduce_ex__(value, 4)

    copyreg.pickle(kind, reduced)  # type: ignore[arg-type]  # of any class, says the documentation
