"""Where bytes come from and go to: this machine's files, and hubs by HTTP."""
