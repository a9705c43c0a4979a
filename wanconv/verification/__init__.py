"""Whether a checkpoint is what it should be: digests, the client's rules, the proof against its source."""
