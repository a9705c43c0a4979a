"""A converted model's manifest and model card."""
