"""Free space on a disk."""

import shutil
from pathlib import Path


def free_nbytes(folder: Path) -> int:
    """Returns the free bytes on the disk of `folder`, which may not exist yet; raises OSError."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
