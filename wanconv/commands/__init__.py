"""One module per command: each takes plain options and returns a Report."""
