"""Matmuls whose sums are given out in at least float32."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from flm_jax.config import at_least_float32
from flm_jax.partitioning import platform


def product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """`jnp.einsum(equation, one, other)`, in at least float32.

    On CPUs bfloat16 operands become float32 before, in which their products are exact: XLA has faster code for that
    (docs/speed.md), but for rows times a matrix on a CPU that has instructions for bfloat16.
    """
    wide = at_least_float32(one.dtype)
    if platform() == "cpu" and not (_is_rows_times_matrix(equation) and cpu_multiplies_bfloat16()):
        one, other = one.astype(wide), other.astype(wide)
    return jnp.einsum(equation, one, other, preferred_element_type=wide)


def _is_rows_times_matrix(equation: str) -> bool:
    """Whether the first operand's last axis is summed over, and the second is a matrix; so `ab,bc->ac`, `ab,cb->ac`."""
    one, other, out = equation.replace("->", ",").split(",")
    return len(other) == 2 and one[-1] in other and one[-1] not in out


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16, as far as is known."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux
        return False
