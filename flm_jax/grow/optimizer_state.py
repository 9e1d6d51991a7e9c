"""Growth of optimizer state: moments by the parameters' index maps with the weights of gradients.

Every type of state is registered with what each of its fields is. A type that is not is refused, never copied in
silence: another shape would be an error later, but a moment at the wrong scale would be none. New moments begin at 0;
an optimizer that begins at another value (Adagrad) is not known here.
"""

import enum
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax import parameters
from flm_jax.aged_adam import AgedAdamState
from flm_jax.grow.errors import GrowthError, MomentsWarning, UnknownStateError
from flm_jax.grow.factored_state import grow_factored
from flm_jax.grow.leaf import CarryOut, check_shapes, fresh_moment, grow_moment, is_hole
from flm_jax.parameters import Parameter

if TYPE_CHECKING:
    from flm_jax.grow.planning import GrowthPlan

POLICIES = ("carry", "age", "asymmetric", "reset")


class Part(enum.Enum):
    """What a field of a state is, where it is no moment."""

    COUNT = "a count of updates, from which moments are corrected: begins anew with them"
    KEPT = "as it is under every policy: a schedule's clock, a random key, what was skipped"
    INNER = "another state, or a dict of states"
    BIRTHS = "of `AgedAdamState`"


# State -> field -> the power of the gradient that it averages, or what else it is.
_REGISTRY: dict[type, dict[str, int | Part]] = {}


def register_state(kind: type, **fields: int | Part) -> None:
    """Makes a type of optimizer state known to `GrowthPlan.opt_state`.

    Args:
        kind: A named tuple.
        fields: Each of its fields: for a moment, in the parameters' shape, the power of the gradient that it averages
            (Adam's `mu` 1, its `nu` 2; 0 for what the gradient's scale does not reach); else a `Part`.

    Raises:
        GrowthError: a field is missing, or there is none of this name.
    """
    names = set(kind._fields)  # type: ignore[attr-defined]
    if names != set(fields):
        raise GrowthError(
            f"register_state({kind.__name__}) must say of every field what it is: expected {sorted(names)}, found "
            f"{sorted(fields)}"
        )
    _REGISTRY[kind] = fields


def _register_known() -> None:
    count, kept, inner = Part.COUNT, Part.KEPT, Part.INNER
    register_state(AgedAdamState, count=count, mu=1, nu=2, births=Part.BIRTHS)
    register_state(optax.ScaleByAdamState, count=count, mu=1, nu=2)
    register_state(optax.ScaleByAmsgradState, count=count, mu=1, nu=2, nu_max=2)
    register_state(optax.ScaleByBeliefState, count=count, mu=1, nu=2)
    register_state(optax.ScaleByLionState, count=count, mu=1)
    register_state(optax.TraceState, trace=1)  # SGD with momentum
    register_state(optax.ScaleByRmsState, nu=2)
    register_state(optax.ScaleByRStdDevState, mu=1, nu=2)
    # An average of updates that an adaptive optimizer has scaled, as Adafactor's momentum is.
    register_state(optax.EmaState, count=count, ema=0)
    register_state(
        optax.MultiStepsState,
        mini_step=count,
        gradient_step=kept,
        inner_opt_state=inner,
        acc_grads=1,
        skip_state=kept,
    )
    register_state(optax.MaskedState, inner_state=inner)
    register_state(optax.PartitionState, inner_states=inner)  # of multi_transform
    register_state(optax.ConditionallyTransformState, inner_state=inner, step=kept)
    register_state(optax.ConditionallyMaskState, step=kept, inner_state=inner)
    register_state(
        optax.ApplyIfFiniteState,
        notfinite_count=kept,
        last_finite=kept,
        total_notfinite=kept,
        inner_state=inner,
    )
    register_state(
        optax.InjectStatefulHyperparamsState,
        count=kept,
        hyperparams=kept,
        hyperparams_states=kept,
        inner_state=inner,
    )
    register_state(optax.ScaleByScheduleState, count=kept)
    register_state(optax.AddNoiseState, count=kept, rng_key=kept)
    register_state(optax.EmptyState)


_register_known()


def grow_opt_state(plan: "GrowthPlan", state: Any, policy: str, carry_out: CarryOut, like: Any = None) -> Any:
    """See `GrowthPlan.opt_state`."""
    if policy not in POLICIES:
        raise GrowthError(
            f"unknown policy {policy!r} for the optimizer's state: expected one of {', '.join(POLICIES)} "
            "(Stage.optimizer_state, or --optimizer_state)"
        )
    grown = _grow(plan, state, policy, carry_out, like)
    if like is not None:
        _compare(grown, like)
    return grown


def _grow(plan: "GrowthPlan", state: Any, policy: str, carry_out: CarryOut, like: Any) -> Any:
    _check_ages(plan, state, policy)
    _check_averages(plan, state, policy)
    if isinstance(state, optax.FactoredState):
        return grow_factored(plan, state, policy, like)
    if type(state) in _REGISTRY:
        grown = {
            name: _grow_field(plan, state, name, what, policy, carry_out, getattr(like, name, None))
            for name, what in _REGISTRY[type(state)].items()
        }
        return state._replace(**grown)
    if type(state) in (tuple, list):  # of `optax.chain`
        others = like if type(like) is type(state) and len(like) == len(state) else [None] * len(state)
        return type(state)(
            _grow(plan, part, policy, carry_out, other) for part, other in zip(state, others, strict=True)
        )
    if isinstance(state, dict):
        others = like if isinstance(like, dict) else {}
        return {key: _grow(plan, part, policy, carry_out, others.get(key)) for key, part in state.items()}
    known = ", ".join(sorted(kind.__name__ for kind in (*_REGISTRY, optax.FactoredState)))
    raise UnknownStateError(
        f"how optimizer state of type {type(state).__name__} grows is not known: expected chains of {known}; say what "
        f"its fields are with flm_jax.grow.register_state({type(state).__name__}, ...), or bind Trainer.optimizer to "
        "an optimizer made of these"
    )


def _grow_field(
    plan: "GrowthPlan", state: Any, name: str, what: int | Part, policy: str, carry_out: CarryOut, like: Any
) -> Any:
    value = getattr(state, name)
    if what is Part.INNER:
        return _grow(plan, value, policy, carry_out, like)
    if what is Part.COUNT:
        return jnp.zeros_like(value) if policy == "reset" else value
    if what is Part.BIRTHS:
        return {axis: _births(plan, axis, births, state.count, policy) for axis, births in value.items()}
    if isinstance(what, int) and not isinstance(what, bool):
        return _grow_moments(plan, value, f"{type(state).__name__}.{name}", what, policy, carry_out)
    return value


def _grow_moments(
    plan: "GrowthPlan", moments: Any, name: str, degree: int, policy: str, carry_out: CarryOut
) -> Any:
    if moments is None:  # momentum that is switched off
        return None
    check_shapes(moments, plan.source, name, with_holes=True)

    def one(old: Any, row: Parameter) -> Any:
        if is_hole(old):
            return old
        if policy == "reset":
            return carry_out(fresh_moment, plan, row, old)
        return carry_out(grow_moment, plan, row, old, degree=degree, carries_copies=policy == "carry")

    return jax.tree.map(one, moments, parameters.table(plan.target), is_leaf=is_hole)


def _births(plan: "GrowthPlan", axis: str, births: jax.Array, count: jax.Array, policy: str) -> jax.Array:
    if births.shape != (plan.source.size(axis),):
        raise GrowthError(
            f"AgedAdamState.births[{axis!r}]: the plan's source has {plan.source.size(axis)} entries, found "
            f"{births.shape}"
        )
    if policy == "reset":
        return jnp.zeros(plan.target.size(axis), births.dtype)
    if axis not in plan.maps:
        return births
    axis_map = plan.maps[axis]
    inherited = jnp.take(births, jnp.asarray(axis_map.source))
    if plan.chosen[axis].carries_moments and policy == "carry":
        return inherited
    return jnp.where(axis_map.is_new, count.astype(births.dtype), inherited)


def _check_ages(plan: "GrowthPlan", state: Any, policy: str) -> None:
    """Without births an optimizer would correct moments of 0 as if they were as old as the others.

    Warns:
        MomentsWarning: under `carry`.

    Raises:
        GrowthError: under `age` and `asymmetric`, which ask for ages.
    """
    fields = _REGISTRY.get(type(state), {}).values()
    corrects = isinstance(state, optax.FactoredState) or (Part.COUNT in fields and 2 in fields)
    if not corrects or isinstance(state, AgedAdamState) or policy == "reset":
        return
    name = type(state).__name__
    if policy != "carry":
        raise GrowthError(
            f"the policy {policy!r} needs an optimizer that knows ages, but {name} has one count for all; use "
            "flm_jax.optimizer.adamw (aged_adam.scale_by_aged_adam), or the policy carry or reset"
        )
    if not all(operator.carries_moments for operator in plan.chosen.values()):
        warnings.warn(
            f"{name} has one count for all, so what is new starts with moments of 0 that are taken for old ones, and "
            "its first updates are too large (Adam: 6.5 times the learning rate with b2 = 0.999; Adafactor more); "
            "flm_jax.optimizer.adamw counts ages",
            MomentsWarning,
            stacklevel=2,
        )


def _check_averages(plan: "GrowthPlan", state: Any, policy: str) -> None:
    """`optax.ema` may stand before what scales gradients, or behind: its state does not say which.

    Warns:
        MomentsWarning: where it would matter.
    """
    if not isinstance(state, optax.EmaState) or policy == "reset":
        return
    rows = jax.tree.leaves(parameters.table(plan.target), is_leaf=parameters.is_parameter)
    if any(np.any(plan.gradient_weight(row) != 1) for row in rows):
        warnings.warn(
            "EmaState is grown as an average of updates that do not depend on the gradients' scale; if it averages "
            "gradients themselves, call flm_jax.grow.register_state(optax.EmaState, count=Part.COUNT, ema=1)",
            MomentsWarning,
            stacklevel=2,
        )


def _compare(grown: Any, like: Any) -> None:
    found, wanted = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (grown, like))
    if jax.tree.structure(grown) != jax.tree.structure(like):
        raise GrowthError(
            "the grown optimizer state has another structure than the target's optimizer: expected "
            f"{jax.tree.structure(like)}, found {jax.tree.structure(grown)}; both stages need the same optimizer"
        )
    for (path, one), (_, other) in zip(found, wanted, strict=True):
        if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
            raise GrowthError(
                f"the grown optimizer state{jax.tree_util.keystr(path)} should be {other.shape} {other.dtype}, found "
                f"{one.shape} {one.dtype}; both stages need the same optimizer"
            )
