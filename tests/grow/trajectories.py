"""Runs of a few AdamW updates, before a growth and after it, and how far the two are apart."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from flm_jax import LanguageModel, ModelConfig, optimizer
from flm_jax.grow.planning import GrowthPlan
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.optimizer import Multipliers, width_multipliers
from tests.grow.growths import drawn_params, largest_difference, old_entries, with_weights
from tests.models import random_batch

BEFORE, AFTER = 5, 60  # updates
NO_CLIPPING = 1e9
# With the usual 1e-8 a run does not notice an eps of another size to within what is compared, and the factor on it
# would not be tested; this is half a percent of the median gradient.
EPS = 1e-4
KEY = jax.random.key(1, impl="rbg")


class Run(NamedTuple):
    """Where a run stands, and its losses."""

    params: Any
    opt_state: Any
    losses: list[float]


def batches(config: ModelConfig, count: int, first: int = 0) -> list[Any]:
    return [random_batch(config, 2, 12, seed=first + index) for index in range(count)]


@cache
def updater(config: ModelConfig, masked: GrowthPlan | None = None, rewarm_steps: int = 0) -> Callable:
    """One AdamW update of a model, at mask 0 if it has grown under one; what varies between runs is an argument."""
    model = LanguageModel(config, z_loss=0.0)

    def update(
        params: Any, opt_state: Any, batch: Any, multipliers: Multipliers, clip_norm: Any
    ) -> tuple[Any, Any, jax.Array]:
        mask: GrowthMask | None = None if masked is None else masked.mask(0.0)

        def loss(params: Any) -> jax.Array:
            sums = model.token_sums(params, batch, mask)
            return sums.total / sums.weight

        value, gradient = jax.value_and_grad(loss)(params)
        tx = optimizer.adamw(
            config,
            1e-3,
            eps=EPS,
            clip_norm=clip_norm,
            multipliers=multipliers,
            rewarm_steps=rewarm_steps,
        )
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return jax.jit(update)


def go_on(
    update: Callable, run: Run, batches: list[Any], multipliers: Multipliers, clip_norm: float = NO_CLIPPING
) -> Run:
    params, opt_state, losses = run.params, run.opt_state, []
    for batch in batches:
        params, opt_state, loss = update(params, opt_state, batch, multipliers, clip_norm)
        losses.append(float(loss))
    return Run(params, opt_state, losses)


def started(source: ModelConfig, clip_norm: float = NO_CLIPPING) -> Run:
    """The source after a few updates, so that its moments are of several batches."""
    params = jax.tree.map(lambda p: 0.3 * p, drawn_params(source))
    fresh = Run(params, optimizer.adamw(source, 1e-3).init(params), [])
    multipliers = width_multipliers(source)
    return go_on(updater(source), fresh, batches(source, BEFORE), multipliers, clip_norm)


def ungrown_run(source: ModelConfig, start: Run, count: int = AFTER, clip_norm: float = NO_CLIPPING) -> Run:
    """As it goes on without a growth."""
    later = batches(source, count, BEFORE)
    return go_on(updater(source), start, later, width_multipliers(source), clip_norm)


def grown_run(plan: GrowthPlan, run: Run, policy: str = "carry") -> Run:
    return Run(jax.jit(plan.params)(run.params, KEY), plan.opt_state(run.opt_state, policy), [])


def deviations(plan: GrowthPlan, ungrown: Run, grown: Run) -> tuple[float, float]:
    """Largest of a loss, and of an old entry of the parameters."""
    losses = float(np.max(np.abs(np.subtract(ungrown.losses[: len(grown.losses)], grown.losses))))
    return losses, largest_difference(old_entries(plan, grown.params), with_weights(plan, ungrown.params))
