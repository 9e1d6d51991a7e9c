"""AdamW under duplication: with the rule of moments and multipliers a grown run is the un-grown run, for ever.

Both blocks whole, and an FFN of which only a part is copied, where factors differ along the axis.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from flm_jax import ModelConfig
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.optimizer import Multipliers, width_multipliers
from flm_jax.parameters import Parameter
from tests.grow.growths import config64, largest_difference, llama64, over_rows, resized
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

SIZES: dict[str, Any] = {"vocab_size": 32, "d_model": 8, "d_ff": 24, "head_dim": 4}
FLM = config64(**SIZES, num_heads=2)
STANDARD = config64(**SIZES, num_heads=2, parametrization="standard")
LLAMA = llama64(**SIZES)
DOUBLED = {"embed": 16, "heads": 4, "mlp": 48}
CASES: dict[str, tuple[ModelConfig, dict[str, int]]] = {
    "flm": (FLM, DOUBLED),
    "standard": (STANDARD, DOUBLED),
    "llama": (LLAMA, {**DOUBLED, "queries": 4}),
    "part of the FFN": (FLM, {"mlp": 36}),
}


@cache
def planned(case: str) -> GrowthPlan:
    source, sizes = CASES[case]
    return decide(source, resized(source, **sizes), dict.fromkeys(sizes, "duplicate"))


class Start(NamedTuple):
    """A run before the growth and after it, and the multipliers that it goes on with."""

    ungrown: Run
    grown: Run
    multipliers: Multipliers


def start_of(case: str) -> Start:
    plan = planned(case)
    before = started(plan.source)
    multipliers = plan.multipliers(width_multipliers(plan.source))
    return Start(before, grown_run(plan, before), multipliers)


def compared(case: str, run: Run, multipliers: Multipliers, ungrown: Run, count: int) -> tuple[float, float]:
    """How far the grown run is from the un-grown after as many updates."""
    plan = planned(case)
    grown = go_on(updater(plan.target), run, batches(plan.source, count, BEFORE), multipliers)
    return deviations(plan, ungrown_run(plan.source, ungrown, count), grown)


@pytest.mark.parametrize("case", CASES)
def test_sixty_updates_are_those_of_the_ungrown_run(case: str) -> None:
    with jax.enable_x64(True):
        start = start_of(case)
        losses, params = compared(case, start.grown, start.multipliers, start.ungrown, AFTER)
        print(f"{case}: losses {losses:.2g}, parameters {params:.2g}")
        assert losses <= 1e-12 * max(start.ungrown.losses) and params <= 1e-12
        # Not because nothing moves.
        later = ungrown_run(planned(case).source, start.ungrown)
        assert largest_difference(later.params, start.ungrown.params) > 0.05


def test_factors_of_a_part_are_arrays() -> None:
    """Twelve of twenty-four units have become two: half the weight, rate and gradient, twice the decay."""
    plan = planned("part of the FFN")
    mults = plan.multipliers(width_multipliers(plan.source))
    copied = (np.arange(36) < 12) | (np.arange(36) >= 24)
    old = width_multipliers(plan.source)

    def along(tree: Any, name: str) -> np.ndarray:
        return np.ravel(tree["layers"]["mlp"][name])

    rate, decay = (
        old.learning_rate["layers"]["mlp"]["wo_kernel"],
        old.weight_decay["layers"]["mlp"]["wo_kernel"],
    )
    np.testing.assert_allclose(along(mults.learning_rate, "wo_kernel"), rate * np.where(copied, 0.5, 1))
    np.testing.assert_allclose(along(mults.weight_decay, "wo_kernel"), decay * np.where(copied, 2, 1))
    np.testing.assert_array_equal(along(mults.epsilon, "wi_kernel"), np.where(copied, 0.5, 1))
    assert mults.epsilon["layers"]["mlp"]["wo_kernel"] == 1.0
    assert (
        mults.learning_rate["layers"]["mlp"]["wi_kernel"] == old.learning_rate["layers"]["mlp"]["wi_kernel"]
    )
    assert mults.learning_rate["layers"]["attention"] == old.learning_rate["layers"]["attention"]


def without(part: str, case: str, start: Start) -> tuple[Run, Multipliers]:
    """The grown run with one factor of the rule left out."""
    plan, run, multipliers = planned(case), start.grown, start.multipliers
    clip, adam, *rest = run.opt_state

    def unscaled(moments: Any, degree: int) -> Any:
        def one(row: Parameter, value: jax.Array) -> jax.Array:
            return value / plan.gradient_weight(row) ** degree

        return over_rows(one, plan.target, moments)

    def with_adam(**changes: Any) -> Run:
        return run._replace(opt_state=(clip, adam._replace(**changes), *rest))

    old = width_multipliers(plan.source)
    return {
        "first moment": lambda: (with_adam(mu=unscaled(adam.mu, 1)), multipliers),
        "second moment": lambda: (with_adam(nu=unscaled(adam.nu, 2)), multipliers),
        "epsilon": lambda: (run, multipliers._replace(epsilon=old.epsilon)),
        "learning rate": lambda: (run, multipliers._replace(learning_rate=old.learning_rate)),
        "weight decay": lambda: (run, multipliers._replace(weight_decay=old.weight_decay)),
    }[part]()


@pytest.mark.parametrize(
    "part", ["first moment", "second moment", "epsilon", "learning rate", "weight decay"]
)
@pytest.mark.parametrize("case", ["flm", "llama", "part of the FFN"])
def test_every_factor_of_the_rule_is_needed(case: str, part: str) -> None:
    with jax.enable_x64(True):
        start = start_of(case)
        run, multipliers = without(part, case, start)
        losses, params = compared(case, run, multipliers, start.ungrown, 20)
        print(f"{case} without {part}: losses {losses:.2g}, parameters {params:.2g}")
        assert losses >= 1e-8 and params >= 1e-8
