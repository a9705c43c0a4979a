"""Files of a hub on this disk: which ones, fetched and resumed, or their headers alone."""
