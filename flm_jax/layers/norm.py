"""LayerNorm with gain and bias, statistics in at least float32."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig, at_least_float32
from flm_jax.parameters import Parameter, declare


class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias over the last axis of `x` `[B, L, D]`."""

    config: ModelConfig
    rows: Mapping[str, Parameter]  # `NORM`, or `FINAL_NORM` before the readout

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Normalises `x` `[B, L, D]`; same shape and dtype.

        With `keep` `[D]` (`GrowthMask.embed`), coordinate i counts `keep[i]` times in mean and variance, whose
        denominator is the sum of `keep`, and its output is multiplied by `keep[i]`.
        """
        row = declare(self, self.rows, self.config)
        wide = x.astype(at_least_float32(x.dtype))

        def mean(values: jax.Array) -> jax.Array:
            if keep is None:
                return jnp.mean(values, axis=-1, keepdims=True)
            weights = keep.astype(wide.dtype)
            return jnp.sum(values * weights, axis=-1, keepdims=True) / jnp.sum(weights)

        centred = wide - mean(wide)
        normed = centred * jax.lax.rsqrt(mean(jnp.square(centred)) + self.config.norm_epsilon)
        out = normed * row["scale"].astype(wide.dtype) + row["bias"].astype(wide.dtype)
        return (out if keep is None else out * keep.astype(wide.dtype)).astype(x.dtype)
