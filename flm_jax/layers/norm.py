"""LayerNorm and RMSNorm, statistics in at least float32."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig, at_least_float32
from flm_jax.parameters import Parameter, declare


class Norm(nn.Module):
    """LayerNorm (x - mean) / sqrt(var + epsilon) * scale + bias, or RMSNorm x / sqrt(mean(x²) + epsilon) * scale.

    Over the last axis of `x` `[B, L, D]`. RMSNorm's mean is the sum of squares over `norm_denominator`, D by default.
    """

    config: ModelConfig
    rows: Mapping[str, Parameter]  # `parameters.norm(config)`, or `final_norm(config)` before the readout

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Normalises `x` `[B, L, D]`; same shape and dtype.

        With `keep` `[D]` (`GrowthMask.embed`), coordinate i counts `keep[i]` times in the statistics, whose
        denominator is multiplied by the mean of `keep`, and its output is multiplied by `keep[i]`.
        """
        row = declare(self, self.rows, self.config)
        wide = x.astype(at_least_float32(x.dtype))

        def mean(values: jax.Array) -> jax.Array:
            if keep is None:
                return jnp.mean(values, axis=-1, keepdims=True)
            weights = keep.astype(wide.dtype)
            return jnp.sum(values * weights, axis=-1, keepdims=True) / jnp.sum(weights)

        if self.config.norm == "rmsnorm":
            # D over the denominator is 1 unless a growth has set it.
            square = mean(jnp.square(wide)) * (x.shape[-1] / (self.config.norm_denominator or x.shape[-1]))
            out = wide * jax.lax.rsqrt(square + self.config.norm_epsilon)
        else:
            centred = wide - mean(wide)
            out = centred * jax.lax.rsqrt(mean(jnp.square(centred)) + self.config.norm_epsilon)
        out = out * row["scale"].astype(wide.dtype)
        if "bias" in row:
            out = out + row["bias"].astype(wide.dtype)
        return (out if keep is None else out * keep.astype(wide.dtype)).astype(x.dtype)
