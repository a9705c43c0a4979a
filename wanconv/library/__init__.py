"""The functions of `import wanconv`: Python functions on the rooms below, without printing, exiting or options."""
