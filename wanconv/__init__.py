"""wanconv pre-bakes video diffusion checkpoints: verify, convert, and prove what was converted."""

__version__ = "0.1.0"
