"""LayerNorm and RMSNorm, statistics in at least float32."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig, at_least_float32
from flm_jax.layers.linear import sum_of_rows
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
        return _normalised(self.config, x, row["scale"], row.get("bias"), keep)


# Computed again in the backward pass, whatever `remat` says: cheaper than what it would keep.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def _normalised(
    config: ModelConfig, x: jax.Array, scale: jax.Array, bias: jax.Array | None, keep: jax.Array | None
) -> jax.Array:
    wide = x.astype(at_least_float32(x.dtype))

    def mean(values: jax.Array) -> jax.Array:
        if keep is None:
            return jnp.mean(values, axis=-1, keepdims=True)
        weights = keep.astype(wide.dtype)
        return jnp.sum(values * weights, axis=-1, keepdims=True) / jnp.sum(weights)

    if config.norm == "rmsnorm":
        # D over the denominator is 1 unless a growth has set it.
        square = mean(jnp.square(wide)) * (x.shape[-1] / (config.norm_denominator or x.shape[-1]))
        out = wide * jax.lax.rsqrt(square + config.norm_epsilon)
    else:
        centred = wide - mean(wide)
        out = centred * jax.lax.rsqrt(mean(jnp.square(centred)) + config.norm_epsilon)
    out = _scaled(out, scale, bias)
    return (out if keep is None else out * keep.astype(wide.dtype)).astype(x.dtype)


def _affine(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """`x` `[B, L, D]` times `scale` plus `bias`."""
    out = x * scale.astype(x.dtype)
    return out if bias is None else out + bias.astype(x.dtype)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, tuple[Any, ...]]:
    return _affine(x, scale, bias), (x, scale, bias)


def _backward(saved: tuple[Any, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, scale, bias = saved
    by_bias = None if bias is None else sum_of_rows(gradient).astype(bias.dtype)
    return gradient * scale.astype(x.dtype), sum_of_rows(gradient * x).astype(scale.dtype), by_bias


_scaled = jax.custom_vjp(_affine)
_scaled.defvjp(_forward, _backward)
