"""Small growths that several tests share, and the way back from a grown tree to the old entries."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import ModelConfig, optimizer, parameters
from flm_jax.grow import GrowthPlan
from flm_jax.grow.operators import AXES
from flm_jax.parameters import Parameter
from flm_jax.partitioning import MeshShape
from flm_jax.training.state import TrainState, abstract_state
from tests.models import LLAMA, small_config

# Every axis grows, none to a multiple of what it was.
ALL_AXES: dict[str, Any] = {"d_model": 36, "num_heads": 5, "d_ff": 56, "num_layers": 3}


def config64(**changes: Any) -> ModelConfig:
    """`small_config` in float64, narrow; to be used under `jax.enable_x64`."""
    sizes = {"vocab_size": 48, "d_model": 24, "num_heads": 3, "d_ff": 40, "max_length": 32}
    return small_config(**{**sizes, "dtype": "float64", "param_dtype": "float64", **changes})


def llama64(**changes: Any) -> ModelConfig:
    """RMSNorm, SwiGLU, two query heads for each of two key-value heads, untied, no biases; in float64."""
    return config64(**{**LLAMA, "num_heads": 4, "head_dim": 4, **changes})


def resized(source: ModelConfig, **sizes: int) -> ModelConfig:
    """`source` with these sizes of axes: `resized(source, embed=32, queries=2)`."""
    of = {axis: sizes.get(axis, source.size(axis)) for axis in AXES}
    return dataclasses.replace(
        source,
        vocab_size=of["vocab"],
        d_model=of["embed"],
        d_ff=of["mlp"],
        num_layers=of["layers"],
        num_heads=of["heads"] * of["queries"],
        num_kv_heads=of["heads"] if source.grouped else None,
    )


def grown_config(source: ModelConfig, **sizes: Any) -> ModelConfig:
    """`source` with these sizes, or with every axis grown."""
    return dataclasses.replace(source, **(sizes or ALL_AXES))


def drawn_params(config: ModelConfig, seed: int = 0) -> Any:
    """`random_params` without the model's own initialisation, whose compilation takes seconds at every new size."""
    rng = np.random.default_rng(seed)

    def draw(row: Parameter) -> jax.Array:
        gain = row.role in (parameters.Role.NORM_GAIN, parameters.Role.READOUT_GAIN)
        spread = 0.3 if "norm" in row.role.value or "readout" in row.role.value else 0.2
        return jnp.asarray(gain + spread * rng.standard_normal(row.shape(config)), config.param_dtype)

    return over_rows(draw, config)


def over_rows(function: Any, config: ModelConfig, *trees: Any) -> Any:
    """`jax.tree.map` whose first tree is the parameter table."""
    return jax.tree.map(function, parameters.table(config), *trees, is_leaf=parameters.is_parameter)


def old_entries(plan: GrowthPlan, tree: Any) -> Any:
    """What of a tree in the shape of the grown parameters was there before, in its old order."""

    def back(row: Parameter, value: Any) -> np.ndarray:
        kept = np.asarray(value)
        for dim, axis in enumerate(row.axes):
            if axis in plan.maps:
                kept = np.take(kept, plan.maps[axis].old_positions, axis=dim)
        return kept

    return over_rows(back, plan.target, tree)


def is_new(plan: GrowthPlan) -> Any:
    """For every entry of the grown parameters whether the growth has added it."""

    def one(row: Parameter) -> np.ndarray:
        found = np.zeros(row.shape(plan.target), bool)
        for dim, axis in enumerate(row.axes):
            if axis in plan.maps:
                found |= plan.maps[axis].is_new.reshape([-1 if i == dim else 1 for i in range(found.ndim)])
        return found

    return over_rows(one, plan.target)


def with_weights(plan: GrowthPlan, params: Any) -> Any:
    """The old parameters times what the plan multiplies each of them by."""
    return over_rows(
        lambda row, value: np.asarray(value) * of_old(plan, row, plan.weight(row)), plan.target, params
    )


def of_old(plan: GrowthPlan, row: Parameter, factor: Any) -> Any:
    """Of a factor on the grown parameter, a number or an array, the part on the old entries."""
    for dim, axis in enumerate(row.axes):
        if axis in plan.maps and np.ndim(factor) and factor.shape[dim] > 1:
            factor = np.take(factor, plan.maps[axis].old_positions, axis=dim)
    return factor


def largest_difference(one: Any, other: Any) -> float:
    """Of two trees, in absolute value."""
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def assert_equal(one: Any, other: Any) -> None:
    """Two trees are the same in every bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def state_layout(config: ModelConfig, mesh: MeshShape) -> TrainState:
    """Shapes and shardings of a run's state under our AdamW, on the first devices."""
    built = mesh.build(jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    return abstract_state(config, optimizer.adamw(config, 1e-3), built)


def shardings_of(state: TrainState) -> Any:
    """Of each leaf; what `out_shardings` wants."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
