"""Causal attention, multi-head or grouped-query, with xPos, segment masks and a key-value cache; a dense reference."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig, at_least_float32
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.layers.linear import linear
from flm_jax.layers.xpos import Rotation, rotate
from flm_jax.parameters import attention, declare
from flm_jax.partitioning import constrain


def causal_mask(length: int, segment_ids: jax.Array | None) -> jax.Array:
    """True where a query may look at a key: not later, and in the same document.

    Args:
        length: Number of positions L.
        segment_ids: `[B, L]`, equal within a document; None when every row is one document.

    Returns:
        `[B or 1, 1, L, L]`, queries before keys. Segment ids (1, 1, 2) give, for its one head,
        ((1, 0, 0), (1, 1, 0), (0, 0, 1)).
    """
    mask = jnp.tril(jnp.ones((length, length), dtype=bool))[None, None]
    if segment_ids is None:
        return mask
    return mask & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def cache_mask(cache_index: jax.Array, length: int, cache_length: int) -> jax.Array:
    """True where one of `length` new tokens, written from `cache_index` `[B]` on, may look: `[B, 1, length, S]`."""
    query_positions = cache_index[:, None] + jnp.arange(length)
    return jnp.arange(cache_length)[None, None, None, :] <= query_positions[:, None, :, None]


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(K)) v with the softmax in at least float32.

    Query head h looks at key-value head h // R, where H = G R.

    Args:
        query: `[B, L, H, K]`.
        key: `[B, S, G, K]`.
        value: `[B, S, G, K]`.
        mask: `[B or 1, 1, L, S]`, True where a query may look; every query must see one key.

    Returns:
        `[B, L, H, K]` in the query's dtype.
    """
    wide = at_least_float32(query.dtype)
    # Heads before length: a batch of plain matmuls, where XLA for CPUs is three times faster. For the same reason
    # the query heads of one key-value head are R times as many rows of its matmul.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    rows = query.reshape(*key.shape[:2], -1, query.shape[-1])
    mask = jnp.tile(mask, (1, 1, query.shape[1] // key.shape[1], 1))
    scores = jnp.einsum("BGLK,BGSK->BGLS", rows, key, preferred_element_type=wide)
    scores = jnp.where(mask, scores * query.shape[-1] ** -0.5, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("BGLS,BGSK->BGLK", weights, value).reshape(query.shape).swapaxes(1, 2)


class Attention(nn.Module):
    """Attention of all heads, H = G R; `num_heads * head_dim` need not be `d_model`."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        mask: jax.Array | None,
        cache_index: jax.Array | None,
        growth: GrowthMask,
    ) -> jax.Array:
        """Maps `x` `[B, L, D]` to `[B, L, D]`.

        Args:
            x: Normalised residual stream.
            rotation: xPos tables of the positions of `x`.
            mask: `[B or 1, 1, L, L]`, True where a query may look; None with a cache, which has its own.
            cache_index: `[B]`, where in each example's cache the L tokens go; None: no cache.
            growth: Its `heads` and `queries` multiply what each head has mixed.
        """
        rows = attention(self.config)
        weight = {name: value.astype(x.dtype) for name, value in declare(self, rows, self.config).items()}

        def project(name: str) -> jax.Array:
            heads = linear(x, weight[f"{name}_kernel"], weight.get(f"{name}_bias"))
            return constrain(heads, "batch", "length", *rows[f"{name}_kernel"].axes[1:])

        query = project("query").reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
        query = rotate(query, rotation.query_cos, rotation.query_sin)
        key = rotate(project("key"), rotation.key_cos, rotation.key_sin)
        value = project("value")
        if cache_index is not None:
            key = self._append("cached_key", key, cache_index)
            value = self._append("cached_value", value, cache_index)
            mask = cache_mask(cache_index, x.shape[1], key.shape[1])
        assert mask is not None, "without a cache the mask comes from the caller"
        mixed = attend(query, key, value, mask)
        if growth.heads is not None:
            keep = jnp.repeat(growth.heads, self.config.size("queries"))
            mixed = mixed * keep.astype(mixed.dtype)[:, None]
        if growth.queries is not None:
            keep = jnp.tile(growth.queries, self.config.size("heads"))
            mixed = mixed * keep.astype(mixed.dtype)[:, None]
        out = weight["out_kernel"]
        return linear(mixed, out, weight.get("out_bias"), num_inputs=out.ndim - 1)

    def _append(self, name: str, new: jax.Array, cache_index: jax.Array) -> jax.Array:
        """Writes `new` `[B, L, G, K]` at each example's `cache_index`; the whole cache `[B, S, G, K]`.

        The call that initialises the collection `cache`, on tokens of the wanted length, only makes room.
        """
        room_exists = self.has_variable("cache", name)
        cache = self.variable("cache", name, jnp.zeros_like, new)
        if room_exists:
            cache.value = jax.vmap(
                lambda old, part, index: jax.lax.dynamic_update_slice_in_dim(old, part, index, axis=0)
            )(cache.value, new, cache_index)
        return cache.value
