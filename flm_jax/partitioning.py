"""The mesh, and which of its axes each named axis of a parameter or an activation is split over.

`data` and `fsdp` split the batch, `fsdp` splits the parameters' `embed` axis too (and gathers it where
it is used), `tensor` splits heads, FFN units and the vocabulary (Megatron style).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen import partitioning as flax_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax import parameters
from flm_jax.config import ModelConfig

MESH_AXES = ("data", "fsdp", "tensor")

# As in t5x the first rule whose mesh axes are still free wins: an activation's `batch` takes `fsdp`, so
# its `embed` stays whole; a parameter's `embed` takes it.
LOGICAL_AXIS_RULES: tuple[tuple[str, Any], ...] = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("looked_up", "tensor"),  # the columns of the token table while rows are looked up in it
    ("queries", None),  # the query heads of one key-value head stay with it
    ("kv", None),
    ("layers", None),
    ("length", None),
)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each mesh axis; one of them may be -1: as many as there are."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def build(self, devices: list[jax.Device] | None = None) -> Mesh:
        """Makes the mesh over `devices`, all of them unless given.

        Raises:
            ValueError: the axes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"MeshShape needs positive sizes, one of which may be -1; found {self}")
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and len(devices) % known == 0:
            sizes[sizes.index(-1)] = len(devices) // known
        if math.prod(sizes) != len(devices):
            raise ValueError(
                f"{self} does not cover the {len(devices)} devices; bind MeshShape.data, MeshShape.fsdp and "
                f"MeshShape.tensor to sizes whose product is {len(devices)}"
            )
        return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks for the layout of an activation with these named axes; does nothing where no rules are in force.

    flax's constraint serves both drivers: it acts under `jax.set_mesh` with `jax.jit` (our trainer) and
    under a mesh context with `pjit` (t5x).
    """
    return flax_partitioning.with_sharding_constraint(x, PartitionSpec(*axes))


def axis_rules() -> Any:
    """Context in which `constrain` follows `LOGICAL_AXIS_RULES`."""
    return nn.logical_axis_rules(LOGICAL_AXIS_RULES)


def mesh_spec(*axes: str | None) -> PartitionSpec:
    """The mesh axes that a parameter, activation or batch with these named axes is split over."""
    return flax_partitioning.logical_to_mesh_axes(axes, LOGICAL_AXIS_RULES)


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """A `NamedSharding` for every parameter of the model, in the shape of its parameter tree.

    Raises:
        ValueError: a mesh axis does not divide the parameter axis that it splits.
    """

    def sharding(row: parameters.Parameter) -> NamedSharding:
        spec = mesh_spec(*row.axes)
        for axis, mesh_axis in zip(row.axes, spec, strict=True):
            parts = mesh.shape[mesh_axis] if mesh_axis else 1
            if config.size(axis) % parts:
                raise ValueError(
                    f"the parameter axis {axis!r} of {config.size(axis)} entries cannot be split over mesh axis "
                    f"{mesh_axis!r} of {parts} devices; bind MeshShape.{mesh_axis} to a divisor, or change the "
                    f"ModelConfig size of {axis!r}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, parameters.table(config), is_leaf=parameters.is_parameter)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch's arrays `[batch, length]`."""
    return NamedSharding(mesh, mesh_spec("batch", "length"))
