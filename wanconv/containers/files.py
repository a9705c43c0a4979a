"""Shared by all readers: open a file of unknown content, say what it is, and the header that a reader returns."""

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from wanconv.errors import InputError
from wanconv.storage.reading import node_kind, opened, read_at, whole_number
from wanconv.types.tensors import Shape, TensorRef
from wanconv.types.text import UNPRINTABLE

MAX_TENSORS = 200_000
_PEEK = 512
_MOST_DIGITS = 1000  # most digits of a whole number: enough for every size that has its own check
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

_AGAIN = "download the file again"
_MEANT = "do not trust it: no tool writes this by mistake"
NAMED_WRONGLY = "check what it is: its name says one thing, and its bytes another"
TOO_MUCH = "give the weights of a model: none has as many"
SAVED_WHOLE = "save the tensors of the model alone: torch.save(model.state_dict(), path)"
_RE_SAVE = "re-save it with a current torch: torch.save(state_dict, path)"
# fmt: off
_MAGIC = (  # first bytes → what the file is, what to do; the first match counts
    (b"version https://git-lfs", "a git-LFS pointer", "fetch the file itself: `git lfs pull`"),
    (b"PK\x03\x04",  "a zip archive (torch's .pth format)", "name it .pth, or re-save the weights as safetensors"),
    (b"PK\x05\x06",  "an empty zip archive",                _AGAIN),
    (b"GGUF",        "a GGUF file",                         "name it .gguf"),
    (b"\x1f\x8b",    "a gzip file",                         "unpack it first: `gunzip`"),
    (_LEGACY_TORCH,  "a torch file of before version 1.6",  _RE_SAVE),
    (b"\x80\x02",    "a bare pickle",                       _RE_SAVE),
    (b"\x80\x03",    "a bare pickle",                       _RE_SAVE),
    (b"\x80\x04",    "a bare pickle",                       _RE_SAVE),
    (b"\x80\x05",    "a bare pickle",                       _RE_SAVE),
)
# fmt: on


class Entry(NamedTuple):
    """A tensor of a file to be written; a plain tuple in this order works, too."""

    name: str
    dtype: str
    shape: Shape
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A weight file's header: the tensors in the order of their bytes, and the sha256 of the raw header."""

    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str]
    digest: str


class OpenFile(Protocol):
    """The file that a header is read from: on disk, or remote."""

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int: ...

    def read(self, offset: int, nbytes: int) -> bytes:
        """Returns exactly `nbytes`; raises InputError if the file ends earlier."""


@dataclass(frozen=True, slots=True)
class _FileOnDisk:
    path: Path
    descriptor: int
    size: int

    def read(self, offset: int, nbytes: int) -> bytes:
        found = read_at(self.descriptor, nbytes, offset)
        if len(found) != nbytes:
            raise InputError(f"{self.path} ends at byte {offset + len(found)}, inside its header", _AGAIN)
        return found


@contextmanager
def regular_file(path: Path) -> Iterator[OpenFile]:
    """Opens a file, never a FIFO or a device (which could hang); an OSError in the block becomes an InputError."""
    with explained(path):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(
                f"{path} is {node_kind(mode)}, not a file", "give the path of a weight file or model folder"
            )
        with opened(path) as descriptor:
            yield _FileOnDisk(path, descriptor, os.fstat(descriptor).st_size)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into an InputError about `path`."""
    try:
        yield
    except FileNotFoundError as error:
        what = "is a dangling link" if path.is_symlink() else "does not exist"
        raise InputError(f"{path} {what}", "check the path, or download what is missing") from error
    except OSError as error:
        of_its_kind = error.errno in (errno.EINVAL, errno.EFBIG)  # readable, but of the wrong kind
        hint = "give another file" if of_its_kind else "check the permissions and the disk"
        raise InputError(f"{path} cannot be read: {error.strerror or error}", hint) from error


def what_is(file: OpenFile) -> tuple[str, str] | None:
    """Returns what a file that holds no weights seems to be, and a hint; None if its bytes do not show it."""
    head = file.read(0, min(_PEEK, file.size))
    if not head:
        return "empty", _AGAIN
    if not head.strip(b"\0"):
        return "filled with zero bytes, as an unfinished download leaves it", _AGAIN
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            return what, hint
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:5].lower() in (b"<!doc", b"<html", b"<head", b"<?xml", b"<erro"):
        return "a web page", "the server answered with a page: check the URL or the login, and download again"
    if text[:1] in (b"{", b"[") and text.isascii():
        return "JSON text, such as a server's error message", _AGAIN
    if head.isascii() and not UNPRINTABLE.search(head.decode("ascii").translate({9: None, 10: None, 13: None})):
        return f"text ({head[:40].decode('ascii')!r})", _AGAIN
    return None


def check_name(name: str, path: Path) -> None:
    """Raises InputError for a tensor name that logs and headers cannot carry; no model has one."""
    if not name or name == "__metadata__" or UNPRINTABLE.search(name):
        raise InputError(f"{path} has a tensor named {name!r}", "no tensor may be called that; the file is damaged")


def strict_json(raw: bytes, what: str) -> object:
    """Returns parsed JSON; raises InputError for invalid JSON and for duplicate keys, on which parsers disagree."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_int=_number)
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8: {error.reason} at byte {error.start}", _AGAIN) from error
    except RecursionError as error:
        raise InputError(f"{what} is not usable JSON: it is nested too deeply", _MEANT) from error
    except _Twice as error:
        raise InputError(f"{what} is not valid JSON: {error}", _MEANT) from error
    except ValueError as error:
        raise InputError(f"{what} is not valid JSON: {error}", _AGAIN) from error


class _Twice(ValueError):
    """A JSON key with two values: parsers disagree on which one counts."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add() is None
        raise _Twice(f"the key {twice!r} stands twice in one object")
    return result


def _number(text: str) -> int | float:
    return -0.0 if text == "-0" else whole_number(text, _MOST_DIGITS)  # as serde reads it: minus zero is a float


def combined(errors: Sequence[InputError], where: Path) -> InputError:
    """Returns one error for several; a single one is returned unchanged."""
    if len(errors) == 1:
        return errors[0]
    details = [line for error in errors for line in (error.message, *(f"  {detail}" for detail in error.details))]
    return InputError(f"{where}: {len(errors)} problems in its files", errors[0].hint, details)
