"""Growth of Adafactor's second moments, which are kept as means over two of a matrix's axes (Shazeer and Stern 2018).

With the means r over one axis and c over the other, the moment is r_i c_j / mean(r). It is written out, grown as every
second moment is, and averaged again: over the axes that the target's sizes ask for, which need not be the source's.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax import parameters
from flm_jax.grow.errors import GrowthError
from flm_jax.grow.leaf import fresh_moment, grow_moment, is_hole
from flm_jax.parameters import Parameter

if TYPE_CHECKING:
    from flm_jax.grow.planning import GrowthPlan


def grow_factored(
    plan: "GrowthPlan", state: optax.FactoredState, policy: str, like: Any
) -> optax.FactoredState:
    """The state of the grown parameters.

    Without `like` what was factored stays factored and what was not does not; an optimizer that factors from a least
    size on may factor more of the target.
    """
    rows = parameters.table(plan.target)

    def one(v: Any, row: Parameter, v_row: Any, v_col: Any, wanted: Any = None) -> tuple[Any, Any, Any]:
        if is_hole(v):
            return v_row, v_col, v
        factored = v_row.shape != (1,) if wanted is None else wanted.shape != (1,)
        return _grow_one(plan, row, v_row, v_col, v, policy, factored)

    trees = [state.v, rows, state.v_row, state.v_col]
    if isinstance(like, optax.FactoredState):
        trees.append(like.v_row)
    triples = jax.tree.map(one, *trees, is_leaf=is_hole)
    v_row, v_col, v = (
        jax.tree.map(lambda triple, i=i: triple[i], triples, is_leaf=lambda node: type(node) is tuple)
        for i in range(3)
    )
    count = jnp.zeros_like(state.count) if policy == "reset" else state.count
    return optax.FactoredState(count, v_row, v_col, v)


def _grow_one(
    plan: "GrowthPlan",
    row: Parameter,
    v_row: jax.Array,
    v_col: jax.Array,
    v: jax.Array,
    policy: str,
    factored: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    shape = row.shape(plan.source)
    v_row, v_col, v = (jnp.asarray(moment) for moment in (v_row, v_col, v))
    whole = v if v.shape == shape else _written_out(shape, v_row, v_col)
    if whole.shape != shape:
        raise GrowthError(
            f"FactoredState of a parameter with axes {row.axes}: expected moments of {shape}, found {v.shape}, or "
            f"means of {v_row.shape} and {v_col.shape}"
        )
    if policy == "reset":
        whole = fresh_moment(plan, row, whole)
    else:
        whole = grow_moment(plan, row, whole, degree=2, carries_copies=policy == "carry")

    def nothing() -> jax.Array:
        return jnp.zeros((1,), whole.dtype)  # an array of its own each time: a run donates them

    if not factored:
        return nothing(), nothing(), whole
    second, largest = _factored_axes(whole.shape)
    return whole.mean(axis=largest), whole.mean(axis=second), nothing()


def _written_out(shape: tuple[int, ...], v_row: jax.Array, v_col: jax.Array) -> jax.Array:
    """From the means over the largest axis, `v_row`, and over the second largest, `v_col`."""
    second, largest = _factored_axes(shape)
    if (*np.delete(shape, largest),) != v_row.shape or (*np.delete(shape, second),) != v_col.shape:
        return jnp.zeros(())  # of other sizes, which the caller says
    rows, columns = jnp.expand_dims(v_row, largest), jnp.expand_dims(v_col, second)
    mean = jnp.mean(rows, axis=second, keepdims=True)
    return jnp.where(mean > 0, rows * columns / jnp.where(mean > 0, mean, 1), 0)


def _factored_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The second largest and the largest axis, in optax's order among equals."""
    order = np.argsort(shape)
    return int(order[-2]), int(order[-1])
