"""Pipeline stages: each group of devices holds some of the layers, and microbatches go from group to group.

GPipe's schedule (arXiv 1811.06965): with S stages and M microbatches a pass takes M + S - 1 ticks, of which each stage
works in M, so (S - 1) / (M + S - 1) of the time is idle. The backward pass is the forward pass reversed. Two stages,
three microbatches a, b, c:

    tick       0  1  2  3
    stage 0    a  b  c  -
    stage 1    -  a  b  c

Automatic differentiation of it would add up the gradients of all ticks from whole sets of them, which is one set too
many for a large model, and would keep every layer's input at every tick. With `remat` `full` or `stage` the backward
pass is our own: it adds each layer's gradient to that layer's sum, and with `stage` it has kept a stage's inputs alone,
from which it computes those of the layers again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flm_jax.layers.remat import rematted
from flm_jax.parameters import LAYERS
from flm_jax.partitioning import axis_size, constrain

STAGE = "stage"
Tree = Any
# One layer: `layer(parameters, shared, x, beside) -> x`.
Layer = Callable[..., jax.Array]


class _Settings(NamedTuple):
    """What is known when the program is traced; compares by value."""

    layer: Layer
    num_microbatches: int
    remat: str


def pipelined(
    layer: Layer,
    layers: Tree,
    shared: Tree,
    x: jax.Array,
    beside: Tree,
    num_microbatches: int,
    remat: str,
) -> jax.Array:
    """All layers over all rows, the layers split over the mesh axis `stage`, the rows into microbatches.

    Row i goes with the rows whose index has the same remainder by the number of microbatches, so that each microbatch
    lies on all devices of a stage as the batch does.

    Args:
        layer: `layer(parameters, shared, x, beside)` gives the next layer's x. It closes over nothing that is traced.
        layers: The parameters of all layers, `[layers, ...]` each.
        shared: What all layers look at.
        x: What goes through them, `[batch, length, d_model]`.
        beside: What a layer looks at besides, of each row: integers, `[batch, length]` each.
        num_microbatches: A divisor of the batch.
        remat: One of `config.REMAT_POLICIES`.

    Returns:
        What comes out of the last layer, `[batch, length, d_model]`.
    """
    stages = jax.tree.map(lambda leaf: leaf.reshape(axis_size(STAGE), -1, *leaf.shape[1:]), layers)
    settings = _Settings(layer, num_microbatches, remat)
    run = _all_ticks if remat in ("full", "stage") else _forward_alone
    return run(settings, stages, shared, x, beside)


def _forward_alone(settings: _Settings, stages: Tree, shared: Tree, x: jax.Array, beside: Tree) -> jax.Array:
    return _forward(settings, stages, shared, x, beside)[0]


_all_ticks = jax.custom_vjp(_forward_alone, nondiff_argnums=(0,))


class _Kept(NamedTuple):
    """Of every tick, for the backward pass."""

    # What stages began with, `[ticks, stages, rows, ...]`; or their layers, `[ticks, stages, layers, rows, ...]`.
    x: jax.Array
    beside: Tree  # `[ticks, stages, rows, ...]`


def _forward(
    settings: _Settings, stages: Tree, shared: Tree, x: jax.Array, beside: Tree, keeps: bool = False
) -> tuple[jax.Array, _Kept | None]:
    num_stages, count = axis_size(STAGE), settings.num_microbatches
    x_parts = _constrained(_parts(x, count), None)
    parts = (x_parts, jax.tree.map(lambda leaf: _constrained(_parts(leaf, count), None), beside))

    def enter(before: Tree, index: jax.Array) -> Tree:
        """What the stages work on in a tick: each on what the one before it has made, the first on a microbatch."""
        last = count - 1  # once more, where none is left: what becomes of it is not looked at
        new = jax.tree.map(
            lambda part: jax.lax.dynamic_index_in_dim(part, jnp.minimum(index, last), keepdims=False), parts
        )
        return jax.tree.map(
            lambda leaf, first: _constrained(_with(_moved(leaf, 1), 0, first), LAYERS), before, new
        )

    def tick(before: Tree, index: jax.Array) -> tuple[Tree, Tree]:
        entered, here = enter(before, index)
        after, inputs = jax.vmap(
            functools.partial(_stage, settings), in_axes=(0, None, 0, 0), spmd_axis_name=STAGE
        )(stages, shared, entered, here)
        after = _constrained(after, LAYERS)
        kept = None
        if keeps:
            kept = _Kept(inputs if settings.remat == "full" else entered, here)
        return (after, here), (_constrained(after[-1]), kept)

    nothing = jax.tree.map(lambda part: jnp.zeros((num_stages, *part.shape[1:]), part.dtype), parts)
    _, (done, kept) = jax.lax.scan(tick, nothing, jnp.arange(count + num_stages - 1))
    done = _constrained(done[num_stages - 1 :], None)
    return _whole(done), kept


def _stage(
    settings: _Settings, layers: Tree, shared: Tree, x: jax.Array, beside: Tree
) -> tuple[jax.Array, jax.Array]:
    """A stage's layers, one after the other; what comes out, and what went into each."""

    def one(x: jax.Array, layer: Tree) -> tuple[jax.Array, jax.Array]:
        return settings.layer(layer, shared, x, beside), x

    if settings.remat not in ("full", "stage"):
        one = rematted(one, settings.remat)
    return jax.lax.scan(one, x, layers)


def _forward_for_backward(
    settings: _Settings, stages: Tree, shared: Tree, x: jax.Array, beside: Tree
) -> tuple[jax.Array, tuple[Tree, Tree, _Kept | None]]:
    out, kept = _forward(settings, stages, shared, x, beside, keeps=True)
    return out, (stages, shared, kept)


def _backward(
    settings: _Settings, saved: tuple[Tree, Tree, _Kept], gradient: jax.Array
) -> tuple[Tree, Tree, jax.Array, None]:
    stages, shared, kept = saved
    num_stages, count = axis_size(STAGE), settings.num_microbatches
    # Of what the last stage has given out, tick by tick; in the first ticks that was nothing.
    given = _constrained(_parts(gradient, count), None)
    given = jnp.concatenate([jnp.zeros((num_stages - 1, *given.shape[1:]), given.dtype), given])
    given = _constrained(given, None)

    def tick(carry: Tree, this: tuple[_Kept, jax.Array]) -> tuple[Tree, jax.Array]:
        by_entered, by_stages, by_shared = carry
        kept, by_last = this
        # What moves back to the last stage is nothing.
        by_after = _constrained(_with(_moved(by_entered, -1), num_stages - 1, by_last), LAYERS)
        by_entered, by_stages, by_shared_here = jax.vmap(
            functools.partial(_stage_backward, settings), in_axes=(0, None, 0, 0, 0), spmd_axis_name=STAGE
        )(stages, shared, kept, by_after, by_stages)
        by_entered = _constrained(by_entered, LAYERS)
        by_shared = jax.tree.map(lambda sum_, new: sum_ + new.sum(0), by_shared, by_shared_here)
        return (by_entered, by_stages, by_shared), _constrained(by_entered[0])

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    nothing = jnp.zeros((num_stages, *given.shape[1:]), given.dtype)
    (_, by_stages, by_shared), by_parts = jax.lax.scan(
        tick, (nothing, zeros(stages), zeros(shared)), (kept, given), reverse=True
    )
    return by_stages, by_shared, _whole(_constrained(by_parts[:count], None)), None


_all_ticks.defvjp(_forward_for_backward, _backward)


def _stage_backward(
    settings: _Settings, layers: Tree, shared: Tree, kept: _Kept, by_after: jax.Array, sums: Tree
) -> tuple[jax.Array, Tree, Tree]:
    """Gradients to what a stage began with, added to `sums` those to its layers, and those to what is shared."""
    inputs = kept.x
    if settings.remat == "stage":
        _, inputs = _stage(settings, layers, shared, kept.x, kept.beside)
    num_layers = len(inputs)

    def one(index: jax.Array, carry: Tree) -> Tree:
        by_out, sums, by_shared = carry
        at = num_layers - 1 - index

        def of(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False)

        _, pull = jax.vjp(
            lambda layer, shared, x: settings.layer(layer, shared, x, kept.beside),
            jax.tree.map(of, layers),
            shared,
            of(inputs),
        )
        by_layer, by_shared_here, by_x = pull(by_out)
        sums = jax.tree.map(
            lambda sum_, new: jax.lax.dynamic_update_index_in_dim(sum_, of(sum_) + new, at, 0), sums, by_layer
        )
        return by_x, sums, jax.tree.map(jnp.add, by_shared, by_shared_here)

    return jax.lax.fori_loop(0, num_layers, one, (by_after, sums, jax.tree.map(jnp.zeros_like, shared)))


def _parts(leaf: jax.Array, count: int) -> jax.Array:
    """`[batch, ...]` as `[count, rows, ...]`."""
    return leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)


def _whole(parts: jax.Array) -> jax.Array:
    """The inverse of `_parts`."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def _constrained(leaf: jax.Array, *outer: str | None) -> jax.Array:
    """Rows laid out as a batch is, behind `outer` axes; left alone the partitioner would gather them."""
    rows = leaf.ndim - len(outer)
    return constrain(leaf, *outer, *(("batch", "residual", "embed") if rows == 3 else ("batch", "length")))


def _with(leaf: jax.Array, stage: int, here: jax.Array) -> jax.Array:
    """`[stages, ...]` with `here` in place of one stage's entry: by `where`, which every device does for itself."""
    stages = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, 0)
    return jnp.where(stages == stage, here[None], leaf)


def _moved(leaf: jax.Array, by: int) -> jax.Array:
    """`[stages, ...]` with each stage's entry at the next one, or the one before: a collective permute."""
    stages = range(len(leaf))
    steps = [(stage, stage + by) for stage in stages if stage + by in stages]
    spec = PartitionSpec(STAGE)
    return jax.shard_map(
        lambda own: jax.lax.ppermute(own, STAGE, steps), in_specs=spec, out_specs=spec, axis_names={STAGE}
    )(leaf)
