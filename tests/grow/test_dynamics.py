"""The rule of moments and multipliers: held at mask 0, a grown run is the un-grown run, number for number.

In float64 with Adam's eps at 1e-4, half a percent of the median gradient here: with the usual 1e-8 a run does not
notice an eps of another size to within what is compared, and the factor on it would not be tested.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from flm_jax import LanguageModel, grow, optimizer
from flm_jax.config import ModelConfig
from flm_jax.grow.planning import GrowthPlan
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.optimizer import Multipliers, width_multipliers
from tests.grow.growths import (
    config64,
    drawn_params,
    grown_config,
    largest_difference,
    old_entries,
    over_rows,
    with_weights,
)
from tests.models import random_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = config64(vocab_size=32, d_model=16, num_heads=2, d_ff=24)
BEFORE, AFTER = 5, 60  # updates
NO_CLIPPING = 1e9


class Run(NamedTuple):
    """Where a run stands, and its losses."""

    params: Any
    opt_state: Any
    losses: list[float]


def batches(count: int, first: int = 0) -> list[Any]:
    return [random_batch(SOURCE, 2, 12, seed=first + index) for index in range(count)]


@cache
def updater(config: ModelConfig, masked: GrowthPlan | None = None) -> Callable:
    """One AdamW update of a model, at mask 0 if it has grown under one; what varies between runs is an argument."""
    model = LanguageModel(config)

    def update(
        params: Any, opt_state: Any, batch: Any, multipliers: Multipliers, clip_norm: Any
    ) -> tuple[Any, Any, jax.Array]:
        mask: GrowthMask | None = None if masked is None else masked.mask(0.0)

        def loss(params: Any) -> jax.Array:
            sums = model.token_sums(params, batch, mask)
            return sums.nll / sums.weight

        value, gradient = jax.value_and_grad(loss)(params)
        tx = optimizer.adamw(config, 1e-3, eps=1e-4, clip_norm=clip_norm, multipliers=multipliers)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return jax.jit(update)


def go_on(update: Callable, run: Run, batches: list[Any], multipliers: Multipliers, clip_norm: float) -> Run:
    params, opt_state, losses = run.params, run.opt_state, []
    for batch in batches:
        params, opt_state, loss = update(params, opt_state, batch, multipliers, clip_norm)
        losses.append(float(loss))
    return Run(params, opt_state, losses)


def started(clip_norm: float = NO_CLIPPING) -> Run:
    """The source after a few updates, so that its moments are of several batches."""
    params = jax.tree.map(lambda p: 0.3 * p, drawn_params(SOURCE))
    fresh = Run(params, optimizer.adamw(SOURCE, 1e-3).init(params), [])
    return go_on(updater(SOURCE), fresh, batches(BEFORE), width_multipliers(SOURCE), clip_norm)


@cache
def planned(d_model: int = 28) -> GrowthPlan:
    target = grown_config(SOURCE, d_model=d_model, num_heads=3, d_ff=32, num_layers=3)
    return grow.plan(SOURCE, target, "msg")


def grown_run(plan: GrowthPlan, run: Run) -> Run:
    return Run(plan.params(run.params, jax.random.key(1, impl="rbg")), plan.opt_state(run.opt_state), [])


def deviations(plan: GrowthPlan, ungrown: Run, grown: Run) -> tuple[float, float]:
    """Largest of a loss, and of an old entry of the parameters."""
    losses = float(np.max(np.abs(np.subtract(ungrown.losses[: len(grown.losses)], grown.losses))))
    return losses, largest_difference(old_entries(plan, grown.params), with_weights(plan, ungrown.params))


def test_sixty_updates_are_those_of_the_ungrown_run() -> None:
    with jax.enable_x64(True):
        plan, start = planned(), started()
        ungrown = go_on(
            updater(SOURCE), start, batches(AFTER, BEFORE), width_multipliers(SOURCE), NO_CLIPPING
        )
        multipliers = plan.multipliers(width_multipliers(SOURCE))
        grown = go_on(
            updater(plan.target, plan),
            grown_run(plan, start),
            batches(AFTER, BEFORE),
            multipliers,
            NO_CLIPPING,
        )
        losses, params = deviations(plan, ungrown, grown)
        print(f"dynamics: losses {losses:.2g}, parameters {params:.2g}")
        assert losses <= 1e-12 * max(ungrown.losses) and params <= 1e-12
        # Not because nothing moves.
        assert largest_difference(ungrown.params, start.params) > 0.05


def test_clipping_is_what_the_rule_does_not_keep() -> None:
    """The gradient of the folded final norm has shrunk, and with it the global norm: the only deviation."""
    with jax.enable_x64(True):
        plan, clip_norm = planned(), 0.1
        start = started(clip_norm)
        ungrown = go_on(updater(SOURCE), start, batches(AFTER, BEFORE), width_multipliers(SOURCE), clip_norm)
        multipliers = plan.multipliers(width_multipliers(SOURCE))
        grown = go_on(
            updater(plan.target, plan), grown_run(plan, start), batches(AFTER, BEFORE), multipliers, clip_norm
        )
        losses, params = deviations(plan, ungrown, grown)
        print(f"clipping: losses {losses:.2g}, parameters {params:.2g}")
        assert 1e-6 < losses < 0.05  # nats, of 3.6; 0.006 was measured


def without(part: str, plan: GrowthPlan, run: Run, multipliers: Multipliers) -> tuple[Run, Multipliers]:
    """The grown run with one factor of the rule left out."""
    clip, adam, *rest = run.opt_state

    def unscaled(moments: Any, degree: int) -> Any:
        return over_rows(lambda row, value: value / plan.gradient_weight(row) ** degree, plan.target, moments)

    def with_adam(**changes: Any) -> Run:
        return run._replace(opt_state=(clip, adam._replace(**changes), *rest))

    # Of everything the source's; of matrices only where the source had them.
    old, wider = width_multipliers(SOURCE), width_multipliers(plan.target)
    return {
        "first moment": lambda: (with_adam(mu=unscaled(adam.mu, 1)), multipliers),
        "second moment": lambda: (with_adam(nu=unscaled(adam.nu, 2)), multipliers),
        "epsilon": lambda: (run, multipliers._replace(epsilon=old.epsilon)),
        "learning rate of the fold": lambda: (run, multipliers._replace(learning_rate=old.learning_rate)),
        "kept learning rate": lambda: (
            run,
            multipliers._replace(
                learning_rate={
                    **wider.learning_rate,
                    "final_norm": multipliers.learning_rate["final_norm"],
                }
            ),
        ),
        "kept weight decay": lambda: (run, multipliers._replace(weight_decay=wider.weight_decay)),
    }[part]()


@pytest.mark.parametrize(
    "part",
    [
        "first moment",
        "second moment",
        "epsilon",
        "learning rate of the fold",
        "kept learning rate",
        "kept weight decay",
    ],
)
def test_every_factor_of_the_rule_is_needed(part: str) -> None:
    with jax.enable_x64(True):
        plan, start = planned(), started()
        later = batches(20, BEFORE)
        ungrown = go_on(updater(SOURCE), start, later, width_multipliers(SOURCE), NO_CLIPPING)
        run, multipliers = without(
            part, plan, grown_run(plan, start), plan.multipliers(width_multipliers(SOURCE))
        )
        wrong = go_on(updater(plan.target, plan), run, later, multipliers, NO_CLIPPING)
        losses, params = deviations(plan, ungrown, wrong)
        print(f"without {part}: losses {losses:.2g}, parameters {params:.2g}")
        assert losses > 1e-8 and params > 1e-8
