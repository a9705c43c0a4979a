"""What the verbs share: making a plan from options, moving numbers, OUT.partial, the manifest, the model card."""
