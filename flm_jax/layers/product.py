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
    (docs/speed.md), but for rows times a matrix on a CPU that is made for bfloat16.
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
    """Whether this machine's CPU multiplies bfloat16 at twice the rate of float32.

    AMD's do since Zen 4; of Intel's with the same instructions one was measured at half of float32's.
    """
    try:
        about = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux
        return False
    return "AuthenticAMD" in about and "avx512_bf16" in about
