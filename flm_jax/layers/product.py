"""Matmuls whose sums are given out in at least float32."""

import jax
import jax.numpy as jnp

from flm_jax.config import at_least_float32
from flm_jax.partitioning import platform


def product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """`jnp.einsum(equation, one, other)`, in at least float32.

    XLA for CPUs multiplies bfloat16 more slowly than float32 (docs/speed.md), in which products of bfloat16 are exact:
    there the operands are float32 before.
    """
    wide = at_least_float32(one.dtype)
    if platform() == "cpu":
        one, other = one.astype(wide), other.astype(wide)
    return jnp.einsum(equation, one, other, preferred_element_type=wide)
