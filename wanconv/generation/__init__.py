"""Runs a model: conditions, sampling, clips. It judges nothing."""
