"""Training what a growth has added, and nothing else, as LLaMA-Pro does (arXiv 2401.02415)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flm_jax.grow.planning import GrowthPlan


def train_only_new(optimizer: optax.GradientTransformation, plan: GrowthPlan) -> optax.GradientTransformation:
    """The optimizer with every update of an old entry set to 0, its weight decay too; its state is the same.

    Entry by entry, because layers are stacked and grown matrices hold old and new. Moments of old entries go on, so
    that they are right when training of all resumes, and clipping by the global norm still counts their gradients.

    Args:
        optimizer: Of the grown model.
        plan: Of the growth.
    """
    is_new = plan.is_new()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = optax.with_extra_args_support(optimizer).update(updates, state, params, **extra)
        kept = jax.tree.map(lambda new, value: jnp.where(new, value, jnp.zeros_like(value)), is_new, updates)
        return kept, state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
