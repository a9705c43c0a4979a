"""Runs a model: conditions, sampling, clips. It does not judge."""
