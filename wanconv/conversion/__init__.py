"""Carries a plan out: streamed, resumable, whole or not there at all."""
