"""Growth on a mesh gives the same numbers as on one device."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax import ModelConfig, grow, optimizer
from flm_jax.grow.leaf import LeafByLeaf
from flm_jax.grow.planning import GrowthPlan
from flm_jax.grow.rule import Fill
from flm_jax.parameters import Parameter
from flm_jax.partitioning import MeshShape
from flm_jax.training.state import TrainState, abstract_state
from tests.grow.growths import assert_equal, drawn_params, over_rows, shardings_of, state_layout
from tests.models import small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(5)
SOURCE = small_config(vocab_size=32, d_model=16, num_heads=8, head_dim=2, d_ff=16)
TARGET = dataclasses.replace(SOURCE, d_model=24, num_heads=16, d_ff=24, num_layers=3)


def state_of(config: ModelConfig) -> TrainState:
    """After an update that is made up: moments of every size, and a count."""
    params = drawn_params(config)
    state = optimizer.adamw(config, 1e-3).init(params)
    drawn = [drawn_params(config, seed) for seed in (1, 2)]
    adam = state[1]._replace(count=jnp.int32(7), mu=drawn[0], nu=jax.tree.map(jnp.square, drawn[1]))
    return TrainState(jnp.int32(7), params, (state[0], adam, *state[2:]))


@cache
def on_one_device(method: str) -> TrainState:
    return jax.jit(grow.plan(SOURCE, TARGET, method))(state_of(SOURCE), KEY)


def grown_on(mesh: MeshShape, method: str) -> TrainState:
    plan = grow.plan(SOURCE, TARGET, method)
    state = jax.device_put(state_of(SOURCE), shardings_of(state_layout(SOURCE, mesh)))
    return jax.jit(plan, out_shardings=shardings_of(state_layout(plan.target, mesh)))(state, KEY)


def assert_same_bits(found: TrainState, expected: TrainState, plan: GrowthPlan) -> None:
    """But for means over the residual stream, whose sum over devices has another order: those to rounding."""

    def compare(row: Parameter, a: np.ndarray, b: np.ndarray) -> None:
        rule = plan.rules(row).get("embed")
        if rule is not None and rule.fill is Fill.MEAN:
            # One unit in the last place of the largest number that the mean was taken of, which it may be far below.
            dim, old = row.axes.index("embed"), plan.source.d_model
            largest = np.max(np.abs(np.take(b, range(old), axis=dim)), axis=dim, keepdims=True)
            assert np.all(np.abs(a - b) <= np.spacing(largest))
        else:
            np.testing.assert_array_equal(a, b)

    over_rows(compare, plan.target, found.params, expected.params)
    assert_equal((found.step, found.opt_state), (expected.step, expected.opt_state))


@pytest.mark.parametrize(
    ("method", "mesh"),
    [("msg", MeshShape(1, 4, 2)), ("msg", MeshShape(2, 2, 2)), ("lemon", MeshShape(1, 8, 1))],
    ids=str,
)
def test_every_mesh_gives_the_same_growth(method: str, mesh: MeshShape) -> None:
    found = grown_on(mesh, method)
    kernel = found.params["layers"]["mlp"]["wi_kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 24 // mesh.fsdp, 24 // mesh.tensor)
    assert_same_bits(
        jax.device_get(found),
        jax.device_get(on_one_device(method)),
        grow.plan(SOURCE, TARGET, method),
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["", "other-order"])
@pytest.mark.parametrize(
    ("method", "shape"),
    [("msg", MeshShape(1, 4, 2)), ("lemon", MeshShape(1, 4, 2)), ("msg", MeshShape(4, 2, 1))],
)
def test_leaf_by_leaf_is_the_same_growth_and_frees_what_was(
    method: str, shape: MeshShape, reverse: bool
) -> None:
    """From one mesh onto another, as a run does it between stages; its devices may lie in another order."""
    plan = grow.plan(SOURCE, TARGET, method)
    state = jax.device_put(state_of(SOURCE), shardings_of(state_layout(SOURCE, MeshShape(2, 2, 2))))
    mesh = shape.build(jax.devices()[::-1] if reverse else None)
    found = plan(state, KEY, "carry", LeafByLeaf(mesh))
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert large and all(leaf.is_deleted() for leaf in large)
    wanted = shardings_of(abstract_state(plan.target, optimizer.adamw(plan.target, 1e-3), mesh))
    for part in ("params", "mu", "nu"):
        leaves, shardings = (
            jax.tree.leaves(optax.tree_utils.tree_get(tree, part)) for tree in (found, wanted)
        )
        for leaf, sharding in zip(leaves, shardings, strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert_same_bits(jax.device_get(found), jax.device_get(on_one_device(method)), plan)


@pytest.mark.parametrize("method", ["msg", "lemon"])
def test_without_jit_it_is_the_same_growth(method: str) -> None:
    plain = grow.plan(SOURCE, TARGET, method)(state_of(SOURCE), KEY)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), plain, on_one_device(method)
    )
