"""One block of the decoder: attention and feed-forward, each behind a norm and added to the residual stream."""

import flax.linen as nn
import jax

from flm_jax.config import ModelConfig
from flm_jax.layers.attention import Attention
from flm_jax.layers.mlp import Mlp
from flm_jax.layers.norm import LayerNorm
from flm_jax.layers.xpos import Rotation
from flm_jax.partitioning import constrain


class Block(nn.Module):
    """x + Attention(Norm(x)), then x + Mlp(Norm(x)): the GPT-3 block of FLM-101B (paper, section 2.1)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rotation: Rotation, mask: jax.Array | None, cache_index: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """Maps `x` `[B, L, D]` to `[B, L, D]`; the second result is what a scan over layers wants."""
        normed = LayerNorm(self.config, name="attention_norm")(x)
        x = x + Attention(self.config, name="attention")(normed, rotation, mask, cache_index)
        normed = LayerNorm(self.config, name="mlp_norm")(x)
        x = x + Mlp(self.config, name="mlp")(normed)
        return constrain(x, "batch", "length", "embed"), None
