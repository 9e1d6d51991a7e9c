"""The mask under which what a growth has added is hidden from the function, wholly or in part."""

from typing import NamedTuple

import jax


class GrowthMask(NamedTuple):
    """For each axis that grew under a mask, a factor for every entry: 1 for the old, the ramp's value for the new.

    A factor multiplies what its entry contributes: a head's mixed values, an FFN unit's activation, a layer's two
    additions to the residual stream. On `embed` it weighs the entry in the norms' statistics and multiplies
    what the norms give out, which hides the new coordinates of the residual stream whatever they hold (MSG,
    arXiv 2305.02869, which masks the post-norms of BERT in the same way). At 0 the grown network computes the old
    function, at 1 its own.

    From d_model 2 to 3 at the ramp's value 0.5: `embed` is (1, 1, 0.5).
    """

    embed: jax.Array | None = None  # [d_model]
    heads: jax.Array | None = None  # [key-value heads]; [num_heads] unless heads are grouped
    queries: jax.Array | None = (
        None  # [query heads per key-value head]; a query head's factor is the product of both
    )
    mlp: jax.Array | None = None  # [d_ff]
    layers: jax.Array | None = None  # [num_layers]
