"""Every error wanconv raises on purpose. Each says what is wrong and where, and hints at what would fix it.

    WanconvError
    ├── UsageError      2    usage          a legal input with an option, recipe, layout or target that cannot be
    │   └── Refused     2    refused        a plan that headers alone forbid: every reason at once
    ├── InputError      3    unreadable     a file that is not what it should be
    │   └── Unrecognised 3   unrecognised   tensors that fit no known family, by name
    ├── CheckFailed     1    check-failed   a cover or bound that does not hold
    ├── DigestMismatch  4    digest         bytes that are not the ones recorded
    ├── NotFinite       5    not-finite     NaN or infinity in the source
    │   └── Overflow    5    overflow       a finite value that the target format cannot hold
    ├── OutputError     7    output         a target that cannot be written: full, read-only, failing
    └── Interrupted     130  interrupted    stopped by the user; the message is the command that goes on

The number is the exit code. `REGISTRY` lists the codes; a test holds this table and the classes together.
"""

from collections.abc import Iterator, Sequence


class WanconvError(Exception):
    """`message` says what and where, `hint` starts with what to do; `details` are further lines (ten are shown)."""

    code = "error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)


class UsageError(WanconvError):
    code = "usage"
    exit_code = 2


class Refused(UsageError):
    code = "refused"


class InputError(WanconvError):
    code = "unreadable"
    exit_code = 3


class Unrecognised(InputError):
    code = "unrecognised"


class CheckFailed(WanconvError):
    code = "check-failed"
    exit_code = 1


class DigestMismatch(WanconvError):
    code = "digest"
    exit_code = 4


class NotFinite(WanconvError):
    code = "not-finite"
    exit_code = 5


class Overflow(NotFinite):
    code = "overflow"


class OutputError(WanconvError):
    code = "output"
    exit_code = 7


class Interrupted(WanconvError):
    code = "interrupted"
    exit_code = 130


def _walk(base: type[WanconvError]) -> Iterator[type[WanconvError]]:
    for child in base.__subclasses__():
        yield child
        yield from _walk(child)


REGISTRY = {error.code: error for error in _walk(WanconvError)}
