"""The readout: from the final hidden state to logits, by the token table or by a table of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax import parameters
from flm_jax.config import ModelConfig, at_least_float32


def logits(x: jax.Array, table: jax.Array, config: ModelConfig) -> jax.Array:
    """Readout of `x` `[B, L, D]` by `table` `[V, D]`, times `output_mult` over the width multiplier.

    Returns:
        `[B, L, V]`, at least float32.
    """
    wide = at_least_float32(x.dtype)
    x = (x.astype(wide) * config.logit_scale).astype(x.dtype)
    return jnp.einsum("BLD,VD->BLV", x, table.astype(x.dtype), preferred_element_type=wide)


class Readout(nn.Module):
    """The readout of a model whose embedding is not tied to it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x` `[B, L, D]` to logits `[B, L, V]`, at least float32."""
        table = parameters.declare(self, parameters.readout(), self.config)["kernel"]
        return logits(x, table, self.config)
