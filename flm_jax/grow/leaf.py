"""The growth of one array of a model or of its optimizer, and ways to go through all of them.

A plan is carried out leaf by leaf: `carry_out(function, plan, row, *arrays)` is called for each, and says where and
when that happens. `inline` simply calls, which is right under an enclosing `jax.jit`. `LeafByLeaf` compiles and runs
each by itself and gives up the old array at once, so that no device holds more than the old and the new shards.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from flm_jax import parameters, partitioning
from flm_jax.config import ModelConfig
from flm_jax.grow.errors import GrowthError
from flm_jax.grow.kernel import grow_array
from flm_jax.grow.rule import Fill, Rule
from flm_jax.parameters import LAYERS, Parameter

if TYPE_CHECKING:
    from flm_jax.grow.planning import GrowthPlan

CarryOut = Callable[..., jax.Array]


def grow_parameter(plan: "GrowthPlan", row: Parameter, old: jax.Array, key: jax.Array) -> jax.Array:
    """A grown parameter; `key` is its own."""
    if LAYERS not in row.axes:
        return parameter_slice(plan, row, old, key)
    wide = jax.vmap(functools.partial(_parameter_layer, plan, row), (0, 0, None))(
        old, jnp.arange(old.shape[0]), key
    )

    def draw(places: np.ndarray) -> jax.Array:
        return jax.vmap(lambda place: new_layer(plan, row, key, place, old.dtype))(jnp.asarray(places))

    return _deepened(plan, wide, _layers_fill(plan, row), draw)


def parameter_slice(plan: "GrowthPlan", row: Parameter, old: jax.Array, key: jax.Array) -> jax.Array:
    """A grown parameter without layers, or one layer of a stacked one; `key` is the parameter's, or the layer's."""
    row = row.unstacked()
    start = parameters.initializer(row, plan.target)
    std = row.init_std(plan.target)
    return grow_array(
        old,
        row.axes,
        plan.maps,
        plan.rules(row),
        key,
        draw=lambda key, shape: start(key, shape, old.dtype),
        noise=lambda key, shape: std * jax.random.normal(key, shape, old.dtype),
    )


def layer_key(key: jax.Array, source: Any) -> jax.Array:
    """Of what is drawn for an old layer, from the parameter's key and the layer's old number."""
    return jax.random.fold_in(key, 2 * source)


def new_layer(plan: "GrowthPlan", row: Parameter, key: jax.Array, place: Any, dtype: Any) -> jax.Array:
    """A layer that is drawn as a whole, from the parameter's key and the layer's new number.

    It has the weight that wider norms ask of every gain, but no share in the splits of what is copied: the draws are
    those of the new width already.
    """
    key = jax.random.fold_in(key, 2 * place + 1)
    rules = [rule for axis, rule in plan.rules(row).items() if axis != LAYERS]
    weight = math.prod(rule.weight for rule in rules if rule.fill is not Fill.COPY)
    row = row.unstacked()
    return weight * parameters.initializer(row, plan.target)(key, row.shape(plan.target), dtype)


def grow_moment(
    plan: "GrowthPlan", row: Parameter, old: jax.Array, degree: int, carries_copies: bool = True
) -> jax.Array:
    """A grown moment of the gradient: new entries have none, but for copies that take their source's.

    Args:
        plan: The growth.
        row: Of the parameter.
        old: In its shape.
        degree: The power of the gradient that it averages.
        carries_copies: Whether copies may take their source's.
    """
    if LAYERS not in row.axes:
        return moment_slice(plan, row, old, degree, carries_copies)
    wide = jax.vmap(lambda layer: moment_slice(plan, row, layer, degree, carries_copies))(old)
    return _deepened(plan, wide, _moment_layers_fill(plan, row, degree, carries_copies), None)


def moment_slice(
    plan: "GrowthPlan", row: Parameter, old: jax.Array, degree: int, carries_copies: bool
) -> jax.Array:
    """A grown moment without layers, or one layer of a stacked one."""
    row = row.unstacked()
    return grow_array(old, row.axes, plan.maps, _moment_rules(plan, row, degree, carries_copies))


def fresh_moment(plan: "GrowthPlan", row: Parameter, old: jax.Array) -> jax.Array:
    """A moment of an optimizer that begins anew."""
    return jnp.zeros(row.shape(plan.target), old.dtype)


def _moment_rules(plan: "GrowthPlan", row: Parameter, degree: int, carries_copies: bool) -> dict[str, Rule]:
    return {
        axis: Rule(
            Fill.COPY if plan.chosen[axis].carries_moments and carries_copies else Fill.ZERO,
            rule.gradient_weight**degree,
        )
        for axis, rule in plan.rules(row).items()
    }


def _deepened(
    plan: "GrowthPlan",
    wide: jax.Array,
    fill: Fill | None,
    draw: Callable[[np.ndarray], jax.Array] | None,
) -> jax.Array:
    """More layers, of layers that are wide enough already: what is new is theirs alone to decide."""
    if fill is None:
        return wide
    axis_map = plan.maps[LAYERS]
    grown = jnp.take(wide, jnp.asarray(axis_map.source), axis=0)
    if fill is Fill.COPY:
        return grown
    places = np.flatnonzero(axis_map.is_new)
    if fill is Fill.ZERO:
        return grown.at[places].set(0)
    assert fill is Fill.INIT and draw is not None, "layers are copied, zero or drawn, and moments never drawn"
    return grown.at[places].set(draw(places))


def _parameter_layer(
    plan: "GrowthPlan", row: Parameter, old: jax.Array, number: Any, key: jax.Array
) -> jax.Array:
    return parameter_slice(plan, row, old, layer_key(key, number))


def _layers_fill(plan: "GrowthPlan", row: Parameter) -> Fill | None:
    """What new layers of a stacked parameter hold; None where there are none."""
    return plan.rules(row)[LAYERS].fill if LAYERS in plan.maps else None


def _moment_layers_fill(plan: "GrowthPlan", row: Parameter, degree: int, carries_copies: bool) -> Fill | None:
    return _moment_rules(plan, row, degree, carries_copies)[LAYERS].fill if LAYERS in plan.maps else None


@dataclasses.dataclass(frozen=True)
class Layerwise:
    """How what one of the functions above does to a stacked array is done to one layer of it, to the same bits.

    Attributes:
        fill: `fill(plan, row, **static)`: what new layers hold, None where there are none.
        wide: `wide(plan, row, old, number, *key, **static)`: the old layer of this number, grown.
        fresh: `fresh(plan, row, place, *key, dtype=)`: a layer that is drawn, at a place among the new.
    """

    fill: Callable[..., Fill | None]
    wide: Callable[..., jax.Array]
    fresh: Callable[..., jax.Array] | None = None


LAYERWISE = {
    grow_parameter: Layerwise(
        _layers_fill,
        _parameter_layer,
        lambda plan, row, place, key, dtype: new_layer(plan, row, key, place, dtype),
    ),
    grow_moment: Layerwise(
        _moment_layers_fill,
        lambda plan, row, old, number, **static: moment_slice(plan, row, old, **static),
    ),
    fresh_moment: Layerwise(
        lambda plan, row: Fill.COPY if LAYERS in plan.maps else None,
        lambda plan, row, old, number: fresh_moment(plan, row.unstacked(), old),
    ),
}


def inline(function: CarryOut, plan: "GrowthPlan", row: Parameter, *arrays: Any, **static: Any) -> jax.Array:
    """Calls; for use under `jax.jit`."""
    return function(plan, row, *arrays, **static)


class LeafByLeaf:
    """Runs every leaf's growth as a program of its own, and deletes the old array; leaves alike share a program.

    Args:
        mesh: On which the grown arrays are to lie, by the rules of `partitioning`.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._programs: dict[Any, Any] = {}

    def __call__(
        self,
        function: CarryOut,
        plan: "GrowthPlan",
        row: Parameter,
        old: jax.Array,
        *others: Any,
        **static: Any,
    ) -> jax.Array:
        """The grown array; `old` is gone."""
        name = (function, plan, row, tuple(static.items()))
        if name not in self._programs:
            carry_out = functools.partial(function, plan, row, **static)
            sharding = NamedSharding(self._mesh, partitioning.mesh_spec(*row.axes))
            if function is not grow_parameter:  # the optimizer's, which lies in more parts
                shape = jax.eval_shape(carry_out, old, *others).shape
                sharding = partitioning.split_over_data(sharding, shape)
            self._programs[name] = jax.jit(carry_out, out_shardings=sharding)
        moved = self._in_order(old)
        grown = jax.block_until_ready(self._programs[name](moved, *others))
        moved.delete()
        old.delete()
        return grown

    def _in_order(self, old: jax.Array) -> jax.Array:
        """`old` in the same parts, on the devices in the new mesh's order: no program takes two orders."""
        sharding = old.sharding
        if not isinstance(sharding, NamedSharding):
            return old
        before, devices = sharding.mesh.devices, self._mesh.devices
        if before.size != devices.size or list(before.flat) == list(devices.flat):
            return old
        mesh = Mesh(devices.reshape(before.shape), sharding.mesh.axis_names)
        return jax.device_put(old, NamedSharding(mesh, sharding.spec))


def is_hole(node: Any) -> bool:
    """Whether `node` of an optimizer's state stands for what another part of it has: parameters, one or a branch."""
    return isinstance(node, optax.MaskedNode)


def check_shapes(tree: Any, config: ModelConfig, what: str, with_holes: bool = False) -> None:
    """Refuses arrays that are not in the shape of the parameters of `config`.

    `with_holes` allows parameters to be missing: those that another part of the optimizer has.

    Raises:
        GrowthError: naming the first that differs.
    """
    rows = jax.tree_util.tree_flatten_with_path(parameters.table(config), is_leaf=parameters.is_parameter)[0]
    found = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
    expected = {path for path, _ in rows}
    if different := set(found) - expected if with_holes else set(found) ^ expected:
        names = ", ".join(sorted(map(jax.tree_util.keystr, different)))
        raise GrowthError(f"{what} are not those of the plan's model: {names} on one side only")
    for path, row in rows:
        if path in found and found[path].shape != row.shape(config):
            raise GrowthError(
                f"{what}{jax.tree_util.keystr(path)}: the plan's model has shape {row.shape(config)}, found "
                f"{found[path].shape}"
            )
