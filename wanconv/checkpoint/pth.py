"""The .pth file of torch.save."""

from pathlib import Path

from wanconv.checkpoint.files import Header
from wanconv.errors import InputError


def read_header(path: Path) -> Header:
    raise InputError(f"{path}: .pth is not read yet")
