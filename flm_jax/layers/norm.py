"""LayerNorm with gain and bias, statistics in at least float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig, at_least_float32
from flm_jax.parameters import NORM, declare


class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias over the last axis of `x` `[B, L, D]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x` `[B, L, D]`; same shape and dtype."""
        row = declare(self, NORM, self.config)
        wide = x.astype(at_least_float32(x.dtype))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.config.norm_epsilon)
        return (normed * row["scale"].astype(wide.dtype) + row["bias"].astype(wide.dtype)).astype(x.dtype)
