"""The one kernel by which every array grows: gather along its axes, fill what is new, weigh.

It grows an array without its axis of layers, or one layer of it, so that layers can be grown together under `jax.vmap`
or one after the other from a file, to the same bits.
"""

import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.grow.axis_map import AxisMap, along
from flm_jax.grow.rule import Fill, Rule

Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def grow_array(
    old: jax.Array,
    axes: tuple[str, ...],
    maps: Mapping[str, AxisMap],
    rules: Mapping[str, Rule],
    key: jax.Array | None = None,
    draw: Draw | None = None,
    noise: Draw | None = None,
) -> jax.Array:
    """Grows one array; pure, and the same on every mesh.

    Args:
        old: Its dimensions are named by
        axes: in order.
        maps: Of the axes that grow, in the order in which their fills are laid over each other.
        rules: Of those of them that the array has.
        key: Of its draws, one for each axis that is filled with draws or gets noise.
        draw: `draw(key, shape)` makes initial values; only what is new is drawn.
        noise: `noise(key, shape)` makes the initialisation's noise, of mean 0.

    (1, 2) over `embed`, grown to 4 with `Fill.MEAN` and weight 2: (2, 4, 3, 3).
    """
    grown = old
    for axis, axis_map in maps.items():
        if axis not in rules:
            continue
        dim, rule = axes.index(axis), rules[axis]
        slab = None
        if rule.fill is Fill.INIT:
            assert key is not None and draw is not None, "moments are never drawn"
            shape = list(grown.shape)
            shape[dim] = int(np.sum(axis_map.is_new))
            slab = draw(_key(key, axis), tuple(shape))
        grown = _extend(grown, dim, axis_map, rule.fill, slab)
        if isinstance(rule.weight, np.ndarray) or rule.weight != 1:
            weight = np.asarray(rule.weight)
            grown = grown * jnp.asarray(
                along(weight, dim, grown.ndim) if weight.ndim else weight, grown.dtype
            )
        if rule.noise:
            assert key is not None and noise is not None, "moments have no noise"
            drawn = rule.noise * noise(_key(key, axis + " noise"), grown.shape)
            grown = grown + _sums_to_zero(drawn, dim, axis_map)
    return grown


def _key(key: jax.Array, name: str) -> jax.Array:
    # Python's own hash differs from process to process.
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _extend(array: jax.Array, dim: int, axis_map: AxisMap, fill: Fill, slab: jax.Array | None) -> jax.Array:
    """Lengthens one dimension; `slab` holds what `Fill.INIT` puts into the new entries, in their order."""
    is_new = along(axis_map.is_new, dim, array.ndim)
    if fill is Fill.COPY:
        return jnp.take(array, jnp.asarray(axis_map.source), axis=dim)
    grown = _place(array, dim, axis_map, new=False)
    if fill is Fill.INIT:
        assert slab is not None
        return jnp.where(is_new, _place(slab, dim, axis_map, new=True), grown)
    if fill is Fill.MEAN:
        mean = _sum(array, dim) / array.shape[dim]
        return jnp.where(is_new, mean, grown)
    # Padding has put zeros there already.
    return grown if axis_map.appends else jnp.where(is_new, jnp.zeros((), grown.dtype), grown)


def _sum(array: jax.Array, dim: int) -> jax.Array:
    """Over one dimension, which is kept, in an order that is written down.

    A reduction adds up in the order that suits the shape, the layout and the mesh; a layer by itself would differ in
    the last bit from the same layer among others.
    """
    length = array.shape[dim]
    width = 1 << (length - 1).bit_length()
    array = jnp.pad(array, [(0, width - length if i == dim else 0) for i in range(array.ndim)])
    while width > 1:
        width //= 2
        array = jax.lax.slice_in_dim(array, 0, width, axis=dim) + jax.lax.slice_in_dim(
            array, width, 2 * width, axis=dim
        )
    return array


def _place(part: jax.Array, dim: int, axis_map: AxisMap, new: bool) -> jax.Array:
    """`part`, the old or the new entries, where they stand in the grown dimension; anything elsewhere."""
    if axis_map.appends:
        # Padding moves a split axis from shard to shard; a gather would bring the whole axis to every device.
        length, total = part.shape[dim], len(axis_map.source)
        width = (total - length, 0) if new else (0, total - length)
        return jnp.pad(part, [width if i == dim else (0, 0) for i in range(part.ndim)])
    index = np.cumsum(axis_map.is_new) - 1 if new else axis_map.source
    return jnp.take(part, jnp.asarray(np.maximum(index, 0)), axis=dim)


def _sums_to_zero(noise: jax.Array, dim: int, axis_map: AxisMap) -> jax.Array:
    """`noise` less its mean over the copies of each source, along one dimension."""
    copies = along(axis_map.copies, dim, noise.ndim)
    first = jnp.moveaxis(noise, dim, 0)
    total = jax.ops.segment_sum(first, jnp.asarray(axis_map.source), int(axis_map.source.max()) + 1)
    mean = jnp.moveaxis(jnp.take(total, jnp.asarray(axis_map.source), axis=0), 0, dim) / copies.astype(
        noise.dtype
    )
    # What has no copy but itself gets none, not a rounding error.
    return jnp.where(copies > 1, noise - mean, jnp.zeros((), noise.dtype))
