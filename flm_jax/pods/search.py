"""The best layout of a stage on a topology: all meshes, remat policies and microbatches, by `estimate`."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator

import jax

from flm_jax.chips import GIB
from flm_jax.config import REMAT_POLICIES, ModelConfig
from flm_jax.grow.schedule import Route, Stage
from flm_jax.layers.attention import choose
from flm_jax.partitioning import MESH_AXES, MeshShape, platform
from flm_jax.pods.estimate import Estimate, Layout, estimate
from flm_jax.pods.topology import Topology
from flm_jax.training.leg import check_mesh

# Of the memory, what an estimate may fill: compiled peaks lie up to a tenth above it.
_ROOM = 0.97
_SHOWN = 5


class NoLayoutError(ValueError):
    """No layout of a stage fits."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout that divides everything, and what it is expected to need and take."""

    layout: Layout
    estimate: Estimate

    def fits(self, topology: Topology) -> bool:
        """By the estimate, with room for its error."""
        return self.estimate.peak <= _ROOM * topology.chip.memory_bytes

    def cost(self) -> tuple[float, float, float, float]:
        """What is to be small: the time; among equals what is exchanged beside the matmuls, these, then memory."""
        time = self.estimate.time
        return time.seconds, time.hidden, time.matmuls, self.estimate.peak

    def line(self, topology: Topology) -> str:
        """For people."""
        verdict = "" if self.fits(topology) else ", does not fit"
        peak = f"{self.estimate.peak / GIB:.1f} GiB"
        return f"{self.layout}: {self.estimate.time.seconds:.2f} s, {peak} estimated{verdict}"


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        candidates: All that divide everything, the fastest that fit first.
        refused: How many layouts were not tried further, by reason.
        topology: Searched on.
    """

    candidates: list[Candidate]
    refused: Counter
    topology: Topology

    @property
    def fitting(self) -> list[Candidate]:
        """Those that are expected to fit, the fastest first."""
        return [one for one in self.candidates if one.fits(self.topology)]

    def describe(self) -> str:
        """What was tried and why it lost."""
        fitting = self.fitting
        too_large = len(self.candidates) - len(fitting)
        refused = ", ".join(f"{count:,} {reason}" for reason, count in self.refused.most_common())
        lines = [
            f"searched {len(self.candidates) + self.refused.total():,} layouts on {self.topology.name}: "
            f"{len(fitting):,} are expected to fit, {too_large:,} are not"
            + (f"; not tried: {refused}" if refused else "")
        ]
        lines += [f"  {rank}. {one.line(self.topology)}" for rank, one in enumerate(fitting[:_SHOWN], 1)]
        fastest = next((one for one in self.candidates if not one.fits(self.topology)), None)
        if fastest is not None:
            lines.append(f"  faster or not, too large: {fastest.line(self.topology)}")
        for what, choice in (("remat", lambda one: one.layout.remat), ("mesh", lambda one: one.layout.mesh)):
            best = choice(fitting[0]) if fitting else None
            other = next((one for one in fitting if choice(one) != best), None)
            if other is not None:
                lines.append(f"  best with another {what}: {other.line(self.topology)}")
        return "\n".join(lines)


def search(route: Route, index: int, topology: Topology, devices: list[jax.Device]) -> Found:
    """All layouts of a stage.

    Args:
        route: Whose stage it is.
        index: Of the stage.
        topology: Where it is to run.
        devices: Of the topology.

    Raises:
        ValueError: the kernel of attention that the config names cannot take the model on these devices.
    """
    config, stage = route.config(index), route.stages[index]
    refused: Counter = Counter()
    candidates = []
    with jax.set_mesh(MeshShape().build(devices)):  # what no layout mends is said at once
        choose(config, route.length, platform())
    for mesh_shape in _meshes(config, topology.num_devices):
        rows = stage.batch_size // (mesh_shape.data * mesh_shape.fsdp)
        if stage.batch_size % (mesh_shape.data * mesh_shape.fsdp):
            refused["whose rows do not divide the batch"] += 1
            continue
        if reason := _refused(route, index, mesh_shape, devices):
            refused[reason] += 1
            continue
        mesh = mesh_shape.build(devices)
        for count, remat in itertools.product(_divisors(rows), _policies(mesh_shape)):
            layout = Layout(mesh_shape, remat, count)
            found = estimate(config, layout, stage.batch_size, route.length, mesh, topology)
            candidates.append(Candidate(layout, found))
    ordered = sorted(candidates, key=lambda one: (not one.fits(topology), *one.cost()))
    return Found(ordered, refused, topology)


def nearest(found: Found, layout: Layout) -> list[Candidate]:
    """Those that are expected to fit, by how little they change: first of the mesh, then of remat and microbatches."""
    sizes = dataclasses.asdict(layout.mesh)
    known = math.prod(size for size in sizes.values() if size > 0)
    rest = max(1, found.topology.num_devices // known)  # of an axis that takes what is left
    mesh = MeshShape(**{axis: rest if size < 0 else size for axis, size in sizes.items()})
    layout = dataclasses.replace(layout, mesh=mesh)
    return sorted(found.fitting, key=lambda one: (_distance(one.layout, layout), *one.cost()))


def laid_out(stage: Stage, layout: Layout) -> Stage:
    """A stage with a layout."""
    config = dataclasses.replace(stage.model.config, remat=layout.remat)
    return dataclasses.replace(
        stage,
        model=stage.model.with_config(config),
        mesh=layout.mesh,
        num_microbatches=layout.num_microbatches,
    )


def layout_of(stage: Stage) -> Layout:
    """The layout that a stage has."""
    return Layout(stage.mesh, stage.model.config.remat, stage.num_microbatches)


def _meshes(config: ModelConfig, num_devices: int) -> Iterator[MeshShape]:
    """Meshes whose axes divide what they split; `sequence` is left at 1, for kernels see whole sequences."""
    for tensor in _divisors(config.size("heads"), 16):
        for stage in _divisors(config.num_layers, 16):
            left, rest = divmod(num_devices, tensor * stage)
            if rest:
                continue
            for fsdp in _divisors(left):
                if config.d_model % fsdp == 0:
                    yield MeshShape(left // fsdp, fsdp, tensor, 1, stage)


def _policies(mesh: MeshShape) -> list[str]:
    return [policy for policy in REMAT_POLICIES if policy != "stage" or mesh.stage > 1]


def _refused(route: Route, index: int, mesh: MeshShape, devices: list[jax.Device]) -> str | None:
    stages = list(route.stages)
    stages[index] = laid_out(stages[index], Layout(mesh, "full", 1))
    try:
        check_mesh(Route.of(stages, route.length), index, devices)
    except ValueError as error:
        return (
            "with slices that do not divide data"
            if "slices" in str(error)
            else "that divide an axis unevenly"
        )
    return None


def _divisors(number: int, most: int | None = None) -> list[int]:
    return [n for n in range(1, min(number, most or number) + 1) if number % n == 0]


def _distance(one: Layout, other: Layout) -> float:
    """How many factors of two lie between two layouts, a mesh axis counting four times; remat counts one."""

    def apart(a: int, b: int) -> float:
        return abs(a.bit_length() - b.bit_length()) + (a != b) * 0.1

    mesh = sum(apart(getattr(one.mesh, axis), getattr(other.mesh, axis)) for axis in MESH_AXES)
    return 4 * mesh + apart(one.num_microbatches, other.num_microbatches) + (one.remat != other.remat)
