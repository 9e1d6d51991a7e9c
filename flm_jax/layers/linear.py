"""A matrix, with or without bias, over any number of input and output axes."""

import math

import jax


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, num_inputs: int = 1) -> jax.Array:
    """Sums `x` `[B, L, *inputs]` times `kernel` `[*inputs, *outputs]` over the inputs, plus `bias` `[*outputs]`.

    Written as one matmul of two matrices, because the gradient of an einsum over separate batch and length axes
    takes twice as long on CPUs. Batch is outermost, and so are heads, so that flattening keeps their sharding.

    Args:
        x: `[B, L, *inputs]`; how its entries are shaped behind length is free.
        kernel: In the dtype of `x`.
        bias: In the dtype of `x`; None adds nothing.
        num_inputs: How many of the kernel's axes are summed over.

    Returns:
        `[B, L, *outputs]`.
    """
    inputs = math.prod(kernel.shape[:num_inputs])
    flat = x.reshape(-1, inputs) @ kernel.reshape(inputs, -1)
    outputs = flat.reshape(*x.shape[:2], *kernel.shape[num_inputs:])
    return outputs if bias is None else outputs + bias
