"""Checkpoints to try things on: the small model that ships, and synthetic ones."""
