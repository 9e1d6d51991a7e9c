"""Growth of optimizer state: moments by the parameters' index maps with the weights of gradients."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from flm_jax import parameters
from flm_jax.aged_adam import AgedAdamState
from flm_jax.grow.errors import GrowthError, UnknownStateError
from flm_jax.grow.leaf import CarryOut, check_shapes, fresh_moment, grow_moment
from flm_jax.parameters import Parameter

if TYPE_CHECKING:
    from flm_jax.grow.planning import GrowthPlan

POLICIES = ("carry", "reset")

# State type -> its fields in the parameters' shape -> the power of the gradient that they average.
_MOMENTS: Mapping[type, Mapping[str, int]] = {
    optax.ScaleByAdamState: {"mu": 1, "nu": 2},
    AgedAdamState: {"mu": 1, "nu": 2},
}
# States without anything in the parameters' shape: kept as they are.
_PLAIN = (optax.EmptyState, optax.ScaleByScheduleState)


def grow_opt_state(plan: "GrowthPlan", state: Any, policy: str, carry_out: CarryOut) -> Any:
    """See `GrowthPlan.opt_state`."""
    if policy not in POLICIES:
        raise GrowthError(
            f"unknown policy {policy!r} for the optimizer's state: expected one of {', '.join(POLICIES)} "
            "(bind Stage.optimizer_state)"
        )
    if isinstance(state, _PLAIN):
        return state
    if isinstance(state, optax.ApplyIfFiniteState):
        return state._replace(inner_state=grow_opt_state(plan, state.inner_state, policy, carry_out))
    if type(state) in _MOMENTS:
        return _grow_moments(plan, state, policy, carry_out)
    if type(state) is tuple:  # of `optax.chain`
        return tuple(grow_opt_state(plan, part, policy, carry_out) for part in state)
    known = ", ".join(sorted(kind.__name__ for kind in (*_MOMENTS, *_PLAIN, optax.ApplyIfFiniteState)))
    raise UnknownStateError(
        f"how optimizer state of type {type(state).__name__} grows is not known: expected chains of {known}; "
        "bind Trainer.optimizer to an optimizer made of these"
    )


def _grow_moments(plan: "GrowthPlan", state: Any, policy: str, carry_out: CarryOut) -> Any:
    _check_shapes(plan, state)

    def moment(degree: int) -> Callable[[Parameter, jax.Array], jax.Array]:
        def one(row: Parameter, old: jax.Array) -> jax.Array:
            if policy == "reset":
                return carry_out(fresh_moment, plan, row, old)
            return carry_out(grow_moment, plan, row, old, plan.gradient_weight(row) ** degree)

        return one

    rows = parameters.table(plan.target)
    grown = {
        field: jax.tree.map(moment(degree), rows, getattr(state, field), is_leaf=parameters.is_parameter)
        for field, degree in _MOMENTS[type(state)].items()
    }
    if policy == "reset":
        grown["count"] = jnp.zeros_like(state.count)
    if isinstance(state, AgedAdamState):
        grown["births"] = {
            axis: _births(plan, axis, births, state.count, policy) for axis, births in state.births.items()
        }
    return state._replace(**grown)


def _births(plan: "GrowthPlan", axis: str, births: jax.Array, count: jax.Array, policy: str) -> jax.Array:
    if policy == "reset":
        return jnp.zeros(plan.target.size(axis), births.dtype)
    if axis not in plan.maps:
        return births
    axis_map = plan.maps[axis]
    inherited = jnp.take(births, jnp.asarray(axis_map.source))
    if plan.chosen[axis].carries_moments:
        return inherited
    return jnp.where(axis_map.is_new, count.astype(births.dtype), inherited)


def _check_shapes(plan: "GrowthPlan", state: Any) -> None:
    for field in _MOMENTS[type(state)]:
        check_shapes(getattr(state, field), plan.source, f"{type(state).__name__}.{field}")
    for axis, births in getattr(state, "births", {}).items():
        if births.shape != (plan.source.size(axis),):
            raise GrowthError(
                f"AgedAdamState.births[{axis!r}]: the plan's source has {plan.source.size(axis)} entries, found "
                f"{births.shape}"
            )
