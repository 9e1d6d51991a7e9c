"""The token table: embedding at the bottom and, where it is tied, readout at the top."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax import parameters
from flm_jax.config import ModelConfig
from flm_jax.layers.readout import logits
from flm_jax.partitioning import constrain


class Embedding(nn.Module):
    """One table `[V, D]`, for both ends of the decoder where the readout is tied."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the table."""
        self.table = parameters.declare(self, parameters.embedding(), self.config)["embedding"]

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embeds integer `tokens` `[B, L]`, times `input_mult`: `[B, L, D]`."""
        # Looking up rows in a table that is split by rows, or as the batch is, makes XLA replicate the result
        # whole; split by columns over the mesh axes that the batch leaves free, every device looks up its own.
        # Back to whole columns it goes a mesh axis at a time: XLA knows no way for two at once.
        # Cast after the lookup: its gradient adds up a row for every occurrence of a token, and a sum of a thousand
        # bfloat16 numbers stalls. A multiplier rounded to bfloat16 would be off by up to 0.2 %, all alike.
        table = constrain(self.table, None, "looked_up")
        x = constrain(jnp.take(table, tokens, axis=0), "batch", "length", "looked_up")
        x = constrain(x, "batch", "residual", "looked_up")
        return (x * self.config.input_mult).astype(self.config.dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """The tied readout of `x` `[B, L, D]`: `[B, L, V]`, at least float32."""
        return logits(x, self.table, self.config)
