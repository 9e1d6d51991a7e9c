"""What a run is made of at a step: parameters, optimizer state, and the number of steps taken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax import parameters, partitioning
from flm_jax.config import ModelConfig
from flm_jax.grow.leaf import is_hole
from flm_jax.model import LanguageModel


class TrainState(NamedTuple):
    """Everything that changes while training; the batch of the next step follows from `step` alone."""

    step: jax.Array  # int32, batches taken, skipped ones included
    params: Any
    opt_state: optax.OptState


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, nothing allocated: for restoring and for ahead-of-time compiling.

    Optimizer leaves in a parameter's shape are split as it is, and over the data axis besides
    (`partitioning.split_over_data`); counters, and means over an axis, are on every device.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = partitioning.param_shardings(config, mesh)
    params = jax.tree.map(
        lambda row, sharding: jax.ShapeDtypeStruct(row.shape(config), config.param_dtype, sharding=sharding),
        parameters.table(config),
        shardings,
        is_leaf=parameters.is_parameter,
    )

    def beside(leaf: Any, param: Any) -> Any:
        if is_hole(leaf):
            return leaf
        split = leaf.shape == param.shape
        sharding = partitioning.split_over_data(param.sharding, leaf.shape) if split else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = optax.tree_map_params(
        optimizer,
        beside,
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        is_leaf=is_hole,
    )
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), params, opt_state)


def create_state(
    model: LanguageModel, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
    """A fresh state, made in its shards; the same numbers on every mesh."""

    def create(rng: jax.Array) -> TrainState:
        variables = model.get_initial_variables(rng, {"decoder_input_tokens": (1, 1)})
        return TrainState(jnp.int32(0), variables["params"], optimizer.init(variables["params"]))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model.config, optimizer, mesh))
    return jax.jit(create, out_shardings=shardings)(jax.random.key(seed))
