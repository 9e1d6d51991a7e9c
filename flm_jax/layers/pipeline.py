"""Pipeline stages: each group of devices holds some of the layers, and microbatches go from group to group.

GPipe's schedule (arXiv 1811.06965): with S stages and M microbatches a pass takes M + S - 1 ticks, of which each stage
works in M, so (S - 1) / (M + S - 1) of the time is idle. The backward pass is the forward pass reversed, by automatic
differentiation. Two stages, three microbatches a, b, c:

    tick       0  1  2  3
    stage 0    a  b  c  -
    stage 1    -  a  b  c
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flm_jax.partitioning import axis_size

STAGE = "stage"
Rows = TypeVar("Rows")  # a tree of arrays whose leading axis is the batch


def pipelined(
    run_layers: Callable[[Any, Rows], Rows], layers: Any, rows: Rows, num_microbatches: int
) -> Rows:
    """All layers over all rows, the layers split over the mesh axis `stage`, the rows into microbatches.

    Row i goes with the rows whose index has the same remainder by the number of microbatches, so that each microbatch
    lies on all devices of a stage as the batch does.

    Args:
        run_layers: Maps the parameters of a stage's layers, `[layers / stages, ...]` each, and a microbatch's rows to
            rows.
        layers: The parameters of all layers, `[layers, ...]` each.
        rows: What goes through the layers, and what each of them looks at besides; `[batch, ...]` each.
        num_microbatches: A divisor of the batch.

    Returns:
        What comes out of the last layer, `[batch, ...]` each.
    """
    num_stages = axis_size(STAGE)
    stages = jax.tree.map(lambda leaf: leaf.reshape(num_stages, -1, *leaf.shape[1:]), layers)
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(-1, num_microbatches, *leaf.shape[1:]).swapaxes(0, 1), rows
    )

    def enter(before: Rows, index: jax.Array | int) -> Rows:
        """What the stages work on in a tick: each on what the one before it has made, the first on a microbatch."""
        last = num_microbatches - 1  # once more, where none is left: what becomes of it is not looked at
        new = jax.tree.map(
            lambda part: jax.lax.dynamic_index_in_dim(part, jnp.minimum(index, last), keepdims=False), parts
        )
        return jax.tree.map(lambda leaf, first: _moved_on(leaf).at[0].set(first), before, new)

    def tick(before: Rows, index: jax.Array) -> tuple[Rows, Rows]:
        after = jax.vmap(run_layers, spmd_axis_name=STAGE)(stages, enter(before, index))
        return after, jax.tree.map(lambda leaf: leaf[-1], after)

    nothing = jax.tree.map(lambda part: jnp.zeros((num_stages, *part.shape[1:]), part.dtype), parts)
    _, done = jax.lax.scan(tick, nothing, jnp.arange(num_microbatches + num_stages - 1))
    return jax.tree.map(lambda leaf: leaf[num_stages - 1 :].swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), done)


def _moved_on(leaf: jax.Array) -> jax.Array:
    """`[stages, ...]` with each stage's entry at the next one: a collective permute."""
    steps = [(stage, stage + 1) for stage in range(len(leaf) - 1)]
    spec = PartitionSpec(STAGE)
    return jax.shard_map(
        lambda own: jax.lax.ppermute(own, STAGE, steps), in_specs=spec, out_specs=spec, axis_names={STAGE}
    )(leaf)
