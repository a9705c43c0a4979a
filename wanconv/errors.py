"""Every error wanconv raises on purpose. Each says what is wrong and where, and hints at a fix.

    WanconvError
    ├── UsageError      2    usage          a legal input with an option, recipe, layout or target that cannot be
    │   ├── Refused     2    refused        a plan that headers alone forbid: every reason at once
    │   ├── Occupied    2    occupied       a target that holds another conversion, or files wanconv did not write
    │   └── PluginError 2    plugin         an installed plugin that cannot be loaded, or clashes with another one
    ├── InputError      3    unreadable     a file that is invalid, or of another kind
    │   ├── Unrecognised 3   unrecognised   tensors that fit no known family, by name
    │   └── HubUnreachable 3 unreachable    a hub that does not answer, or is not to be asked (offline)
    ├── CheckFailed     1    check-failed   a cover or bound that does not hold
    ├── DigestMismatch  4    digest         bytes that are not the ones recorded
    ├── NotFinite       5    not-finite     NaN or infinity in the source
    │   └── Overflow    5    overflow       a finite value that the target format cannot hold
    ├── OutputError     7    output         a target that cannot be written: full, read-only, failing
    └── Interrupted     130  interrupted    stopped by the user; the message is the command that goes on

The number is the exit code. `REGISTRY` lists the codes; a test holds this table and the classes together.

A message names an argument as Python writes it, in backticks: "choose another `out`, or `overwrite=True` to replace
it" is what a caller of the library reads. `wanconv/cli/flags.py` makes "choose another --out, or --force …" of it.
"""

import json
import re
from collections.abc import Iterator, Sequence

# a call, or a name with or without a value: quoted texts, so that a file's name in one cannot end it, or True
_TEXT = r'"(?:[^"\\]|\\.)*"'
NAMED = re.compile(rf"`(?P<name>[a-z]\w*)(?:=(?P<value>\[{_TEXT}(?:, {_TEXT})*\]|{_TEXT}|True))?`", re.DOTALL)


def argument(name: str, value: str | Sequence[str]) -> str:
    """Return an argument with the value to give it, for a message.

    Args:
        name: The parameter of the library's function, such as "exclude".
        value: Its text, or several texts if it takes a list.

    Returns:
        The argument as Python writes it, in backticks: `exclude=["*.bin"]`.
    """
    return f"`{name}={json.dumps(value if isinstance(value, str) else list(value), ensure_ascii=False)}`"


def named(*texts: str) -> Iterator[str]:
    """Yield the names in backticks in texts, in their order."""
    for text in texts:
        yield from (match["name"] for match in NAMED.finditer(text))


class WanconvError(Exception):
    """`message` says what and where, `hint` starts with what to do; `details` are further lines (ten are shown).

    They contain arguments as Python writes them (see above); the command line shows its options.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that message and hint name, such as "overwrite", each once."""
        return tuple(dict.fromkeys(named(self.message, self.hint)))


class UsageError(WanconvError):
    """An argument, recipe, layout or target that cannot be used."""

    code = "usage"
    exit_code = 2


class Refused(UsageError):
    """A plan that headers alone forbid; `details` has every reason."""

    code = "refused"


class Occupied(UsageError):
    """A target that holds another conversion, or files that wanconv did not write."""

    code = "occupied"


class PluginError(UsageError):
    """An installed plugin that cannot be loaded, or that adds a name which is taken."""

    code = "plugin"


class InputError(WanconvError):
    """A file that cannot be read, is incomplete, or is not what it should be."""

    code = "unreadable"
    exit_code = 3


class Unrecognised(InputError):
    """Tensors that fit no known family."""

    code = "unrecognised"


class HubUnreachable(InputError):
    """A hub that does not answer, or must not be asked because it is set offline."""

    code = "unreachable"


class CheckFailed(WanconvError):
    """A cover or a bound that does not hold."""

    code = "check-failed"
    exit_code = 1


class DigestMismatch(WanconvError):
    """Bytes that do not match their recorded digest."""

    code = "digest"
    exit_code = 4


class NotFinite(WanconvError):
    """NaN or infinity in the source."""

    code = "not-finite"
    exit_code = 5


class Overflow(NotFinite):
    """A finite value that the target format cannot hold."""

    code = "overflow"


class OutputError(WanconvError):
    """A target that cannot be written: full, read-only or failing."""

    code = "output"
    exit_code = 7


class Interrupted(WanconvError):
    """Stopped by the user; the same call resumes."""

    code = "interrupted"
    exit_code = 130


def _walk(base: type[WanconvError]) -> Iterator[type[WanconvError]]:
    for child in base.__subclasses__():
        yield child
        yield from _walk(child)


REGISTRY = {error.code: error for error in _walk(WanconvError)}
