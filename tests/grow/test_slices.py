"""A layer grown by itself is the layer of the whole growth, to the bit: what growth from file to file rests on.

The whole growth runs as one program, each layer's by itself, both with XLA's usual optimizations.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.grow.leaf import (
    grow_moment,
    grow_parameter,
    layer_key,
    moment_slice,
    new_layer,
    parameter_slice,
)
from flm_jax.grow.planning import GrowthPlan, decide, parameter_key
from flm_jax.grow.rule import Fill
from flm_jax.parameters import LAYERS, Parameter, is_parameter, table
from tests.grow.growths import assert_equal, drawn_params, resized
from tests.models import LLAMA, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {"vocab_size": 16, "d_model": 6, "d_ff": 5, "head_dim": 4}
FLM = small_config(**SIZES, num_heads=2)
GROUPED = small_config(**SIZES, num_heads=4, **LLAMA)
WIDER = {"embed": 12, "heads": 3, "mlp": 8, "layers": 3}
# Every fill, noise and uneven shares, and every kind of new layer.
CASES: dict[str, Any] = {
    "lemon": (FLM, "lemon"),
    "copies": (
        GROUPED,
        {
            "heads": "net2net",
            "queries": "uneven",
            "mlp": "duplicate_noise",
            "embed": "uneven",
            "layers": "stack",
        },
    ),
    "random layers of copies": (
        FLM,
        {"heads": "duplicate_noise", "mlp": "net2net", "embed": "duplicate_noise", "layers": "zero"},
    ),
}
each_case = pytest.mark.parametrize("case", CASES)


def planned(case: str) -> GrowthPlan:
    source, method = CASES[case]
    return decide(source, resized(source, **WIDER, **({"queries": 3} if source.grouped else {})), method)


def layers_of(plan: GrowthPlan) -> Any:
    """The rows of what is stacked."""
    return {LAYERS: table(plan.target)[LAYERS]}


def all_at_once(plan: GrowthPlan, params: Any, rng: jax.Array) -> Any:
    """The stacked parameters as `GrowthPlan.params` makes them."""

    def one(path: Any, row: Parameter, old: jax.Array) -> jax.Array:
        return grow_parameter(plan, row, old, parameter_key(rng, path))

    @jax.jit
    def whole(stacked: Any) -> Any:
        return jax.tree_util.tree_map_with_path(one, layers_of(plan), stacked, is_leaf=is_parameter)

    return whole({LAYERS: params[LAYERS]})


def one_by_one(plan: GrowthPlan, params: Any, rng: jax.Array) -> Any:
    """The stacked parameters, as a program that sees one layer at a time makes them."""
    rows = layers_of(plan)

    def over_layers(function: Any, *trees: Any) -> Any:
        return jax.tree_util.tree_map_with_path(function, rows, *trees, is_leaf=is_parameter)

    @jax.jit
    def widened(layer: Any, number: jax.Array) -> Any:
        def one(path: Any, row: Parameter, old: jax.Array) -> jax.Array:
            return parameter_slice(plan, row, old, layer_key(parameter_key(rng, path), number))

        return over_layers(one, layer)

    @jax.jit
    def drawn(place: jax.Array) -> Any:
        return over_layers(
            lambda path, row: new_layer(plan, row, parameter_key(rng, path), place, jnp.float32)
        )

    fills = over_layers(lambda _, row: plan.rules(row)[LAYERS].fill)
    draws = Fill.INIT in jax.tree.leaves(fills)
    found = []
    for place in range(plan.target.num_layers):
        source = plan.maps[LAYERS].source[place]
        layer = jax.tree.map(lambda value: value[source], {LAYERS: params[LAYERS]})  # noqa: B023
        grown = widened(layer, source)
        if plan.maps[LAYERS].is_new[place]:
            grown = jax.tree.map(
                lambda fill, copy, fresh: {
                    Fill.COPY: copy,
                    Fill.ZERO: np.zeros_like(copy),
                    Fill.INIT: fresh,
                }[fill],
                fills,
                grown,
                drawn(place) if draws else grown,
            )
        found.append(grown)
    return jax.tree.map(lambda *layers: np.stack(layers), *found)


@each_case
def test_parameters_layer_by_layer(case: str) -> None:
    plan, rng = planned(case), jax.random.key(4)
    params = drawn_params(plan.source)
    found = one_by_one(plan, params, rng)
    assert_equal(found, jax.device_get(all_at_once(plan, params, rng)))
    # Not because all layers are the same.
    kernel = found[LAYERS]["attention"]["key_kernel"]
    assert not all(np.array_equal(kernel[0], layer) for layer in kernel[1:])


@each_case
@pytest.mark.parametrize("policy", ["carry", "age"])
def test_moments_layer_by_layer(case: str, policy: str) -> None:
    plan = planned(case)
    moments = {LAYERS: drawn_params(plan.source, 1)[LAYERS]}
    rows, carries, axis_map = layers_of(plan), policy == "carry", plan.maps[LAYERS]

    @jax.jit
    def whole(moments: Any) -> Any:
        return jax.tree.map(
            lambda row, old: grow_moment(plan, row, old, 2, carries), rows, moments, is_leaf=is_parameter
        )

    @jax.jit
    def widened(layer: Any) -> Any:
        return jax.tree.map(
            lambda row, old: moment_slice(plan, row, old, 2, carries), rows, layer, is_leaf=is_parameter
        )

    found = []
    for place, source in enumerate(axis_map.source):
        grown = widened(jax.tree.map(lambda value: value[source], moments))  # noqa: B023
        if axis_map.is_new[place] and not (carries and plan.chosen[LAYERS].carries_moments):
            grown = jax.tree.map(np.zeros_like, grown)
        found.append(grown)
    assert_equal(jax.tree.map(lambda *layers: np.stack(layers), *found), jax.device_get(whole(moments)))
