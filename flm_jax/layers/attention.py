"""Causal attention, multi-head or grouped-query, with xPos, documents kept apart and a key-value cache.

`attend` is the dense reference; `flash.py` has the kernels that take its place on TPUs and GPUs.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig
from flm_jax.layers import flash
from flm_jax.layers.dense import attend
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.layers.linear import linear
from flm_jax.layers.xpos import Rotation, rotate
from flm_jax.parameters import attention, declare
from flm_jax.partitioning import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visible:
    """Which keys a query may look at, as the backend wants it: the mask, or the segment ids `[B, L]`."""

    backend: str = dataclasses.field(metadata={"static": True})
    mask: jax.Array | None = None  # `causal_mask`
    segment_ids: jax.Array | None = None


def choose(config: ModelConfig, length: int, platform: str) -> str:
    """The backend for sequences of this length: `dense`, `splash` or `triton`.

    Args:
        config: Its `attention` names one, or is `auto`: the kernel of the devices where that can take the model, and
            dense where not.
        length: Of a sequence.
        platform: What JAX calls the devices.

    Raises:
        ValueError: a backend that is asked for cannot take the model, the length or the devices.
    """
    backend = config.attention
    if backend == "dense":
        return backend
    if backend == "auto":
        backend = {"tpu": "splash", "gpu": "triton"}.get(platform, "dense")
        # Under t5x's partitioner: it would give the whole batch to a kernel on every device.
        unknown_mesh = jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1
        if backend == "dense" or unknown_mesh:
            return "dense"
        refused = flash.refusal(backend, platform, config.dtype, length, config.head_dim)
        return "dense" if refused else backend
    if reason := flash.refusal(backend, platform, config.dtype, length, config.head_dim):
        raise ValueError(f"{reason}; or bind ModelConfig.attention to 'dense'")
    return backend


def see(backend: str, shape: tuple[int, ...], segment_ids: jax.Array | None) -> Visible:
    """What the queries of tokens `[B, L]` may look at.

    Args:
        backend: As `choose` gives it.
        shape: (B, L).
        segment_ids: `[B, L]`, equal within a document; None when every row is one document.
    """
    if backend == "dense":
        return Visible("dense", mask=causal_mask(shape[1], segment_ids))
    return Visible(backend, segment_ids=jnp.ones(shape, jnp.int32) if segment_ids is None else segment_ids)


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


class Attention(nn.Module):
    """Attention of all heads, H = G R; `num_heads * head_dim` need not be `d_model`."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        visible: Visible | None,
        cache_index: jax.Array | None,
        growth: GrowthMask,
    ) -> jax.Array:
        """Maps `x` `[B, L, D]` to `[B, L, D]`.

        Args:
            x: Normalised residual stream.
            rotation: xPos tables of the positions of `x`.
            visible: Where queries may look; None with a cache, which has its own mask.
            cache_index: `[B]`, where in each example's cache the L tokens go; None: no cache.
            growth: Its `heads` and `queries` multiply what each head has mixed.
        """
        rows = attention(self.config)
        weight = declare(self, rows, self.config)

        def project(name: str, length: str) -> jax.Array:
            heads = linear(x, weight[f"{name}_kernel"], weight.get(f"{name}_bias"))
            return constrain(heads, "batch", length, *rows[f"{name}_kernel"].axes[1:])

        query = project("query", "length").reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
        query = rotate(query, rotation.query_cos, rotation.query_sin)
        key = rotate(project("key", "keys"), rotation.key_cos, rotation.key_sin)
        value = project("value", "keys")
        if cache_index is not None:
            key = self._append("cached_key", key, cache_index)
            value = self._append("cached_value", value, cache_index)
            visible = Visible("dense", cache_mask(cache_index, x.shape[1], key.shape[1]))
        assert visible is not None, "without a cache the caller says where to look"
        if visible.mask is not None:
            mixed = attend(query, key, value, visible.mask, causal=cache_index is None)
        else:
            assert visible.segment_ids is not None
            mixed = flash.flash(visible.backend, query, key, value, visible.segment_ids)
        # Or the backward pass would re-lay scores and gather the kernel, its gradient being split by length.
        mixed = constrain(mixed, "batch", "length", "heads", "kv")
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
