"""Sources and destinations of bytes: local files, and hubs by HTTP."""
