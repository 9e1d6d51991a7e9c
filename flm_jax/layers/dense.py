"""Dense attention with its own backward pass: the reference for the kernels, and what runs on CPUs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.config import at_least_float32, causal_blocks
from flm_jax.layers.product import product
from flm_jax.layers.remat import ATTENTION, named
from flm_jax.partitioning import axis_size


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, causal: bool = False
) -> jax.Array:
    """softmax(q k / sqrt(K)) v with the softmax in at least float32.

    Query head h looks at key-value head h // R, where H = G R.

    Args:
        query: `[B, L, H, K]`.
        key: `[B, S, G, K]`.
        value: `[B, S, G, K]`.
        mask: `[B or 1, 1, L, S]`, True where a query may look; every query must see one key.
        causal: Says that S = L and that the mask hides all later keys: most of them need no looking at then.

    Returns:
        `[B, L, H, K]` in the query's dtype.
    """
    batch, length, heads, _ = query.shape
    if axis_size("sequence") > 1:  # rows of several heads in one matrix could not be split by length
        key, value = (jnp.repeat(x, heads // key.shape[2], axis=2) for x in (key, value))
    groups = key.shape[2]
    # Heads before length: a batch of plain matmuls, where XLA for CPUs is three times faster.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    query = query.reshape(batch, groups, heads // groups, *query.shape[2:])
    blocks = causal_blocks(length) if causal and axis_size("sequence") == 1 else 1
    mixed = _mix(blocks, query, key, value, mask)
    return mixed.reshape(batch, heads, length, -1).swapaxes(1, 2)


class _Block(NamedTuple):
    """Some of the queries and the keys that they may see."""

    queries: slice
    keys: slice

    def rows(self, queries: jax.Array) -> jax.Array:
        """Of `[B, G, R, L, K]`, as rows of one matrix for each key-value head: `[B, G, R l, K]`."""
        part = queries[:, :, :, self.queries]
        return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _blocks(count: int, length: int, keys: int) -> list[_Block]:
    """Of 4 queries and keys in two blocks: queries 0 and 1 with keys 0 and 1, queries 2 and 3 with all."""
    size, seen = length // count, keys // count
    return [_Block(slice(i * size, (i + 1) * size), slice((i + 1) * seen)) for i in range(count)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(count: int, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` in so many blocks, heads first: `[B, G, R, L, K]`, `[B, G, S, K]` twice."""
    return _mix_forward(count, query, key, value, mask)[0]


def _mix_forward(
    count: int, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    batch, groups, repeats, length, _ = query.shape
    kept, mixed = [], []
    for block in _blocks(count, length, key.shape[2]):
        seen = jnp.tile(mask[:, :, block.queries, block.keys], (1, 1, repeats, 1))
        found = _look(block.rows(query), key[:, :, block.keys], value[:, :, block.keys], seen)
        kept.append(found[1:])
        mixed.append(found[0].reshape(batch, groups, repeats, length // count, -1))
    return jnp.concatenate(mixed, axis=3), (query, key, value, kept)


def _mix_backward(
    count: int, saved: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, kept = saved
    wide = at_least_float32(query.dtype)
    by_query, by_key, by_value = [], jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide)
    for block, found in zip(_blocks(count, query.shape[3], key.shape[2]), kept, strict=True):
        seen = key[:, :, block.keys], value[:, :, block.keys]
        rows, *others = _look_back(block.rows(query), *seen, found, block.rows(gradient))
        by_query.append(rows.reshape(*query.shape[:3], -1, query.shape[-1]))
        by_key, by_value = (
            total.at[:, :, block.keys].add(part)
            for total, part in zip((by_key, by_value), others, strict=True)
        )
    return jnp.concatenate(by_query, axis=3), by_key.astype(key.dtype), by_value.astype(value.dtype), None


_mix.defvjp(_mix_forward, _mix_backward)


def _look(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
    """What `[B, G, l, K]` mix of `[B, G, s, K]`, the softmax before it is divided by its sum, and one over that."""
    scores = product("BGLK,BGSK->BGLS", query, key)
    scores = jnp.where(mask, scores * query.shape[-1] ** -0.5, jnp.finfo(scores.dtype).min)
    powers = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    inverse = 1 / jnp.sum(powers, axis=-1, keepdims=True)
    powers = powers.astype(value.dtype)
    # Dividing what is mixed, not the weights: K numbers a query in place of S.
    mixed = (product("BGLS,BGSK->BGLK", powers, value) * inverse).astype(value.dtype)
    return named(mixed, ATTENTION), named(powers, ATTENTION), named(inverse, ATTENTION)


def _look_back(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    saved: tuple[jax.Array, ...],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `_look`, those of keys and values in at least float32.

    Differentiated by JAX the same products would have a float32 side where everything is bfloat16, which is slow.
    """
    powers, inverse = saved
    gradient = (gradient.astype(inverse.dtype) * inverse).astype(gradient.dtype)
    by_weights = product("BGLK,BGSK->BGLS", gradient, value)
    wide = powers.astype(by_weights.dtype)
    # Of the very numbers that it is subtracted from: from the rounded result of the forward pass, as flash attention
    # has it, in bfloat16 what all values have in common would not cancel.
    common = jnp.sum(wide * by_weights, axis=-1, keepdims=True) / jnp.sum(wide, axis=-1, keepdims=True)
    by_scores = (wide * (by_weights - common)).astype(query.dtype)
    scale = query.shape[-1] ** -0.5
    return (
        (product("BGLS,BGSK->BGLK", by_scores, key) * scale).astype(query.dtype),
        product("BGLS,BGLK->BGSK", by_scores, query) * scale,
        product("BGLS,BGLK->BGSK", powers, gradient),
    )
