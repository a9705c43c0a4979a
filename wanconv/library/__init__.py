"""What `import wanconv` offers: functions of Python on the rooms below, without printing, exiting or options."""
