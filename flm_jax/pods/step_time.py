"""How long a step will take: a model with documented constants, for programs that cannot be run here (docs/pods.md).

Matmuls run at the chip's share of its peak. What moves parameters and gradients (over `data` and `fsdp`) goes on beside
them, and so do the permutes into which XLA cuts a gather or scatter around a matmul; all else that is sent waits.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from flm_jax.chips import Chip
from flm_jax.pods.collectives import Collective
from flm_jax.pods.topology import Topology


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    Attributes:
        matmuls: Of a device.
        memory: The optimizer's reading and writing of its state.
        hidden: Exchanges that go on beside the matmuls, and take longer only where they take longer than these.
        exposed: Exchanges that all wait for.
    """

    matmuls: float
    memory: float
    hidden: float
    exposed: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.matmuls, self.hidden) + self.memory + self.exposed


def predict(
    flops: float, moved_bytes: float, exchanged: Sequence[Collective], mesh: Mesh, topology: Topology
) -> StepTime:
    """The time of a step.

    Args:
        flops: Carried out by all devices together.
        moved_bytes: Read and written by the optimizer, of one device.
        exchanged: By one device.
        mesh: Of the topology's devices.
        topology: Where it runs.
    """
    chip = topology.chip
    hidden = exposed = 0.0
    for each in exchanged:
        seconds = exchange_seconds(each, bandwidth(mesh, each.axes, topology))
        permuted = each.kind == "collective-permute" and "stage" not in each.axes
        if each.beside or permuted or set(each.axes) <= {"data", "fsdp"}:
            hidden += seconds
        else:
            exposed += seconds
    matmuls = flops / mesh.size / (chip.flops_per_second * chip.efficiency)
    return StepTime(matmuls, moved_bytes / chip.memory_bandwidth, hidden, exposed)


def exchange_seconds(exchange: Collective, bytes_per_second: float) -> float:
    """Of ring algorithms: each device passes on all parts but its own, for an all-reduce twice."""
    if exchange.kind == "collective-permute":
        return exchange.bytes / (bytes_per_second / 2)  # one way round the ring
    rounds = 2 if exchange.kind == "all-reduce" else 1
    return rounds * exchange.bytes * (exchange.devices - 1) / exchange.devices / bytes_per_second


def bandwidth(mesh: Mesh, axes: Sequence[str], topology: Topology) -> float:
    """Bytes a second that a device can send to those along the mesh axes.

    On a TPU's torus the links of every axis that the devices lie along, half of them where it is not closed, and their
    part of them where other groups lie in between. Between slices, and between hosts with GPUs, the network of those
    that take part.
    """
    chip = topology.chip
    index = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    group = list(np.asarray(mesh.devices[index]).ravel())
    if chip.kind == "gpu":
        numbers = {
            number: place for place, number in enumerate(sorted(device.id for device in mesh.devices.flat))
        }
        hosts = {numbers[device.id] // topology.shape[1] for device in group}  # they are counted host by host
        if len(hosts) == 1:
            return chip.link_bandwidth
        return min(chip.link_bandwidth, chip.network_bandwidth * len(group) / len(hosts))
    slices = len({device.slice_index for device in group}) if topology.slices > 1 else 1
    if slices > 1:
        return chip.network_bandwidth * len(group) / slices
    links = 0.0
    for axis, size in enumerate(topology.shape):
        places = sorted({device.coords[axis] for device in group})
        if len(places) > 1:
            closed = len(places) == size and size % chip.whole == 0
            shared = min(
                after - before for before, after in itertools.pairwise(places)
            )  # with the groups in between
            links += chip.link_bandwidth * (1.0 if closed else 0.5) / shared
    return links or chip.link_bandwidth


def utilisation(flops: float, seconds: float, num_devices: int, chip: Chip) -> float:
    """Share of the peak at which `flops` are carried out."""
    return flops / seconds / (num_devices * chip.flops_per_second)
