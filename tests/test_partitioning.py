import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flm_jax import Decoder, parameters, partitioning
from flm_jax.partitioning import MeshShape
from tests.models import LLAMA, random_params, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_mesh_shape_fills_in_the_rest() -> None:
    assert dict(MeshShape(-1, 2, 2).build().shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(MeshShape(1, 1, 1).build(jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(3, 1, 1), "does not cover the 8 devices"),
        (MeshShape(-1, 3, 1), "does not cover the 8 devices"),
        (MeshShape(-1, -1, 1), "one of which may be -1"),
        (MeshShape(0, 1, 1), "positive sizes"),
    ],
)
def test_bad_mesh_shapes(shape: MeshShape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape.build()


def test_rules_for_parameters_and_activations() -> None:
    assert partitioning.mesh_spec("vocab", "embed") == PartitionSpec("tensor", "fsdp")
    assert partitioning.mesh_spec("layers", "embed", "heads", "kv") == PartitionSpec(
        None, "fsdp", "tensor", None
    )
    assert partitioning.mesh_spec("batch", "length", "embed") == PartitionSpec(("data", "fsdp"), None, None)
    assert partitioning.mesh_spec("batch", "length", "mlp") == PartitionSpec(("data", "fsdp"), None, "tensor")


def test_every_parameter_axis_has_a_rule() -> None:
    rows = jax.tree.leaves(parameters.table(small_config(**LLAMA)), is_leaf=parameters.is_parameter)
    assert "queries" in {axis for row in rows for axis in row.axes}
    assert {axis for row in rows for axis in row.axes} <= {
        axis for axis, _ in partitioning.LOGICAL_AXIS_RULES
    }


def test_a_mesh_that_does_not_divide_names_both() -> None:
    mesh = MeshShape(1, 1, 8).build()
    with pytest.raises(ValueError, match=r"'heads' of 4 entries .* 'tensor' of 8 devices.*MeshShape.tensor"):
        partitioning.param_shardings(small_config(), mesh)


def test_grouped_heads_are_split_with_their_key_value_heads() -> None:
    """Results on a mesh are those of one device, and query heads are laid out as the key-value heads they look at."""
    config = small_config(**LLAMA)
    tokens, params = random_tokens(config, 4, 8), random_params(config)
    alone = Decoder(config).apply({"params": params}, tokens)
    mesh = MeshShape(2, 2, 2).build()
    placed = jax.device_put(params, partitioning.param_shardings(config, mesh))
    with jax.set_mesh(mesh), partitioning.axis_rules():
        lowered = jax.jit(lambda p, t: Decoder(config).apply({"params": p}, t)).lower(placed, tokens)
        np.testing.assert_allclose(lowered.compile()(placed, tokens), alone, rtol=1e-4, atol=1e-4)
    found = re.findall(r"sdy.sharding_constraint.*", lowered.as_text())
    query = r'\[\{"data", "fsdp"\}, \{\}, \{"tensor"\}, \{\}, \{\}\].*4x8x2x2x8'
    assert any(re.search(query, line) for line in found), found


def test_constraints_reach_the_program() -> None:
    """flax's constraints do nothing where mesh or rules are not in force; read the lowered text."""
    config = small_config()
    mesh = MeshShape(2, 2, 2).build()
    tokens = random_tokens(config, 4, 8)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]

    def lowered() -> str:
        return jax.jit(lambda p, t: Decoder(config).apply({"params": p}, t)).lower(shapes, tokens).as_text()

    assert "sharding_constraint" not in lowered()
    with jax.set_mesh(mesh), partitioning.axis_rules():
        text = lowered()
    constraints = re.findall(r"sdy.sharding_constraint.*", text)
    for wanted in (
        r'\[\{"data", "fsdp"\}, \{\}, \{"tensor"\}, \{\}\].*4x8x4x8',  # heads
        r'\[\{"data", "fsdp"\}, \{\}, \{"tensor"\}\].*4x8x40',  # FFN units
        r'\[\{\}, \{"tensor"\}\].*96x24',  # the table while rows are looked up in it
        r'\[\{"data", "fsdp"\}, \{\}, \{"tensor"\}\].*4x8x24',  # the rows
        r'\[\{"data", "fsdp"\}, \{\}, \{\}\].*4x8x24',  # the residual stream
        r'\[\{"data", "fsdp"\}, \{\}, \{"tensor"\}\].*4x8x96',  # logits
    ):
        assert any(re.search(wanted, line) for line in constraints), (wanted, constraints)
