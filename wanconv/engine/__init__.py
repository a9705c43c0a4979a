"""The bundled inference engine: runs a checkpoint as its client would and sees every number on the way."""
