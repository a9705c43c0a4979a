"""The page about two models."""
