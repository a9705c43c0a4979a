"""Room on a disk."""

import shutil
from pathlib import Path


def free_nbytes(folder: Path) -> int:
    """Returns the bytes free where `folder` is, or will be made; raises OSError."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
