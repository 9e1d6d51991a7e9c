"""Growth of models and of their optimizers: `plan`, `verify`, and what a run needs of them."""

from flm_jax.grow.errors import GrowthError as GrowthError
from flm_jax.grow.leaf import LeafByLeaf as LeafByLeaf
from flm_jax.grow.planning import GrowthPlan as GrowthPlan
from flm_jax.grow.planning import plan as plan
from flm_jax.grow.verification import verify as verify

__all__ = ["GrowthError", "GrowthPlan", "LeafByLeaf", "plan", "verify"]
