"""The optimizer's multipliers of a grown model.

Where a value is w times the old one and its gradient s times, Adam's epsilon must be s times the old, the learning rate
w times and the weight decay 1/w times, or what was there does not train on as it did.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from flm_jax import parameters
from flm_jax.grow.axis_map import along
from flm_jax.grow.errors import GrowthError
from flm_jax.grow.rule import Factor, Fill
from flm_jax.optimizer import Multipliers, width_multipliers
from flm_jax.parameters import Parameter

if TYPE_CHECKING:
    from flm_jax.grow.planning import GrowthPlan

POLICIES = ("carry", "rederive")


def grown_multipliers(plan: "GrowthPlan", source: Multipliers, policy: str = "carry") -> Multipliers:
    """See `GrowthPlan.multipliers`.

    Under `carry` µP's own multipliers of matrices do not fall with the new width: what is carried keeps its rate. Under
    `rederive` matrices have the learning rate and the weight decay that µP gives their new fan-in, as a model trained
    from scratch at that width; everything else is carried. The function is the same under both: what it depends on, the
    readout's multiplier, is folded into the final norm.

    Raises:
        GrowthError: an unknown policy.
    """
    if policy not in POLICIES:
        raise GrowthError(
            f"unknown policy {policy!r} for the optimizer's multipliers: expected one of {', '.join(POLICIES)} "
            "(Stage.multipliers, or --multipliers)"
        )
    rows = parameters.table(plan.target)
    fresh = width_multipliers(plan.target)

    def carried(mults: Any, factor: Callable[[Parameter], Factor]) -> Any:
        return jax.tree.map(
            lambda row, mult: _tidy(_extended(plan, row, mult) * factor(row)),
            rows,
            mults,
            is_leaf=parameters.is_parameter,
        )

    def derived(mults: Any, factor: Callable[[Parameter], Factor], of_width: Any) -> Any:
        if policy == "carry":
            return carried(mults, factor)
        return jax.tree.map(
            lambda row, mult, new: new if row.fan_in else mult,
            rows,
            carried(mults, factor),
            of_width,
            is_leaf=parameters.is_parameter,
        )

    return Multipliers(
        learning_rate=derived(source.learning_rate, plan.rate, fresh.learning_rate),
        weight_decay=derived(source.weight_decay, lambda row: 1 / plan.rate(row), fresh.weight_decay),
        epsilon=carried(source.epsilon, plan.gradient_weight),
    )


def _extended(plan: "GrowthPlan", row: Parameter, mult: Factor) -> Factor:
    """A multiplier that differs along an axis, over the grown axis: copies have their source's, the new the mean."""
    if not isinstance(mult, np.ndarray):
        return mult
    for axis, rule in plan.rules(row).items():
        dim, axis_map = row.axes.index(axis), plan.maps[axis]
        if mult.shape[dim] == 1:
            continue
        mean = mult.mean(axis=dim, keepdims=True)
        mult = np.take(mult, axis_map.source, axis=dim)
        if rule.fill is not Fill.COPY:
            mult = np.where(along(axis_map.is_new, dim, mult.ndim), mean, mult)
    return mult


def _tidy(mult: Factor) -> Factor:
    """One number where all are the same."""
    if isinstance(mult, np.ndarray) and (mult.size == 1 or np.all(mult == mult.flat[0])):
        return float(mult.flat[0])
    return mult
