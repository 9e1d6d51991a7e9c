"""Flash attention (arXiv 2205.14135), whose scores never lie in memory: JAX's own kernels for TPUs and GPUs.

`splash` is the TPU kernel, which skips the blocks above the diagonal; `triton` the one for NVIDIA GPUs. Both are
written in Pallas and can be interpreted without a chip, which is how they are tested. Under a mesh each device runs the
kernel on its rows and heads.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flm_jax.layers.remat import ATTENTION
from flm_jax.partitioning import axis_size, mesh_spec

Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

_SPLASH_LANES = 128  # the TPU's vector registers: a block is a multiple of them
_LARGEST_BLOCK = {"splash": 512, "triton": 64}
_SMALLEST_BLOCK = {"splash": _SPLASH_LANES, "triton": 16}


def refusal(backend: str, platform: str, dtype: str, length: int, head_dim: int) -> str | None:
    """Why a kernel cannot take what it would be given, with what to bind instead; None if it can.

    Args:
        backend: `splash` or `triton`.
        platform: What JAX calls the devices: `cpu`, `gpu` or `tpu`.
        dtype: Of queries, keys and values.
        length: Of a sequence.
        head_dim: Entries of a head.
    """
    wanted = {"splash": "tpu", "triton": "gpu"}[backend]
    if platform != wanted:
        return f"ModelConfig.attention = {backend!r} runs on a {wanted}, found a {platform}"
    return unfit(backend, dtype, length, head_dim)


def unfit(backend: str, dtype: str, length: int, head_dim: int) -> str | None:
    """`refusal` on the right kind of device."""
    if dtype not in ("bfloat16", "float32"):
        return f"ModelConfig.attention = {backend!r} takes bfloat16 or float32, found ModelConfig.dtype = {dtype!r}"
    smallest = _SMALLEST_BLOCK[backend]
    if length % smallest:
        return (
            f"ModelConfig.attention = {backend!r} takes sequences of a multiple of {smallest} tokens, found {length} "
            "(TASK_FEATURE_LENGTHS)"
        )
    least = 16 if backend == "triton" else 8
    if head_dim % 8 or head_dim < least:
        return (
            f"ModelConfig.attention = {backend!r} takes heads of a multiple of 8 entries, at least {least}; found "
            f"ModelConfig.head_dim = {head_dim}"
        )
    if axis_size("sequence") > 1:
        return (
            f"ModelConfig.attention = {backend!r} sees whole sequences, found MeshShape.sequence = "
            f"{axis_size('sequence')}; bind it to 1 (MeshShape.tensor splits the residual stream by length, too)"
        )
    return None


def flash(
    backend: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k / sqrt(K)) v where a key is not later than its query and of the same document.

    Args:
        backend: `splash` or `triton`.
        query: `[B, L, H, K]`.
        key: `[B, L, G, K]`; query head h looks at key-value head h // (H / G).
        value: `[B, L, G, K]`.
        segment_ids: `[B, L]`, equal within a document.
        interpret: Without a chip, slowly.

    Returns:
        `[B, L, H, K]` in the query's dtype.

    Raises:
        ValueError: lengths or heads that the kernel cannot take, or a mesh that splits the sequence.
    """
    if reason := unfit(backend, str(query.dtype), query.shape[1], query.shape[3]):
        raise ValueError(reason)
    kernel = functools.partial({"splash": _splash, "triton": _triton}[backend], interpret=interpret)
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(query, key, value, segment_ids)
    heads = mesh_spec("batch", "keys", "heads", "kv")
    rows = PartitionSpec(*heads[:2])
    # Every sum of a kernel is over one row and head, so no device needs another's.
    return jax.shard_map(
        kernel, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query, key, value, segment_ids)  # fmt: skip


def block_size(backend: str, length: int) -> int:
    """Of a kernel's blocks of queries and keys: the largest that divides the length."""
    block = _SMALLEST_BLOCK[backend]
    while block * 2 <= _LARGEST_BLOCK[backend] and length % (block * 2) == 0:
        block *= 2
    return block


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, size = query.shape[1:]
    block = block_size("splash", length)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(heads)]),
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )  # fmt: skip
    query = (query * size**-0.5).astype(query.dtype)  # the kernel does not divide
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))

    def one_row(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        return kernel(query, key, value, segment_ids=splash.SegmentIds(segments, segments))

    return jax.vmap(one_row)(query, key, value, segment_ids).swapaxes(1, 2)


def _triton(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.gpu import attention

    block = block_size("triton", query.shape[1])
    sizes = attention.BlockSizes(
        block_q=block, block_k=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )  # fmt: skip
    repeats = query.shape[2] // key.shape[2]  # the kernel has a key-value head for each query head
    key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
    return attention.mha(
        query, key, value, segment_ids, query.shape[3] ** -0.5, True, sizes, interpret=interpret
    )
