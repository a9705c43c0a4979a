"""Checks of a checkpoint: digests, the client's rules, the proof against its source."""
