"""The feed-forward network: two matrices with a tanh-approximated GELU between them, or SwiGLU's three."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from flm_jax.config import ModelConfig, at_least_float32
from flm_jax.layers.linear import linear
from flm_jax.parameters import declare, mlp
from flm_jax.partitioning import constrain


class Mlp(nn.Module):
    """GELU(x Wi + bi) Wo + bo; with SwiGLU (silu(x Wg + bg) * (x Wi + bi)) Wo + bo (Shazeer, arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Maps `x` `[B, L, D]` to `[B, L, D]` through `[B, L, F]`; `keep` `[F]` multiplies the hidden units."""
        weight = declare(self, mlp(self.config), self.config)
        hidden = linear(x, weight["wi_kernel"], weight.get("wi_bias"))
        if self.config.activation == "swiglu":
            hidden = _swiglu(linear(x, weight["gate_kernel"], weight.get("gate_bias")), hidden)
        else:
            hidden = _gelu(hidden)
        hidden = constrain(hidden, "batch", "length", "mlp")
        if keep is not None:
            hidden = hidden * keep.astype(hidden.dtype)
        return linear(hidden, weight["wo_kernel"], weight.get("wo_bias"))


def _again(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function`, in at least float32, computed again in the backward pass: cheaper than what it would keep."""

    def wide(*arguments: jax.Array) -> jax.Array:
        dtype = arguments[0].dtype
        return function(*(x.astype(at_least_float32(dtype)) for x in arguments)).astype(dtype)

    return jax.checkpoint(wide, prevent_cse=False)


_gelu = _again(functools.partial(jax.nn.gelu, approximate=True))
_swiglu = _again(lambda gate, hidden: jax.nn.silu(gate) * hidden)
