"""A hub of the project's own on loopback: both dialects, a payload origin of its own, and faults on demand."""
