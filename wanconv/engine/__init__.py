"""The bundled inference engine: runs a checkpoint as its client does and sees every number."""
