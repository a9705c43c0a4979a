"""Carries out a plan: streamed, resumable; the output appears whole or not at all."""
