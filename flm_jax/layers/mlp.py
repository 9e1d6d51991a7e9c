"""The feed-forward network: two matrices with a tanh-approximated GELU between them, or SwiGLU's three."""

import flax.linen as nn
import jax

from flm_jax.config import ModelConfig
from flm_jax.layers.linear import linear
from flm_jax.parameters import declare, mlp
from flm_jax.partitioning import constrain


class Mlp(nn.Module):
    """GELU(x Wi + bi) Wo + bo; with SwiGLU (silu(x Wg + bg) * (x Wi + bi)) Wo + bo (Shazeer, arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Maps `x` `[B, L, D]` to `[B, L, D]` through `[B, L, F]`; `keep` `[F]` multiplies the hidden units."""
        rows = declare(self, mlp(self.config), self.config)
        weight = {name: value.astype(x.dtype) for name, value in rows.items()}
        hidden = linear(x, weight["wi_kernel"], weight.get("wi_bias"))
        if self.config.activation == "swiglu":
            hidden = jax.nn.silu(linear(x, weight["gate_kernel"], weight.get("gate_bias"))) * hidden
        else:
            hidden = jax.nn.gelu(hidden, approximate=True)
        hidden = constrain(hidden, "batch", "length", "mlp")
        if keep is not None:
            hidden = hidden * keep.astype(hidden.dtype)
        return linear(hidden, weight["wo_kernel"], weight.get("wo_bias"))
