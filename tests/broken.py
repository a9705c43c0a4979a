"""What every reader of a container owes a broken file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wanconv.errors import InputError


def check_named(read: Callable[[Path], object], path: Path, content: bytes, message: str) -> None:
    """Asserts that a file with this content is refused in a sentence that names the file and says why, with a hint."""
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert message in caught.value.message, caught.value.message
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ mask]))
