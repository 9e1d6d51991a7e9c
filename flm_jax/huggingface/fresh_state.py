"""The state of a run that begins with given parameters: an AdamW that has seen no gradient, at the parameters' step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax import optimizer as optimizers
from flm_jax import parameters, partitioning
from flm_jax.aged_adam import AgedAdamState
from flm_jax.grow.lineage import Lineage
from flm_jax.training.metadata import Metadata
from flm_jax.training.state import TrainState, abstract_state
from flm_jax.training.step import skipping_non_finite
from flm_jax.training.streaming import LazyArray


def fresh_state(metadata: Metadata, step: int, params: Any) -> TrainState:
    """What `optimizer.adamw` begins with, moments as `LazyArray`s of zeros.

    At a step beyond 0 its counters say that so many updates were made, which learning-rate schedules read, and all
    entries are born there, so that Adam's bias correction begins anew as it should.

    Args:
        metadata: Of the checkpoint that it becomes.
        step: Likewise.
        params: Arrays, or `LazyArray`s, in the tree of the parameters.
    """
    config = metadata.config
    multipliers = Lineage.from_json(metadata.growth_record).multipliers(config)
    optimizer = skipping_non_finite(optimizers.adamw(config, lambda count: 0.0, multipliers=multipliers))
    mesh = partitioning.MeshShape(data=1).build(jax.devices()[:1])
    like = abstract_state(config, optimizer, mesh).opt_state

    def zeros(held: Any, row: parameters.Parameter) -> LazyArray:
        stacked = parameters.LAYERS in row.axes
        shape = held.shape[1:] if stacked else held.shape
        return LazyArray(held.shape, held.dtype, stacked, lambda index: np.zeros(shape, held.dtype))

    def small() -> Any:
        """What is not in the parameters' shape; the rest is not computed."""
        empty = jax.tree.map(
            lambda row: jnp.zeros(row.shape(config), config.param_dtype),
            table,
            is_leaf=parameters.is_parameter,
        )
        return optax.tree_map_params(optimizer, lambda held: None, optimizer.init(empty))

    table = parameters.table(config)
    counters = iter(jax.tree.leaves(_at(jax.jit(small)(), step)))
    opt_state = optax.tree_map_params(
        optimizer, zeros, like, table, transform_non_params=lambda held: np.asarray(next(counters))
    )
    return TrainState(np.asarray(step, np.int32), params, opt_state)  # type: ignore[arg-type]


def _at(state: Any, step: int) -> Any:
    """With `step` updates made, and everything born there."""

    def known(node: Any) -> bool:
        return isinstance(node, AgedAdamState | optax.ScaleByScheduleState)

    def moved(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=jnp.full_like(node.count, step))
        if isinstance(node, AgedAdamState):
            births = jax.tree.map(lambda born: jnp.full_like(born, step), node.births)
            return node._replace(count=jnp.full_like(node.count, step), births=births)
        return node

    return jax.tree.map(moved, state, is_leaf=known)
