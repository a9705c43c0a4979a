"""Downloads from a hub: the selection of files, resumable fetching, and headers only."""
