"""The one kernel by which every array grows: gather along its axes, fill what is new, weigh."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.grow.axis_map import AxisMap
from flm_jax.grow.operators import Fill


def grow_array(
    old: jax.Array,
    axes: tuple[str, ...],
    maps: Mapping[str, AxisMap],
    fills: Mapping[str, Fill],
    weight: jax.Array | float,
    draw: Callable[[tuple[int, ...]], jax.Array],
) -> jax.Array:
    """Grows one array; pure, and the same on every mesh.

    Args:
        old: Its dimensions are named by
        axes: in order.
        maps: Of the axes that grow, in the order in which their fills are laid over each other.
        fills: Of the same axes.
        weight: Factor on everything.
        draw: Makes an initial array of the grown shape; called at most once.

    (1, 2) over `embed`, grown to 4 with `Fill.MEAN` and weight 2: (2, 4, 3, 3).
    """
    grown = old
    mine = {axis: maps[axis] for axis in maps if axis in axes}
    # `embed` is split over the most devices, which exchange what they hold: first, while the array is small.
    for axis in sorted(mine, key=lambda axis: axis != "embed"):
        grown = _extend(grown, axes.index(axis), mine[axis], fills[axis])
    fresh = draw(grown.shape) if any(fills[axis] is Fill.INIT for axis in mine) else None
    for axis, axis_map in mine.items():
        fill, dim = fills[axis], axes.index(axis)
        is_new = _along(axis_map.is_new, dim, grown.ndim)
        if fill is Fill.INIT:
            assert fresh is not None
            grown = jnp.where(is_new, fresh, grown)
        elif fill is Fill.ZERO:
            grown = jnp.where(is_new, jnp.zeros((), grown.dtype), grown)
        elif fill is Fill.MEAN:
            total = jnp.sum(jnp.where(is_new, 0, grown), axis=dim, keepdims=True)
            grown = jnp.where(is_new, total / len(axis_map.old_positions), grown)
    return grown * jnp.asarray(weight, grown.dtype)


def _extend(array: jax.Array, dim: int, axis_map: AxisMap, fill: Fill) -> jax.Array:
    old, new = array.shape[dim], len(axis_map.source)
    if axis_map.appends and fill is not Fill.COPY:
        # Padding moves a split axis from shard to shard; a gather would bring the whole axis to every device.
        widths = [(0, new - old if i == dim else 0) for i in range(array.ndim)]
        return jnp.pad(array, widths)
    return jnp.take(array, jnp.asarray(axis_map.source), axis=dim)


def _along(vector: np.ndarray, dim: int, ndim: int) -> np.ndarray:
    return vector.reshape([-1 if i == dim else 1 for i in range(ndim)])
