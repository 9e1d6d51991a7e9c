"""The growth of one array of a model or of its optimizer, and ways to go through all of them.

A plan is carried out leaf by leaf: `carry_out(function, plan, row, *arrays)` is called for each, and says where and
when that happens. `inline` simply calls, which is right under an enclosing `jax.jit`. `LeafByLeaf` compiles and runs
each by itself and gives up the old array at once, so that no device holds more than the old and the new shards.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from flm_jax import parameters, partitioning
from flm_jax.config import ModelConfig
from flm_jax.grow.errors import GrowthError
from flm_jax.grow.kernel import grow_array
from flm_jax.grow.operators import Fill
from flm_jax.parameters import Parameter

if TYPE_CHECKING:
    from flm_jax.grow.planning import GrowthPlan

CarryOut = Callable[..., jax.Array]


def grow_parameter(plan: "GrowthPlan", row: Parameter, old: jax.Array, key: jax.Array) -> jax.Array:
    """A grown parameter; `key` is its own."""
    draw = functools.partial(parameters.initializer(row, plan.target), key, dtype=old.dtype)
    fills = {axis: rule.fill for axis, rule in plan.rules(row).items()}
    return grow_array(old, row.axes, plan.maps, fills, plan.weight(row), draw)


def grow_moment(plan: "GrowthPlan", row: Parameter, old: jax.Array, weight: jax.Array | float) -> jax.Array:
    """A grown moment: new entries have none, but for copies that take their source's."""
    fills = {
        axis: Fill.COPY if operator.carries_moments else Fill.ZERO
        for axis, operator in plan.chosen.items()
        if axis in row.axes
    }
    return grow_array(old, row.axes, plan.maps, fills, weight, _no_draw)


def fresh_moment(plan: "GrowthPlan", row: Parameter, old: jax.Array) -> jax.Array:
    """A moment of an optimizer that begins anew."""
    return jnp.zeros(row.shape(plan.target), old.dtype)


def inline(function: CarryOut, plan: "GrowthPlan", row: Parameter, *arrays: Any) -> jax.Array:
    """Calls; for use under `jax.jit`."""
    return function(plan, row, *arrays)


class LeafByLeaf:
    """Runs every leaf's growth as a program of its own, and deletes the old array; leaves alike share a program.

    Args:
        mesh: On which the grown arrays are to lie, by the rules of `partitioning`.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._programs: dict[Any, Any] = {}

    def __call__(
        self, function: CarryOut, plan: "GrowthPlan", row: Parameter, old: jax.Array, *others: Any
    ) -> jax.Array:
        """The grown array; `old` is gone."""
        name = (function, plan, row)
        if name not in self._programs:
            self._programs[name] = jax.jit(
                functools.partial(function, plan, row),
                out_shardings=NamedSharding(self._mesh, partitioning.mesh_spec(*row.axes)),
            )
        grown = jax.block_until_ready(self._programs[name](old, *others))
        old.delete()
        return grown


def check_shapes(tree: Any, config: ModelConfig, what: str) -> None:
    """Refuses arrays that are not in the shape of the parameters of `config`.

    Raises:
        GrowthError: naming the first that differs.
    """
    rows = jax.tree_util.tree_flatten_with_path(parameters.table(config), is_leaf=parameters.is_parameter)[0]
    found = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
    if different := set(found) ^ {path for path, _ in rows}:
        names = ", ".join(sorted(map(jax.tree_util.keystr, different)))
        raise GrowthError(f"{what} are not those of the plan's model: {names} on one side only")
    for path, row in rows:
        if found[path].shape != row.shape(config):
            raise GrowthError(
                f"{what}{jax.tree_util.keystr(path)}: the plan's model has shape {row.shape(config)}, found "
                f"{found[path].shape}"
            )


def _no_draw(shape: tuple[int, ...]) -> jax.Array:
    raise AssertionError(f"moments are never drawn, asked for {shape}")
