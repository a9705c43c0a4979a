"""Where the bytes of a checkpoint are: readers of safetensors, .pth, GGUF and index files, and the writer."""

from wanconv.checkpoint.archive import Archive
from wanconv.checkpoint.files import Entry, Header
from wanconv.checkpoint.gguf import build_gguf
from wanconv.checkpoint.open import check_file, header_digest, open_checkpoint, read_header
from wanconv.checkpoint.pth import build_archive, confirm
from wanconv.checkpoint.safetensors import build_header

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
