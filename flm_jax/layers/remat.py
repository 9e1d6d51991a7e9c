"""What the backward pass keeps of a block, and what it computes again (`ModelConfig.remat`).

Kept is what is named, and not whatever a matmul has made: one of bfloat16 may give its sums out in float32, from which
what is used is rounded.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flm_jax.config import at_least_float32
from flm_jax.partitioning import platform

LINEAR = "linear"  # what a linear layer gives out
ATTENTION = (
    "attention"  # dense attention's softmax, its sums, and what it mixes; what the splash kernel gives out
)

_KEPT: dict[str, tuple[str, ...]] = {
    "dots": (LINEAR, ATTENTION),
    "dots_no_batch": (LINEAR,),
    "full": (),
    "stage": (),
}


def kept_dtype(dtype: Any) -> jnp.dtype:
    """In which what a layer keeps is stacked with that of the others.

    XLA for CPUs cannot write bfloat16 into a part of an array: with each layer it would write all layers' anew. That is
    so with `remat` none, where JAX stacks what it likes.
    """
    return at_least_float32(dtype) if platform() == "cpu" else jnp.dtype(dtype)


def named(x: jax.Array, name: str) -> jax.Array:
    """`x`, which the policies can name."""
    return checkpoint_name(x.astype(kept_dtype(x.dtype)), name).astype(x.dtype)


def settings(remat: str) -> dict[str, Any]:
    """Arguments of `jax.checkpoint` for one of `REMAT_POLICIES` other than `none`."""
    # Inside a scan XLA cannot merge the recomputation with the forward pass, so its guard is not needed.
    return {"policy": jax.checkpoint_policies.save_only_these_names(*_KEPT[remat]), "prevent_cse": False}


def rematted(function: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`function` of one layer, of which its backward pass keeps as much as `remat` says."""
    return function if remat == "none" else jax.checkpoint(function, **settings(remat))
