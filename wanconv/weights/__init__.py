"""A model's numbers: read in runs, decoded, with LoRAs merged."""
