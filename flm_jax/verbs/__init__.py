"""The verbs of `flm` that have a file of their own: their flags, and what they call. Nothing here imports JAX."""
