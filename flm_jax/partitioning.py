"""The mesh, and which of its axes each named axis of a parameter or an activation is split over.

`data`: the batch, and the optimizer's state as far as it divides (ZeRO's first stage, arXiv 1910.02054).
`stage`: the layers, as pipeline stages (`layers/pipeline.py`), and the vocabulary.
`fsdp`: the batch, and parameters with the optimizer's state by `embed`; they are gathered where they are used.
`sequence`: activations by their position in the sequence.
`tensor`: heads, FFN units and the vocabulary (Megatron, arXiv 1909.08053), and between the sublayers the residual
stream by its position in the sequence (arXiv 2205.05198).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen import partitioning as flax_partitioning
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax import parameters
from flm_jax.config import ModelConfig

# From the outermost, whose neighbours are the furthest apart and exchange the least, to the innermost.
MESH_AXES = ("data", "stage", "fsdp", "sequence", "tensor")
# Those that the rows of a batch are split over.
BATCH_AXES = ("data", "fsdp")

# As in t5x the first rule whose mesh axes are still free wins: an activation's `batch` takes `fsdp`, so its `embed`
# stays whole; a parameter's `embed` takes it.
LOGICAL_AXIS_RULES: tuple[tuple[str, Any], ...] = (
    ("batch", BATCH_AXES),
    ("vocab", ("stage", "tensor")),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("queries", None),  # the query heads of one key-value head stay with it
    ("kv", None),
    ("layers", "stage"),
    ("length", "sequence"),  # of what heads and FFN units make
    ("keys", None),  # the length of keys and values: every query looks at all before it
    ("residual", ("sequence", "tensor")),  # the length of the residual stream
    # The columns of the token table while rows are looked up in it; of the rows, after the length has taken tensor.
    ("looked_up", ("stage", "tensor")),
    ("looked_up", "stage"),
)
_NAMES = frozenset(name for name, _ in LOGICAL_AXIS_RULES)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each mesh axis; one of them may be -1: as many as there are.

    Where the devices lie in several TPU slices, `data` goes over the slices and within each of them: 8 over 2 slices
    are 4 in each.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    stage: int = 1

    @property
    def num_devices(self) -> int | None:
        """How many it needs; None: all that there are."""
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        return None if -1 in sizes else math.prod(sizes)

    def build(self, devices: list[jax.Device] | None = None) -> Mesh:
        """Makes the mesh over `devices`, all of them unless given, with neighbours on the mesh near each other.

        Raises:
            ValueError: the axes do not multiply to the number of devices, or `data` is no multiple of the slices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        found = list(sizes.values())
        if found.count(-1) > 1 or any(size < 1 and size != -1 for size in found):
            raise ValueError(f"MeshShape needs positive sizes, one of which may be -1; found {self}")
        known = math.prod(size for size in found if size != -1)
        if -1 in found and len(devices) % known == 0:
            sizes[MESH_AXES[found.index(-1)]] = len(devices) // known
        if math.prod(sizes.values()) != len(devices):
            raise ValueError(
                f"{self} does not cover the {len(devices)} devices; bind "
                f"{', '.join(f'MeshShape.{axis}' for axis in sizes)} to sizes whose product is {len(devices)}"
            )
        return Mesh(_arranged(sizes, devices), MESH_AXES)


def _arranged(sizes: dict[str, int], devices: list[jax.Device]) -> np.ndarray:
    """The devices in the mesh's shape."""
    # For GPUs XLA calls every host a slice.
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1
    shape = tuple(sizes.values())
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if sizes["data"] % slices:
        raise ValueError(
            f"MeshShape.data must be a multiple of the {slices} slices that the {len(devices)} devices lie in, because "
            f"nothing else is split over slices; found {sizes['data']}"
        )
    within = (sizes["data"] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def axis_size(name: str) -> int:
    """Devices along a mesh axis of the mesh that is being traced for; 1 outside of `jax.set_mesh`, as under t5x."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(name, 1)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: of the mesh that is traced for, whose devices may not be here, else of the default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.default_backend() if device is None else device.platform
    return "gpu" if found in ("cuda", "rocm") else found


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks for the layout of an activation with these named axes; does nothing where no rules are in force.

    flax's constraint serves both drivers: it acts under `jax.set_mesh` with `jax.jit` (our trainer) and
    under a mesh context with `pjit` (t5x).

    Raises:
        ValueError: a name without a rule, which would be left whole in silence.
    """
    if unknown := {axis for axis in axes if axis is not None} - _NAMES:
        raise ValueError(
            f"expected axes of partitioning.LOGICAL_AXIS_RULES, found {sorted(unknown)}: add a rule for each"
        )
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
        for axis, entry in zip(row.axes, spec, strict=True):
            check_divides(config.size(axis), f"the parameter axis {axis!r}", entry, mesh,
                          f"change ModelConfig.{_FIELDS[axis]}")  # fmt: skip
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, parameters.table(config), is_leaf=parameters.is_parameter)


# Where the size of a parameter's axis is set.
_FIELDS = {
    "vocab": "vocab_size",
    "embed": "d_model",
    "heads": "num_heads (grouped: num_kv_heads)",
    "queries": "num_heads",
    "kv": "head_dim",
    "mlp": "d_ff",
    "layers": "num_layers",
}


def check_divides(size: int, what: str, entry: Any, mesh: Mesh, otherwise: str) -> None:
    """Refuses an axis of `size` entries that the mesh axes of a spec's `entry` cannot split evenly.

    Args:
        size: Entries of the axis.
        what: The axis, for the message.
        entry: Of a `PartitionSpec`: None, a mesh axis or several.
        mesh: The mesh.
        otherwise: What to change besides the mesh.

    Raises:
        ValueError: naming both.
    """
    if size % num_parts(mesh, entry) == 0:
        return
    split = [axis for axis in axes_of(entry) if mesh.shape[axis] > 1]
    mesh_axes = " x ".join(repr(axis) for axis in split)
    devices = " x ".join(str(mesh.shape[axis]) for axis in split)
    settings = ", ".join(f"MeshShape.{axis}" for axis in split)
    raise ValueError(
        f"{what} of {size} entries cannot be split over mesh axis {mesh_axes} of {devices} devices; bind {settings} "
        f"to a divisor, or {otherwise}"
    )


def num_parts(mesh: Mesh, entry: Any) -> int:
    """Into how many parts an entry of a `PartitionSpec` splits its axis."""
    return math.prod(mesh.shape[axis] for axis in axes_of(entry))


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of an entry of a `PartitionSpec`."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def split_over_data(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """`sharding`, split further over as many of the `data` axis' devices as divide an axis of the array.

    Every device of the data axis would hold the same optimizer state; so each holds a part (ZeRO's first stage). Of 96
    devices and 10,240 entries it is 32 that divide, and the state then exists three times. Layers are left alone: a
    loop goes through them, and would have to fetch each from where it lies.
    """
    mesh = sharding.mesh
    spec = (*sharding.spec, *(None for _ in shape[len(sharding.spec) :]))
    left = [size // num_parts(mesh, entry) for size, entry in zip(shape, spec, strict=True)]
    layers = mesh_spec("layers")[0]
    parts = [
        1 if entry == layers else math.gcd(mesh.shape["data"], n) for n, entry in zip(left, spec, strict=True)
    ]
    most = max(parts, default=1)
    if most == 1:
        return sharding
    at = parts.index(most)
    split = [(*axes_of(entry), "data") if axis == at else entry for axis, entry in enumerate(spec)]
    if most == mesh.shape["data"]:
        return NamedSharding(mesh, PartitionSpec(*split))
    # The same devices in the same order, the data axis cut in two.
    copies = mesh.shape["data"] // most
    cut = mesh.devices.reshape(copies, most, *mesh.devices.shape[1:])
    return NamedSharding(Mesh(cut, ("copies", *mesh.axis_names)), PartitionSpec(*split))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch's arrays `[batch, length]`."""
    return NamedSharding(mesh, mesh_spec("batch", "length"))
