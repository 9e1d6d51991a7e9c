"""A training step and a growth compiled for devices that are not here: memory, FLOPs and exchanges."""

import dataclasses
import functools
import math
import re
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax import flops, parameters, partitioning
from flm_jax.grow.leaf import grow_parameter
from flm_jax.pods import collectives
from flm_jax.pods.collectives import Collective
from flm_jax.training.leg import Leg


class DoesNotFitError(ValueError):
    """The compiler itself refuses a program, for want of memory."""

    def __init__(self, message: str, needed: int | None) -> None:
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        params: Parameters.
        optimizer: The optimizer's state.
        batch: The batch.
        temporaries: What a step needs besides at its peak: gradients, activations, what is gathered.
        code: The program.
    """

    params: int
    optimizer: int
    batch: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All together."""
        return self.params + self.optimizer + self.batch + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        memory: Of one device.
        flops: Of all devices, one step, recomputation included.
        exchanged: Between devices.
        compile_seconds: That compiling took here.
    """

    memory: Memory
    flops: float
    exchanged: list[Collective]
    compile_seconds: float


def device_bytes(tree: Any) -> int:
    """Of the shards of abstract arrays that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def compile_step(leg: Leg, masked: bool) -> Program:
    """The training step of a stage: with the mask of its growth, or without.

    Raises:
        DoesNotFitError: the compiler finds no room for it.
    """
    started = time.perf_counter()
    state = (
        leg.abstract_state
    )  # before its context, in which optax would compute for devices that are not here
    with leg.context():
        traced = leg.trace(masked)
        params, optimizer = device_bytes(state.params), device_bytes(state.opt_state)
        compiled = _compiled(traced.lower(), params + optimizer)
    found = compiled.memory_analysis()
    code = int(found.generated_code_size_in_bytes)
    # XLA's own peak where it knows one (TPUs), which is less than all that is ever there.
    peak = int(found.peak_memory_in_bytes)
    batch = int(found.argument_size_in_bytes) - params - optimizer
    memory = Memory(params, optimizer, batch, peak - int(found.argument_size_in_bytes), code)
    mesh = leg.mesh
    exchanged = collectives.read(compiled.as_text(), tuple(mesh.shape.items()))
    return Program(memory, flops.count(traced.jaxpr), exchanged, time.perf_counter() - started)


def _compiled(lowered: Any, resident: int) -> Any:
    try:
        return lowered.compile()
    except RuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        needed = None
        if used := re.search(r"Used ([\d.]+)([GM]) of", message):
            needed = _bytes(*used.groups())
        elif used := re.search(r"temporaries \(([\d.]+)([GM])\)", message):
            needed = resident + _bytes(*used.groups())
        raise DoesNotFitError(message.splitlines()[0], needed) from error


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * {"G": 2**30, "M": 2**20}[unit])


@dataclasses.dataclass(frozen=True)
class Growth:
    """A growth compiled leaf by leaf, as it is carried out.

    Attributes:
        before: Bytes of the old state on one device.
        after: Of the new one.
        peak: The most that is there at a time: each leaf of the old state is given up when its new one is made.
        temporaries: The most that one leaf's program needs besides its result.
        programs: That were compiled.
        compile_seconds: That this took here.
    """

    before: int
    after: int
    peak: int
    temporaries: int
    programs: int
    compile_seconds: float

    @property
    def both(self) -> int:
        """With both states whole, and one leaf's program."""
        return self.before + self.after + self.temporaries


def compile_growth(old: Leg, new: Leg) -> Growth:
    """The growth from a stage into the next."""
    started = time.perf_counter()
    compiling = _Compiling(old.mesh, new.mesh)
    growth = functools.partial(
        old.route.plans[old.index],
        policy=new.stage.optimizer_state,
        carry_out=compiling,
        like=new.abstract_state,
    )
    jax.eval_shape(growth, old.abstract_state, jax.random.key(0))
    before = device_bytes(old.abstract_state)
    there = peak = before
    for leaf in compiling.leaves:
        there += leaf.after
        peak = max(peak, there + leaf.temporaries)
        there -= leaf.before
    return Growth(
        before,
        device_bytes(new.abstract_state),
        peak,
        max((leaf.temporaries for leaf in compiling.leaves), default=0),
        len(compiling.programs),
        time.perf_counter() - started,
    )


class _Leaf(NamedTuple):
    """Bytes of one array on one device: the old one, the new one, and what making it needs besides."""

    before: int
    after: int
    temporaries: int


class _Compiling:
    """In place of `LeafByLeaf`: compiles each leaf's program, and runs none."""

    def __init__(self, old: Mesh, new: Mesh) -> None:
        self._old, self._new = old, new
        self.programs: dict[Any, _Leaf] = {}
        self.leaves: list[_Leaf] = []

    def __call__(
        self, function: Any, plan: Any, row: parameters.Parameter, old: Any, *others: Any, **static: Any
    ) -> jax.Array:
        carry_out = functools.partial(function, plan, row, **static)
        name = (function, row, tuple(static.items()), old.shape)
        if name not in self.programs:
            grown = jax.eval_shape(carry_out, old, *others)
            before = self._abstract(self._old, function, row, old)
            after = self._abstract(self._new, function, row, grown)
            everywhere = NamedSharding(self._new, PartitionSpec())
            rest = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere) for x in others]
            lowered = jax.jit(carry_out, out_shardings=after.sharding).lower(before, *rest)
            sizes = device_bytes([before]), device_bytes([after])
            found = _compiled(lowered, sum(sizes)).memory_analysis()
            moved = 0 if self._same_order() else sizes[0]  # a copy, on the devices in the new mesh's order
            self.programs[name] = _Leaf(*sizes, int(found.temp_size_in_bytes) + moved)
        self.leaves.append(self.programs[name])
        return carry_out(old, *others)

    def _abstract(self, mesh: Mesh, function: Any, row: parameters.Parameter, leaf: Any) -> Any:
        """Where it lies: a parameter as its axes say, the optimizer's in more parts."""
        sharding = NamedSharding(mesh, partitioning.mesh_spec(*row.axes))
        if function is not grow_parameter:
            sharding = partitioning.split_over_data(sharding, leaf.shape)
        if mesh is self._old and not self._same_order():
            devices = self._new.devices.reshape(sharding.mesh.devices.shape)
            sharding = NamedSharding(Mesh(devices, sharding.mesh.axis_names), sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def _same_order(self) -> bool:
        return list(self._old.devices.flat) == list(self._new.devices.flat)
