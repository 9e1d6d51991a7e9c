"""Pipeline stages' own backward pass: the gradients of automatic differentiation, in less memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import LanguageModel, partitioning
from flm_jax.grow.schedule import Route, Stage
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.partitioning import MeshShape
from flm_jax.training.leg import check_mesh
from flm_jax.training.step import gradients
from tests.models import random_batch, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = small_config(d_model=32, num_layers=8, num_heads=8, head_dim=4, d_ff=48)
MASK = GrowthMask(
    embed=jnp.linspace(0.5, 1, 32), mlp=jnp.linspace(0, 1, 48), layers=jnp.linspace(0.1, 0.8, 8)
)


def by_params_and_mask(
    shape: MeshShape | None, num_microbatches: int, **changes: Any
) -> tuple[dict[str, Any], GrowthMask]:
    """Gradients of the summed loss to the parameters and to what a growth mask multiplies with."""
    config = small_config(**(CONFIG.to_json() | changes))
    model, batch, params = LanguageModel(config), random_batch(config, 12, 32), random_params(config)

    def loss(params: Any, mask: GrowthMask, batch: Any) -> jax.Array:
        return model.token_sums(params, batch, mask, num_microbatches).total

    differentiate = jax.jit(jax.grad(loss, argnums=(0, 1)))
    if shape is None:
        return differentiate(params, MASK, batch)
    mesh = shape.build(jax.devices()[: shape.data * shape.fsdp * shape.tensor * shape.sequence * shape.stage])
    with jax.set_mesh(mesh), partitioning.axis_rules():
        placed = jax.device_put(params, partitioning.param_shardings(config, mesh))
        return differentiate(placed, MASK, jax.device_put(batch, partitioning.batch_sharding(mesh)))


@functools.cache
def alone() -> Any:
    return by_params_and_mask(None, 1)


@pytest.mark.parametrize("remat", ["none", "dots", "full", "stage"])
@pytest.mark.parametrize(
    ("shape", "num_microbatches"),
    [(MeshShape(1, 1, 2, stage=4), 3), (MeshShape(2, 2, 1, stage=2), 1), (MeshShape(1, 1, 1, stage=8), 12)],
    ids=["tensor", "data-fsdp", "stage"],
)
def test_gradients_are_those_of_one_device(shape: MeshShape, num_microbatches: int, remat: str) -> None:
    """To parameters, and to what all layers share; fewer microbatches than stages, and more."""
    found = by_params_and_mask(shape, num_microbatches, remat=remat)
    leaves = zip(jax.tree_util.tree_leaves_with_path(alone()), jax.tree.leaves(found), strict=True)
    for (path, one), other in leaves:
        distance = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert distance < 1e-5, (jax.tree_util.keystr(path), distance)


def compiled(remat: str, num_microbatches: int, batch: int = 64, num_layers: int = 16) -> Any:
    """Gradients on data 2 x stage 2 x tensor 2, compiled; 8 of the layers on a stage."""
    config = small_config(**(CONFIG.to_json() | {"remat": remat, "num_layers": num_layers}))
    mesh = MeshShape(2, 1, 2, stage=2).build()
    with jax.set_mesh(mesh), partitioning.axis_rules():
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(lambda: random_params(config)),
            partitioning.param_shardings(config, mesh),
        )
        rows = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=partitioning.batch_sharding(mesh)),
            random_batch(config, batch, 32),
        )
        step = functools.partial(gradients, LanguageModel(config), num_microbatches=num_microbatches)
        return jax.jit(step).lower(shapes, rows).compile()


def test_what_a_stage_keeps() -> None:
    """`full` keeps the input of every layer at every tick, 8 of them a stage, `stage` that of the first."""
    full, stage = (compiled(remat, 16).memory_analysis().temp_size_in_bytes for remat in ("full", "stage"))
    ticks, rows, length, d_model = 17, 2, 16, 32
    inputs = ticks * rows * length * d_model * 4
    assert 6 * inputs < full - stage < 9 * inputs


def test_a_stage_policy_without_stages_is_refused() -> None:
    config = small_config(remat="stage")
    stage = Stage(LanguageModel(config), batch_size=8, learning_rate=1e-3, steps=1, mesh=MeshShape(8))
    with pytest.raises(ValueError, match=r"remat = 'stage'.*MeshShape.stage = 1"):
        check_mesh(Route.of([stage], 32), 0)
