"""Reading files of unknown content: regular files only, small ones bounded in size and time, complete reads, and TOML
and JSON without extreme numbers or nesting.

A problem with a file is an OSError whose `strerror` describes it; one with a text is a ValueError. The caller adds what
the file was meant to be.
"""

import errno
import json
import os
import re
import stat
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from math import isfinite
from pathlib import Path
from typing import Any

TEXT_NBYTES = 500_000  # limit for files that people write: recipes, profiles
JSON_NBYTES = 64_000_000  # limit for files that programs write: manifests, indexes, results, records, lists
_PATIENCE_S = 60.0  # for a whole small file, on any file system
_CHUNK_NBYTES = 1 << 20
_NODES = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
_DIGITS = 19  # digits of the largest 64-bit integer, TOML's limit; no value of wanconv exceeds it
_DEPTH = 32  # nested tables and lists
_STRING = re.compile(r"""\"(?:[^"\\\n]|\\.)*+(?:"|$)|'[^'\n]*+(?:'|$)|\#.*$""")
_BRIEF = 100


def node_kind(mode: int) -> str:
    """Returns in words what a node of a file system is that is not a regular file."""
    return _NODES.get(stat.S_IFMT(mode), "a device")


def open_regular(path: Path) -> int:
    """Returns a descriptor for reading; raises OSError unless the file is regular; never waits for a FIFO.

    A device is not opened at all, since opening alone may have an effect.
    """
    _check_regular(path.stat(), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check_regular(os.fstat(descriptor), path)  # the path may be another file by now
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {node_kind(status.st_mode)}, not a file", str(path))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yields the descriptor of a regular file; raises as open_regular does."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def stream(path: Path) -> BufferedReader:
    """Returns a regular file opened for reading; raises as open_regular does."""
    return os.fdopen(open_regular(path), "rb")


def read_small(path: Path, most_nbytes: int) -> bytes:
    """Returns a file's content; raises OSError if it has more bytes than allowed, or takes too long.

    The bytes read count, not the size: files of /proc have the size 0, and others grow.
    """
    deadline = time.monotonic() + _PATIENCE_S
    content = bytearray()
    too_large = OSError(errno.EFBIG, f"it has more than {most_nbytes} bytes", str(path))
    with opened(path) as descriptor:
        if os.fstat(descriptor).st_size > most_nbytes:
            raise too_large
        while chunk := os.read(descriptor, min(_CHUNK_NBYTES, most_nbytes + 1 - len(content))):
            content += chunk
            if len(content) > most_nbytes:
                raise too_large
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"it takes more than {_PATIENCE_S:.0f} seconds", str(path))
    return bytes(content)


def small_text(path: Path) -> str:
    """Returns the text of a small file, with Python's line ends; raises OSError as read_small does, and ValueError
    unless it is UTF-8."""
    return read_small(path, TEXT_NBYTES).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def read_at(descriptor: int, nbytes: int, offset: int) -> bytes:
    """Returns `nbytes` from `offset` on, fewer only at the file's end: one system call may return less."""
    parts, left = [], nbytes
    while left and (part := os.pread(descriptor, left, offset)):
        parts.append(part)
        offset, left = offset + len(part), left - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fill_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fills `view` from `offset` on, and returns the number of bytes: fewer only at the file's end."""
    done = 0
    while done < len(view) and (count := os.preadv(descriptor, [view[done:]], offset + done)):
        done += count
    return done


def parsed_toml(text: str) -> dict[str, Any]:
    """Returns a table; raises ValueError for invalid TOML, and for extreme nesting and numbers."""
    if any(_key_depth(line) > _DEPTH for line in text.splitlines()):
        raise ValueError("it is nested too deeply")  # tomllib would take hours for it
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python's own limit, of int()
        raise ValueError("it holds a whole number of thousands of digits") from None
    _check(table)
    return table


def _key_depth(line: str) -> int:
    """Returns the depth of a line's dotted key: its dots, without strings and comments."""
    bare = _STRING.sub("_", line)
    return max(part.count(".") for part in re.split(r"[=,{}\[\]]", bare))


def parsed_json(raw: bytes, finite: bool = False) -> object:
    """Returns a JSON value; raises ValueError as parsed_toml does, and `finite` for NaN and infinity, too."""
    read_float = _finite if finite else float
    try:
        value = json.loads(raw, parse_int=whole_number, parse_float=read_float, parse_constant=read_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(value)
    return value


def whole_number(text: str, most_digits: int = _DIGITS) -> int:
    """Returns an integer of JSON; raises ValueError for a longer one, which Python may refuse to read or to print."""
    if len(text.lstrip("-")) > most_digits:
        raise ValueError(f"it holds a whole number of {len(text.lstrip('-'))} digits")
    return int(text)


def _finite(text: str) -> float:
    """Refuses NaN and infinity, which no limit catches."""
    if not isfinite(value := float(text)):
        raise ValueError(f"it holds {brief(text)[1:-1]}, which is not a finite number")
    return value


def _check(value: object) -> None:
    """Raises ValueError for integers of more than 64 bits, which hexadecimal digits can write, and for deep nesting."""
    level = [value]
    for _ in range(_DEPTH):
        if any(type(one) is int and not -(2**63) <= one < 2**63 for one in level):
            raise ValueError("it holds a whole number of more than 64 bits")
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def brief(value: object) -> str:
    """Returns a value from a file as a message shows it: quoted, and shortened if it is long."""
    shown = repr(value)
    return shown if len(shown) <= _BRIEF else f"{shown[:_BRIEF]}…"
