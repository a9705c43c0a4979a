"""LPIPS' two weight files, which the user hands in: only bytes that are known are taken."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from wanconv.errors import InputError
from wanconv.storage.reading import stream

if TYPE_CHECKING:
    from torch import Tensor

    from wanconv.metrics.perceptual import Perceptual

_MAX_NBYTES = 300_000_000  # the larger one has 244 MB


@dataclass(frozen=True, slots=True)
class Pin:
    """A file by its name and digest, and where it is to be had."""

    file: str
    sha256: str
    origin: str


# torch.hub names a file by the first eight digits of its SHA-256.
ALEXNET = Pin(
    "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
HEADS = Pin(
    "alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "lpips/weights/v0.1/alex.pth in the wheel that pip download --no-deps lpips==0.1.4 brings",
)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A folder that holds both files, and what they must be."""

    folder: Path
    alexnet: Pin = ALEXNET
    heads: Pin = HEADS

    def read(self) -> "Perceptual":
        """Returns the network; raises InputError for a file that is absent or another one."""
        from wanconv.metrics.perceptual import Perceptual  # imports torch

        return Perceptual.of(_read(self.folder, self.alexnet), _read(self.folder, self.heads))


def _read(folder: Path, pin: Pin) -> "Mapping[str, Tensor]":
    import torch  # heavy

    path = folder / pin.file
    try:
        with stream(path) as file:
            _check(file, path, pin)
            state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        message = f"`lpips` needs {path}, which cannot be read: {error.strerror}"
        raise InputError(message, f"get it: {pin.origin}") from error
    return state


def _check(file: BufferedReader, path: Path, pin: Pin) -> None:
    """Raises InputError unless the bytes are those that are known; leaves the file at its start."""
    if (nbytes := os.fstat(file.fileno()).st_size) > _MAX_NBYTES:
        raise InputError(f"{path} is not LPIPS' {pin.file}: it has {nbytes} bytes", f"get it again: {pin.origin}")
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pin.sha256:
        message = f"{path} is not LPIPS' {pin.file}: its SHA-256 is {found[:16]}…, not {pin.sha256[:16]}…"
        raise InputError(message, f"get it again: {pin.origin}")
    file.seek(0)
