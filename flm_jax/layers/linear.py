"""A matrix, with or without bias, over any number of input and output axes."""

import math

import jax
import jax.numpy as jnp

from flm_jax.config import at_least_float32
from flm_jax.layers.product import product
from flm_jax.layers.remat import LINEAR, named
from flm_jax.partitioning import axis_size, platform


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, num_inputs: int = 1) -> jax.Array:
    """Sums `x` `[B, L, *inputs]` times `kernel` `[*inputs, *outputs]` over the inputs, plus `bias` `[*outputs]`.

    Args:
        x: `[B, L, *inputs]`; how its entries are shaped behind length is free.
        kernel: Cast to the dtype of `x`; its gradient is summed in at least float32, and not rounded to that of `x`.
        bias: Added in at least float32; None adds nothing.
        num_inputs: How many of the kernel's axes are summed over.

    Returns:
        `[B, L, *outputs]`, in the dtype of `x`.
    """
    rows, outputs = x.shape[:2], kernel.shape[num_inputs:]
    # The axis that is split over devices is outermost, of heads too, so that flattening keeps the sharding.
    matrix = kernel.reshape(math.prod(kernel.shape[:num_inputs]), -1)
    flat = None if bias is None else bias.reshape(-1)
    out = named(_affine(x.reshape(*rows, -1), matrix, flat), LINEAR)
    return out.reshape(*rows, *outputs)


def _multiplied(x: jax.Array, matrix: jax.Array, bias: jax.Array | None) -> jax.Array:
    """`x` `[B, L, I]` times `matrix` `[I, O]` plus `bias` `[O]`."""
    out = _product(x, matrix.astype(x.dtype))
    if bias is None:
        return out.astype(x.dtype)
    wide = at_least_float32(x.dtype)
    return (out.astype(wide) + bias.astype(wide)).astype(x.dtype)


def _forward(
    x: jax.Array, matrix: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array | None]]:
    return _multiplied(x, matrix, bias), (x, matrix, bias)


def _backward(
    saved: tuple[jax.Array, jax.Array, jax.Array | None], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, matrix, bias = saved
    by_x = _product(gradient, matrix.astype(x.dtype).T).astype(x.dtype)
    left, right = as_rows(x), as_rows(gradient)
    by_matrix = product("ti,to->io" if left.ndim == 2 else "bli,blo->io", left, right)
    by_bias = None if bias is None else sum_of_rows(gradient).astype(bias.dtype)
    return by_x, by_matrix.astype(matrix.dtype), by_bias


_affine = jax.custom_vjp(_multiplied)
_affine.defvjp(_forward, _backward)


def as_rows(values: jax.Array) -> jax.Array:
    """`[B, L, X]` as a matrix of B L rows, over which XLA for CPUs sums twice as fast.

    As it is where devices split the length as well as the batch: rows of one matrix cannot be split by both.
    """
    if axis_size("sequence") * axis_size("tensor") > 1:
        return values
    return values.reshape(-1, values.shape[-1])


def sum_of_rows(values: jax.Array) -> jax.Array:
    """`[B, L, X]` summed to `[X]`, in at least float32."""
    rows = as_rows(values)
    return jnp.sum(rows, axis=tuple(range(rows.ndim - 1)), dtype=at_least_float32(values.dtype))


def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    """A matmul, in the dtype in which the device gives out its sums soonest.

    A device adds up in at least float32. On accelerators, to give the sums out so would double what tensor parallel
    devices exchange: there they are rounded to the operands' dtype first.
    """
    return product("bli,io->blo", one, other) if platform() == "cpu" else one @ other
