"""The feed-forward network: two matrices with biases and a tanh-approximated GELU between them."""

import flax.linen as nn
import jax

from flm_jax.config import ModelConfig
from flm_jax.layers.linear import linear
from flm_jax.parameters import MLP, declare
from flm_jax.partitioning import constrain


class Mlp(nn.Module):
    """GELU(x Wi + bi) Wo + bo."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Maps `x` `[B, L, D]` to `[B, L, D]` through `[B, L, F]`; `keep` `[F]` multiplies the hidden units."""
        weight = {name: value.astype(x.dtype) for name, value in declare(self, MLP, self.config).items()}
        hidden = linear(x, weight["wi_kernel"], weight["wi_bias"])
        hidden = constrain(jax.nn.gelu(hidden, approximate=True), "batch", "length", "mlp")
        if keep is not None:
            hidden = hidden * keep.astype(hidden.dtype)
        return linear(hidden, weight["wo_kernel"], weight["wo_bias"])
