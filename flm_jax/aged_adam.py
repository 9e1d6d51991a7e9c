"""Adam whose bias correction knows when each entry of a parameter was born.

Growth adds entries in mid-run, with moments of zero. Under one count for all, the correction of such moments is long
over: with b2 = 0.999 the new entries' first updates are up to 6.5 times the learning rate. Here an entry's age is the
count less its birth, and its moments are corrected by the age. What a growth adds is everything with a new index on
some axis, so a birth is kept for each index of each axis, and an entry is as young as the youngest of its indices.

d_model 2 grown to 3 after 100 updates and d_ff 2 to 3 after 150: births of `embed` (0, 0, 100), of `mlp` (0, 0, 150);
in a matrix (embed, mlp) the entry (2, 1) was born at 100 and (2, 2) at 150.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flm_jax import parameters
from flm_jax.config import ModelConfig, at_least_float32


class AgedAdamState(NamedTuple):
    """Adam's state with births."""

    count: jax.Array  # int32, updates made
    mu: Any
    nu: Any
    births: dict[str, jax.Array]  # axis -> int32 [size of the axis], the count at which each index came


def scale_by_aged_adam(
    config: ModelConfig,
    b1: float,
    b2: float,
    eps: Any,
    weight_decay: Any = None,
    rewarm: Callable[[jax.Array], jax.Array] | None = None,
    rewarm_since: int = 1,
) -> optax.GradientTransformation:
    """Like `optax.scale_by_adam`, and equal to it while all births are 0.

    Args:
        config: The model whose parameters are trained, for their axes.
        b1: Decay of the mean of gradients.
        b2: Decay of the mean of squared gradients.
        eps: Added to the root of the corrected second moment; for each parameter, in their tree's shape, a number or an
            array that broadcasts over it.
        weight_decay: Likewise, times the parameter added to its update; None for none.
        rewarm: Factor on the whole update of what growth has added, of its age in updates, from 1 on.
        rewarm_since: The update since which; what was born before has no factor.
    """
    rows = parameters.table(config)

    def init(params: optax.Params) -> AgedAdamState:
        axes = {axis for row in jax.tree.leaves(rows, is_leaf=parameters.is_parameter) for axis in row.axes}
        return AgedAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
            births={axis: jnp.zeros(config.size(axis), jnp.int32) for axis in sorted(axes)},
        )

    def update(
        updates: optax.Updates, state: AgedAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AgedAdamState]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)

        def one(row: parameters.Parameter, m: jax.Array, v: jax.Array, eps: Any) -> jax.Array:
            ages = {axis: (count - state.births[axis]).astype(at_least_float32(m.dtype)) for axis in row.axes}
            first, second = (_correction(row, ages, decay).astype(m.dtype) for decay in (b1, b2))
            return (m / first) / (jnp.sqrt(v / second) + jnp.asarray(eps, m.dtype))

        def warmed(row: parameters.Parameter, update: jax.Array) -> jax.Array:
            assert rewarm is not None
            births = _along(row, state.births)
            born = functools.reduce(jnp.maximum, births)
            factor = jnp.where(
                born >= max(rewarm_since, 1), rewarm((count - born).astype(at_least_float32(update.dtype))), 1
            )
            return update * factor.astype(update.dtype)

        scaled = jax.tree.map(one, rows, mu, nu, eps, is_leaf=parameters.is_parameter)
        if weight_decay is not None:
            assert params is not None, "weight decay needs the parameters"
            scaled = jax.tree.map(
                lambda update, decay, param: update + jnp.asarray(decay, update.dtype) * param,
                scaled,
                weight_decay,
                params,
            )
        if rewarm is not None:
            scaled = jax.tree.map(warmed, rows, scaled, is_leaf=parameters.is_parameter)
        return scaled, AgedAdamState(count, mu, nu, state.births)

    return optax.GradientTransformation(init, update)


def _correction(row: parameters.Parameter, ages: dict[str, jax.Array], decay: float) -> jax.Array:
    """1 - decay^age of every entry, broadcastable to the parameter.

    It grows with the age, so the youngest index decides by a minimum, and powers are taken of vectors only.
    """
    corrections = {axis: 1 - decay ** ages[axis] for axis in row.axes}
    return functools.reduce(jnp.minimum, _along(row, corrections))


def _along(row: parameters.Parameter, vectors: dict[str, jax.Array]) -> list[jax.Array]:
    """A vector for each axis of the parameter, each along its own dimension."""
    return [
        vectors[axis].reshape([-1 if i == dim else 1 for i in range(len(row.axes))])
        for dim, axis in enumerate(row.axes)
    ]
