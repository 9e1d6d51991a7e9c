"""The rule of moments and multipliers: held at mask 0, a grown run is the un-grown run, number for number."""

from functools import cache
from typing import Any

import jax
import pytest

from flm_jax import grow
from flm_jax.grow.planning import GrowthPlan
from flm_jax.optimizer import Multipliers, width_multipliers
from tests.grow.growths import config64, grown_config, largest_difference, over_rows
from tests.grow.trajectories import (
    AFTER,
    BEFORE,
    Run,
    batches,
    deviations,
    go_on,
    grown_run,
    started,
    ungrown_run,
    updater,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = config64(vocab_size=32, d_model=16, num_heads=2, d_ff=24)


@cache
def planned() -> GrowthPlan:
    return grow.plan(SOURCE, grown_config(SOURCE, d_model=28, num_heads=3, d_ff=32, num_layers=3), "msg")


def multipliers_of(plan: GrowthPlan) -> Multipliers:
    return plan.multipliers(width_multipliers(SOURCE))


def test_sixty_updates_are_those_of_the_ungrown_run() -> None:
    with jax.enable_x64(True):
        plan, start = planned(), started(SOURCE)
        ungrown = ungrown_run(SOURCE, start)
        update, later = updater(plan.target, plan), batches(SOURCE, AFTER, BEFORE)
        grown = go_on(update, grown_run(plan, start), later, multipliers_of(plan))
        losses, params = deviations(plan, ungrown, grown)
        print(f"dynamics: losses {losses:.2g}, parameters {params:.2g}")
        assert losses <= 1e-12 * max(ungrown.losses) and params <= 1e-12
        # Not because nothing moves.
        assert largest_difference(ungrown.params, start.params) > 0.05


def test_clipping_is_what_the_rule_does_not_keep() -> None:
    """The gradient of the folded final norm has shrunk, and with it the global norm: the only deviation."""
    with jax.enable_x64(True):
        plan, clip_norm = planned(), 0.1
        start = started(SOURCE, clip_norm)
        ungrown = ungrown_run(SOURCE, start, clip_norm=clip_norm)
        update, later = updater(plan.target, plan), batches(SOURCE, AFTER, BEFORE)
        grown = go_on(update, grown_run(plan, start), later, multipliers_of(plan), clip_norm)
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
    kept = {**wider.learning_rate, "final_norm": multipliers.learning_rate["final_norm"]}
    return {
        "first moment": lambda: (with_adam(mu=unscaled(adam.mu, 1)), multipliers),
        "second moment": lambda: (with_adam(nu=unscaled(adam.nu, 2)), multipliers),
        "epsilon": lambda: (run, multipliers._replace(epsilon=old.epsilon)),
        "learning rate of the fold": lambda: (run, multipliers._replace(learning_rate=old.learning_rate)),
        "kept learning rate": lambda: (run, multipliers._replace(learning_rate=kept)),
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
        plan, start = planned(), started(SOURCE)
        ungrown = ungrown_run(SOURCE, start, 20)
        run, multipliers = without(part, plan, grown_run(plan, start), multipliers_of(plan))
        wrong = go_on(updater(plan.target, plan), run, batches(SOURCE, 20, BEFORE), multipliers)
        losses, params = deviations(plan, ungrown, wrong)
        print(f"without {part}: losses {losses:.2g}, parameters {params:.2g}")
        assert losses > 1e-8 and params > 1e-8
