import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax import Decoder, parameters, partitioning
from flm_jax.partitioning import MeshShape
from tests.models import LLAMA, random_params, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_mesh_shape_fills_in_the_rest() -> None:
    sizes = {"data": 2, "stage": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert dict(MeshShape(-1, 2, 2).build().shape) == sizes
    assert set(MeshShape(1, 1, 1).build(jax.devices()[:1]).shape.values()) == {1}
    assert dict(MeshShape(1, 1, 2, sequence=2, stage=2).build().shape)["stage"] == 2


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
    assert partitioning.mesh_spec("vocab", "embed") == PartitionSpec(("stage", "tensor"), "fsdp")
    assert partitioning.mesh_spec("layers", "embed", "heads", "kv") == PartitionSpec(
        "stage", "fsdp", "tensor", None
    )
    rows = ("data", "fsdp")
    assert partitioning.mesh_spec("batch", "residual", "embed") == PartitionSpec(
        rows, ("sequence", "tensor"), None
    )
    assert partitioning.mesh_spec("batch", "length", "mlp") == PartitionSpec(rows, "sequence", "tensor")
    assert partitioning.mesh_spec("batch", "keys", "heads", "kv") == PartitionSpec(rows, None, "tensor", None)


def test_every_parameter_axis_has_a_rule() -> None:
    rows = jax.tree.leaves(parameters.table(small_config(**LLAMA)), is_leaf=parameters.is_parameter)
    assert "queries" in {axis for row in rows for axis in row.axes}
    assert {axis for row in rows for axis in row.axes} <= {
        axis for axis, _ in partitioning.LOGICAL_AXIS_RULES
    }


def test_a_name_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LOGICAL_AXIS_RULES, found \['width'\]"):
        partitioning.constrain(jnp.zeros((2, 2)), "batch", "width")


@pytest.mark.parametrize(
    ("data", "axes", "shape", "spec", "parts"),
    [
        (96, ("embed", "mlp"), (10_240, 40_960), PartitionSpec(("fsdp", "data"), "tensor"), 32),
        (24, ("embed", "mlp"), (8_192, 32_768), PartitionSpec(("fsdp", "data"), "tensor"), 8),
        (12, ("embed", "mlp"), (10_240, 40_960), PartitionSpec(("fsdp", "data"), "tensor"), 4),
        # Of 96 devices 48 would divide the layers, and a loop would fetch each from where it lies.
        (96, ("layers", "embed"), (48, 5_120), PartitionSpec("stage", ("fsdp", "data")), 32),
        (8, ("layers",), (8,), PartitionSpec("stage"), 1),
        (8, ("embed", "mlp"), (7, 64), PartitionSpec("fsdp", ("tensor", "data")), 8),
        (8, ("heads",), (6,), PartitionSpec("tensor"), 1),
    ],
)
def test_optimizer_state_over_the_largest_divisor_of_the_data_axis(
    data: int, axes: tuple[str, ...], shape: tuple[int, ...], spec: PartitionSpec, parts: int
) -> None:
    """32 of 96 devices, 8 of 24 and 4 of 12: the paper's machines."""
    devices = np.empty(data * 2, object)
    devices[:] = [_Device(index) for index in range(data * 2)]
    mesh = Mesh(devices.reshape(data, 1, 1, 1, 2), partitioning.MESH_AXES)
    start = NamedSharding(mesh, partitioning.mesh_spec(*axes))
    found = partitioning.split_over_data(start, shape)
    assert found.spec == spec and list(found.mesh.devices.flat) == list(devices)
    assert found.shard_shape(shape) != start.shard_shape(shape) or parts == 1
    assert np.prod(start.shard_shape(shape)) == np.prod(found.shard_shape(shape)) * parts


class _Device:
    """As much of a device as a mesh looks at."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number: int, slice_index: int | None = None) -> None:
        self.id = number
        if slice_index is not None:
            self.slice_index, self.platform, self.core_on_chip = slice_index, "tpu", 0
            self.coords = (number // 2 % 2, number // 4, 0)  # of two by four in a slice


def test_data_goes_over_slices() -> None:
    """Two slices of eight: the halves of the data axis, whatever the order of the devices."""
    devices = [_Device(index, index % 2) for index in range(16)]
    mesh = MeshShape(4, 2, 2).build(devices)  # type: ignore[arg-type]
    assert mesh.shape["data"] == 4
    for half, number in ((mesh.devices[:2], 0), (mesh.devices[2:], 1)):
        assert {device.slice_index for device in half.flat} == {number}
    with pytest.raises(ValueError, match=r"multiple of the 2 slices .* found 1"):
        MeshShape(1, 16, 1).build(devices)  # type: ignore[arg-type]


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
    query = r'\[\{"data", "fsdp"\}, \{"sequence"\}, \{"tensor"\}, \{\}, \{\}\].*4x8x2x2x8'
    assert any(re.search(query, line) for line in found), found


def test_constraints_reach_the_program() -> None:
    """flax's constraints do nothing where mesh or rules are not in force; read the lowered text."""
    config = small_config()
    mesh = MeshShape(1, 2, 2, sequence=2).build()
    tokens = random_tokens(config, 4, 8)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]

    def lowered() -> str:
        return jax.jit(lambda p, t: Decoder(config).apply({"params": p}, t)).lower(shapes, tokens).as_text()

    assert "sharding_constraint" not in lowered()
    with jax.set_mesh(mesh), partitioning.axis_rules():
        text = lowered()
    constraints = re.findall(r"sdy.sharding_constraint.*", text)
    rows = r'\[\{"data", "fsdp"\}'
    for wanted in (
        rows + r', \{"sequence"\}, \{"tensor"\}, \{\}\].*4x8x4x8',  # queries
        rows + r', \{\}, \{"tensor"\}, \{\}\].*4x8x4x8',  # keys and values
        rows + r', \{"sequence"\}, \{"tensor"\}\].*4x8x40',  # FFN units
        r'\[\{\}, \{"stage", "tensor"\}\].*96x24',  # the table while rows are looked up in it
        rows + r', \{"sequence"\}, \{"stage", "tensor"\}\].*4x8x24',  # the rows
        rows + r', \{"sequence", "tensor"\}, \{"stage"\}\].*4x8x24',  # on their way to whole ones
        rows + r', \{"sequence", "tensor"\}, \{\}\].*4x8x24',  # the residual stream
        rows + r', \{"sequence"\}, \{"stage", "tensor"\}\].*4x8x96',  # logits
    ):
        assert any(re.search(wanted, line) for line in constraints), (wanted, constraints)
