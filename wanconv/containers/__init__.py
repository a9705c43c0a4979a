"""Where the bytes of a checkpoint are: readers of safetensors, .pth, GGUF and index files, and the writer."""

from wanconv.containers.archive import Archive
from wanconv.containers.files import Entry, Header
from wanconv.containers.gguf import build_gguf
from wanconv.containers.open import check_file, header_digest, open_checkpoint, read_header
from wanconv.containers.pth import build_archive, confirm
from wanconv.containers.safetensors import build_header

__all__ = [
    "Archive",
    "Entry",
    "Header",
    "build_archive",
    "build_gguf",
    "build_header",
    "check_file",
    "confirm",
    "header_digest",
    "open_checkpoint",
    "read_header",
]
