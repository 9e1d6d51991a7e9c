"""xPos: rotary positions with a decay that depends on distance (Sun et al. 2022, arXiv 2212.10554, section 3.2).

With pairs i of a head's coordinates, theta_i = theta^(-2i/K) and zeta_i = (2i/K + gamma) / (1 + gamma),
the query at position n becomes R(n theta) q zeta^(n/B) and the key at m becomes R(m theta) k zeta^(-m/B),
so that a score depends on n - m only. The scale with base B None is left out: plain RoPE.

A pair is (i, i + K/2), the half-split layout of the released FLM-101B code. Growth adds whole heads, so
the layout of a head never changes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig, at_least_float32


class Rotation(NamedTuple):
    """Tables for the positions of one batch, shared by all layers; each `[B, L, 1, K/2]`."""

    query_cos: jax.Array
    query_sin: jax.Array
    key_cos: jax.Array
    key_sin: jax.Array


def rotation(positions: jax.Array, config: ModelConfig) -> Rotation:
    """Tables of xPos for integer `positions` `[B, L]`, in at least float32.

    Positions enter the scale as n - max_length // 2: scores do not change, and the exponents stay small.
    """
    dtype = at_least_float32(config.dtype)
    pairs = jnp.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim
    angles = positions[..., None, None].astype(dtype) * config.xpos_theta**-pairs
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if config.xpos_scale_base is None:
        return Rotation(cos, sin, cos, sin)
    zeta = (pairs + config.xpos_gamma) / (1 + config.xpos_gamma)
    centred = (positions - config.max_length // 2)[..., None, None].astype(dtype)
    scale = zeta ** (centred / config.xpos_scale_base)
    return Rotation(cos * scale, sin * scale, cos / scale, sin / scale)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + K/2) of `x` `[B, L, H, K]`; computed in the tables' dtype, returned in x's."""
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
