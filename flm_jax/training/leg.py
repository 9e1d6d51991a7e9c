"""One stage of a run, ready to be trained: model, optimizer, mesh, and the compiled step."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax import partitioning
from flm_jax.grow.freezing import train_only_new
from flm_jax.grow.lineage import Lineage
from flm_jax.grow.schedule import Route
from flm_jax.layers.attention import choose
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.model import PACKED_FEATURES, TASK_NUMBERS
from flm_jax.tasks.history import History
from flm_jax.training.loss_slope import MIN_POINTS
from flm_jax.training.state import TrainState, abstract_state, create_state
from flm_jax.training.step import skipping_non_finite, train_step


class Leg:
    """What a stage is made of, from the run's route and the growths that have led here; holds no arrays.

    Args:
        route: All stages.
        lineage: The growths so far; their number is the stage's index.
        make_optimizer: `make_optimizer(config, learning_rate, multipliers=)`, with `rewarm_steps=` and `rewarm_since=`
            too where the stage's `optimizer_state` is `asymmetric`.
        make_schedule: `make_schedule(peak=, total_steps=, warmup_steps=)`.
        history: How the data has gone on, up to this stage's present batch size and mixture.
        devices: Those of the mesh; all that are here unless given, which may be ones to compile for.
    """

    def __init__(
        self,
        route: Route,
        lineage: Lineage,
        make_optimizer: Callable[..., optax.GradientTransformation],
        make_schedule: Callable[..., optax.Schedule],
        history: History,
        devices: list[jax.Device] | None = None,
    ) -> None:
        self.route, self.lineage, self.history = route, lineage, history
        self.index = len(lineage.records)
        self.stage = route.stages[self.index]
        self.config = route.config(self.index)
        self.model = self.stage.model.with_config(self.config)
        self._devices = devices
        self.end = route.end(self.index, lineage.step, history)
        self.end_of_run = route.end_of_run(self.index, lineage.step, history)
        try:
            self.learning_rate = route.learning_rate(
                self.index, lineage.step, lineage.updates, make_schedule, history
            )
        except ValueError as error:
            raise ValueError(f"the learning rate of stage {self.index + 1}: {error}") from error
        self.optimizer = skipping_non_finite(self._make_optimizer(make_optimizer))

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Of the stage's devices."""
        return self.stage.mesh.build(self._devices)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return abstract_state(self.config, self.optimizer, self.mesh)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of a batch's arrays `[batch, length]`."""
        return partitioning.batch_sharding(self.mesh)

    @property
    def row_sharding(self) -> NamedSharding:
        """Of an array with a number for each row, `[batch]`."""
        return NamedSharding(self.mesh, partitioning.mesh_spec("batch"))

    def _make_optimizer(
        self, make: Callable[..., optax.GradientTransformation]
    ) -> optax.GradientTransformation:
        settings: dict[str, Any] = {"multipliers": self.lineage.multipliers(self.config)}
        if self.index and self.stage.optimizer_state == "asymmetric":
            settings |= {"rewarm_steps": self.stage.rewarm_steps, "rewarm_since": self.lineage.updates}
        optimizer = make(self.config, self.learning_rate, **settings)
        if self.index and self.stage.trains == "new":
            return train_only_new(optimizer, self.lineage.records[-1].plan)
        return optimizer

    @property
    def slope_start(self) -> int:
        """The step behind ramp and warmup, from which on the loss tells how fast the stage learns."""
        warms_up = self.index == 0 or self.stage.policy == "rewarmup"
        return max(self.lineage.ramp_end, self.lineage.step + (self.stage.warmup_steps if warms_up else 0))

    @property
    def earliest_end(self) -> int:
        """The first step at which the stage may be over: its last, or the first with a full window for its slope."""
        if self.stage.slope is None:
            return self.end
        sequences = self.sequences(self.slope_start) / (1 - self.stage.slope_window)
        return max(self.history.steps(math.ceil(sequences)), self.slope_start + MIN_POINTS)

    @property
    def is_last(self) -> bool:
        """Whether the run ends with it."""
        return self.index == len(self.route.stages) - 1

    @property
    def shardings(self) -> TrainState:
        """Where each array of the state lies."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    @property
    def gradient_shardings(self) -> Any:
        """Where the optimizer wants each gradient: as its state lies."""
        return jax.tree.map(
            lambda leaf: partitioning.split_over_data(leaf.sharding, leaf.shape), self.abstract_state.params
        )

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """In which its programs are traced: the stage's mesh and the axis rules."""
        with jax.set_mesh(self.mesh), partitioning.axis_rules():
            yield

    def create(self, seed: int) -> TrainState:
        """A fresh state."""
        return create_state(self.model, self.optimizer, self.mesh, seed)

    def trace(self, masked: bool, num_tasks: int = 0) -> Any:
        """The training step, traced: with the ramping mask, or without one; with figures of each of `num_tasks`."""
        rows = jax.ShapeDtypeStruct(
            (self.stage.batch_size, self.route.length), np.int32, sharding=self.batch_sharding
        )
        mask: Callable[[jax.Array], GrowthMask | None] = self.lineage.mask if masked else lambda step: None
        batch = dict.fromkeys(PACKED_FEATURES, rows)
        if num_tasks:
            batch[TASK_NUMBERS] = jax.ShapeDtypeStruct(
                (self.stage.batch_size,), np.int32, sharding=self.row_sharding
            )
        step = jax.jit(
            train_step(
                self.model,
                self.optimizer,
                self.stage.num_microbatches,
                mask,
                num_tasks,
                self.gradient_shardings,
            ),
            donate_argnums=0,
            # Fixed, so that one compilation serves: another shape or layout is an error, not a second program.
            out_shardings=(self.shardings, NamedSharding(self.mesh, PartitionSpec())),
        )
        return step.trace(self.abstract_state, batch)

    def sequences(self, step: int) -> int:
        """Read by the run before `step`."""
        return self.history.sequences(step)

    def tokens(self, step: int) -> int:
        """Of the run before `step`, padding included."""
        return self.sequences(step) * self.route.length

    def flops(self, step: int) -> float:
        """Model FLOPs of the run before `step`."""
        return self.lineage.flops(self.sequences(step), self.route.length, self.config)

    def introduction(self) -> str:
        """A line for the log."""
        tokens = self.stage.batch_size * self.route.length
        mesh = {axis: size for axis, size in self.mesh.shape.items() if size > 1}
        name = f"stage {self.index + 1}/{len(self.route.stages)}: " if len(self.route.stages) > 1 else ""
        return (
            f"{name}{self.config.num_params:,} parameters, steps {self.lineage.step:,} to {self.end:,} of "
            f"{self.stage.batch_size} x {self.route.length} = {tokens:,} tokens, {self.config.dtype}, "
            + (f"mesh {mesh}" if mesh else "one device")
            + self._kernel()
        )

    def _kernel(self) -> str:
        """Of attention, for the log; on CPUs there is none."""
        with self.context():
            if partitioning.platform() == "cpu":
                return ""
            return f", attention {choose(self.config, self.route.length, partitioning.platform())}"


def check_mesh(route: Route, index: int, devices: list[jax.Device] | None = None) -> None:
    """Refuses a stage whose length its model, or whose batch or parameters its mesh over `devices`, cannot take.

    Raises:
        ValueError: naming both.
    """
    stage, config, mesh = route.stages[index], route.config(index), route.stages[index].mesh.build(devices)
    if route.length > config.max_length:
        raise ValueError(
            f"TASK_FEATURE_LENGTHS make sequences of {route.length} tokens, more than ModelConfig.max_length = "
            f"{config.max_length}"
        )
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * stage.num_microbatches
    if stage.batch_size % parts:
        raise ValueError(
            f"BATCH_SIZE must be a multiple of data x fsdp devices x num_microbatches = "
            f"{mesh.shape['data']} x {mesh.shape['fsdp']} x {stage.num_microbatches}; found {stage.batch_size}"
        )
    residual = partitioning.mesh_spec("batch", "residual")[1]
    partitioning.check_divides(
        route.length, "the length of the sequences", residual, mesh, "change TASK_FEATURE_LENGTHS"
    )
    partitioning.check_divides(
        config.d_model, "the columns of the token table", partitioning.mesh_spec("looked_up")[0], mesh,
        "change ModelConfig.d_model",
    )  # fmt: skip
    partitioning.param_shardings(config, mesh)
    if config.remat == "stage" and mesh.shape["stage"] == 1:
        raise ValueError(
            "ModelConfig.remat = 'stage' keeps what pipeline stages begin with, found MeshShape.stage = 1; bind "
            "ModelConfig.remat to 'full', or MeshShape.stage to 2 or more"
        )
    with jax.set_mesh(mesh):
        choose(config, route.length, partitioning.platform())
