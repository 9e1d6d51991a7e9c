"""Growth of models and of their optimizers: `plan`, `verify`, and what a run needs of them."""

from flm_jax.grow.errors import GrowthError as GrowthError
from flm_jax.grow.errors import MomentsWarning as MomentsWarning
from flm_jax.grow.errors import SymmetryWarning as SymmetryWarning
from flm_jax.grow.freezing import train_only_new as train_only_new
from flm_jax.grow.leaf import LeafByLeaf as LeafByLeaf
from flm_jax.grow.optimizer_state import Part as Part
from flm_jax.grow.optimizer_state import register_state as register_state
from flm_jax.grow.planning import GrowthPlan as GrowthPlan
from flm_jax.grow.planning import plan as plan
from flm_jax.grow.verification import verify as verify

__all__ = [
    "GrowthError",
    "GrowthPlan",
    "LeafByLeaf",
    "MomentsWarning",
    "Part",
    "SymmetryWarning",
    "plan",
    "register_state",
    "train_only_new",
    "verify",
]
