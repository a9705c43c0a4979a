"""Where the bytes of a checkpoint are: readers of safetensors, .pth and index files, and the writer."""

from wanconv.checkpoint.open import header_digest, open_checkpoint, read_header

__all__ = ["header_digest", "open_checkpoint", "read_header"]
