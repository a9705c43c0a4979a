"""One module per verb: each takes plain options and returns a Report."""
