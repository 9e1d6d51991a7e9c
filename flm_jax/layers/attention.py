"""Multi-head causal attention with xPos, segment masks and a key-value cache; a dense reference."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig, at_least_float32
from flm_jax.layers.linear import linear
from flm_jax.layers.xpos import Rotation, rotate
from flm_jax.parameters import ATTENTION, declare
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

    Args:
        query: `[B, L, H, K]`.
        key: `[B, S, H, K]`.
        value: `[B, S, H, K]`.
        mask: `[B or 1, 1, L, S]`, True where a query may look; every query must see one key.

    Returns:
        `[B, L, H, K]` in the query's dtype.
    """
    wide = at_least_float32(query.dtype)
    # Heads before length: a batch of plain matmuls, where XLA for CPUs is three times faster.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = jnp.einsum("BHLK,BHSK->BHLS", query, key, preferred_element_type=wide)
    scores = jnp.where(mask, scores * query.shape[-1] ** -0.5, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("BHLS,BHSK->BHLK", weights, value).swapaxes(1, 2)


class Attention(nn.Module):
    """Attention of all heads; `num_heads * head_dim` need not be `d_model`."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        mask: jax.Array | None,
        cache_index: jax.Array | None,
        keep: jax.Array | None = None,
    ) -> jax.Array:
        """Maps `x` `[B, L, D]` to `[B, L, D]`.

        Args:
            x: Normalised residual stream.
            rotation: xPos tables of the positions of `x`.
            mask: `[B or 1, 1, L, L]`, True where a query may look; None with a cache, which has its own.
            cache_index: `[B]`, where in each example's cache the L tokens go; None: no cache.
            keep: `[H]`, multiplies what each head has mixed (`GrowthMask.heads`).
        """
        weight = {
            name: value.astype(x.dtype) for name, value in declare(self, ATTENTION, self.config).items()
        }

        def project(name: str) -> jax.Array:
            heads = linear(x, weight[f"{name}_kernel"], weight[f"{name}_bias"])
            return constrain(heads, "batch", "length", "heads", "kv")

        query = rotate(project("query"), rotation.query_cos, rotation.query_sin)
        key = rotate(project("key"), rotation.key_cos, rotation.key_sin)
        value = project("value")
        if cache_index is not None:
            key = self._append("cached_key", key, cache_index)
            value = self._append("cached_value", value, cache_index)
            mask = cache_mask(cache_index, x.shape[1], key.shape[1])
        assert mask is not None, "without a cache the mask comes from the caller"
        mixed = attend(query, key, value, mask)
        if keep is not None:
            mixed = mixed * keep.astype(mixed.dtype)[:, None]
        return linear(mixed, weight["out_kernel"], weight["out_bias"], num_inputs=2)

    def _append(self, name: str, new: jax.Array, cache_index: jax.Array) -> jax.Array:
        """Writes `new` `[B, L, H, K]` at each example's `cache_index`; the whole cache `[B, S, H, K]`.

        The call that initialises the collection `cache`, on tokens of the wanted length, only makes room.
        """
        room_exists = self.has_variable("cache", name)
        cache = self.variable("cache", name, jnp.zeros_like, new)
        if room_exists:
            cache.value = jax.vmap(
                lambda old, part, index: jax.lax.dynamic_update_slice_in_dim(old, part, index, axis=0)
            )(cache.value, new, cache_index)
        return cache.value
