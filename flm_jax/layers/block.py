"""One block of the decoder: attention and feed-forward, each behind a norm and added to the residual stream."""

import flax.linen as nn
import jax

from flm_jax.config import ModelConfig
from flm_jax.layers.attention import Attention, Visible
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.layers.mlp import Mlp
from flm_jax.layers.norm import Norm
from flm_jax.layers.xpos import Rotation
from flm_jax.parameters import norm
from flm_jax.partitioning import constrain


class Block(nn.Module):
    """x + Attention(Norm(x)), then x + Mlp(Norm(x)): the pre-norm block of FLM-101B (paper, section 2.1)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        visible: Visible | None,
        cache_index: jax.Array | None,
        growth: GrowthMask,
        keep: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        """Maps `x` `[B, L, D]` to `[B, L, D]` of its dtype; the second result is what a scan over layers wants.

        Args:
            x: Residual stream.
            rotation: xPos tables of the positions of `x`.
            visible: Where queries may look, or None with a cache.
            cache_index: `[B]`, or None without a cache.
            growth: Of the width; its `layers` are not looked at, because
            keep: is this layer's own factor on what it adds, a scalar; None is 1.
        """

        def add(x: jax.Array, branch: jax.Array) -> jax.Array:
            return x + (branch if keep is None else branch * keep.astype(branch.dtype))

        given = x.dtype
        x = x.astype(self.config.dtype)
        normed = Norm(self.config, norm(self.config), name="attention_norm")(x, growth.embed)
        attention = Attention(self.config, name="attention")
        x = add(x, attention(normed, rotation, visible, cache_index, growth))
        normed = Norm(self.config, norm(self.config), name="mlp_norm")(x, growth.embed)
        x = add(x, Mlp(self.config, name="mlp")(normed, growth.mlp))
        return constrain(x.astype(given), "batch", "residual", "embed"), None
