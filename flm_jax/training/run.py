"""A run under way: from the state on disk through its stages to the end.

The batch of a step is a function of how many sequences were read before it, and a growth is a function of the state
before it and the seed, so the newest checkpoint is all there is to resume from: in a stage, in a ramp, at a boundary.
"""

import contextlib
import enum
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gin
import jax

from flm_jax.grow.lineage import Lineage
from flm_jax.grow.schedule import Route
from flm_jax.tasks.history import History
from flm_jax.tasks.reader import Reader
from flm_jax.training import boundary, data_history, hardware, processes
from flm_jax.training.bookkeeper import Bookkeeper
from flm_jax.training.checkpoints import Checkpoints
from flm_jax.training.feed import Feed
from flm_jax.training.leg import Leg
from flm_jax.training.loss_slope import LossSlope
from flm_jax.training.measuring import Measuring
from flm_jax.training.metadata import CheckpointMismatchError, Metadata, changed_lines
from flm_jax.training.progress import progress_line
from flm_jax.training.run_log import RunLog
from flm_jax.training.speed import Speedometer
from flm_jax.training.state import TrainState
from flm_jax.training.step_window import StepWindow
from flm_jax.training.stop import StopRequest

if TYPE_CHECKING:
    from flm_jax.training.trainer import Trainer


class TrainingAbortedError(RuntimeError):
    """Too many steps in a row had gradients that were not finite; the last good checkpoint is intact."""


class Outcome(enum.Enum):
    """How a run ended without an error."""

    FINISHED = "finished"
    STOPPED = "stopped by a signal, checkpoint saved"


class Run:
    """The moving parts of `Trainer.run`."""

    def __init__(
        self,
        trainer: "Trainer",
        route: Route,
        directory: Path,
        reader: Reader,
        checkpoints: Checkpoints,
        stop: StopRequest,
        books: Bookkeeper,
    ) -> None:
        self.trainer = trainer
        self.route = route
        self.directory = directory
        self.reader = reader
        self.checkpoints = checkpoints
        self.stop = stop
        self.books = books
        self.changed: list[str] = []
        self.history: History
        self.leg: Leg
        self.slope: LossSlope
        self.state = self._restore_or_create()
        self.last_step = self.first_step = int(self.state.step)
        self.window = StepWindow(self._counted_tasks)
        self.peak = hardware.peak(self.leg.config.dtype, list(self.leg.mesh.devices.flat))
        books.begin(self.leg, self.first_step, self.peak)

    def run(self) -> Outcome:
        """Trains and grows to the end, or until a stop is asked for."""
        growths = [record.step for record in self.leg.lineage.records]
        with RunLog(self.directory, self.first_step, self.leg.end_of_run, growths) as log:
            self.log = log
            self._introduce()
            while True:
                with self.leg.context():
                    self._train_leg()
                log.line(self.books.ledger.table())
                if self.stop.received and not (self.leg.is_last and self._is_over()):
                    log.line(
                        f"step {self.last_step}: {Outcome.STOPPED.value}; the same command goes on from here"
                    )
                    return Outcome.STOPPED
                if self.leg.is_last:
                    return Outcome.FINISHED
                self._grow()

    def _train_leg(self) -> None:
        """Trains the present stage to its end, or to a stop, and saves."""
        leg, log = self.leg, self.log
        self.speed = Speedometer(leg.config, self.route.length, self.peak, self.books.training_seconds)
        log.line(leg.introduction())
        if self._is_over():
            if leg.is_last:
                log.line(
                    f"nothing to train: the checkpoint is at step {self.last_step}, the last stage ends at {leg.end} "
                    "(TRAIN_STEPS, or Stage.steps where there are several)"
                )
        elif not self.stop.received:
            self._compile()
        self.measure = Measuring(self.trainer, leg, self.reader, log, self.books, self.stop)
        self.measure(self.state.params, self.last_step, self._is_over())
        feed = Feed(self.reader, leg, self.last_step, with_tasks=bool(self._counted_tasks))
        with contextlib.closing(feed), self.books.spending("training"):
            while not self._is_over() and not self.stop.asked_for():
                if self._masked and self.last_step >= leg.lineage.ramp_end:
                    self._compile()
                self._one_step(feed)
        if self._is_over():
            self.checkpoints.pin(self.last_step)
        self._save()
        with self.books.spending("saving"):
            self.checkpoints.wait()

    def _one_step(self, feed: Feed) -> None:
        """Takes one step, and does what is due behind it."""
        trainer = self.trainer
        self.state, metrics = self._train_step(self.state, feed.take())
        if self.last_step + 1 < self.leg.end:
            feed.place_ahead()
        # Reading the metrics waits for the step. On a CPU with virtual devices, steps that are dispatched on top
        # of each other can deadlock.
        values = self.window.add(jax.device_get(metrics))
        done = self.last_step = self.last_step + 1
        self.log.advance()
        self.books.step(values["tokens"])
        self.speed.step(values["tokens"], self.books.hardware_flops)
        self.latest = values
        if self.leg.stage.slope is not None and not values["skipped_in_a_row"]:
            self.slope.add(self.leg.tokens(done), values["loss"])
        if values["skipped_in_a_row"]:
            self.log.line(
                f"step {done}: gradient not finite, step skipped ({values['skipped_in_a_row']:.0f} in a row, "
                f"{values['skipped']:.0f} in all)"
            )
            if values["skipped_in_a_row"] >= trainer.max_skipped_in_a_row:
                self._report()
                raise TrainingAbortedError(
                    f"at step {done} the gradients were not finite {values['skipped_in_a_row']:.0f} times in a row "
                    f"(Trainer.max_skipped_in_a_row = {trainer.max_skipped_in_a_row}); the parameters are those before "
                    "the first of them. Lower the learning rate, or look at the data of these steps."
                )
        over = self._is_over()
        if done % trainer.log_period == 0 or over:
            self._report()
        # Saved first: an evaluation may be long, and one that is cut short is made up for by the next start.
        if over:
            self.checkpoints.pin(done)
        if done % trainer.checkpoint_period == 0 or over:
            self._save()
        self.measure(self.state.params, done, over)

    def _grow(self) -> None:
        """Grows into the next stage and proves that the function is kept; the stage's end is saved already."""
        started, old = time.perf_counter(), self.leg
        updates = self.last_step - int(self.state.opt_state.total_notfinite)
        lineage = self.route.grown(old.lineage, self.last_step, updates, old.sequences(self.last_step))
        self.history = self._history_in_stage(self.history, old.index + 1, self.last_step)
        new = self._leg(lineage)
        self.books.begin(new, self.last_step, self.peak)
        with self.books.spending("growing"):
            self._follow(new)
            # The sequences that come next.
            rows = self.reader.batch(old.sequences(self.last_step), boundary.num_rows_for_gate(old, new))
            self.state, found = boundary.grow(old, new, self.state, rows, self.trainer.seed)
        self.leg = new
        self.slope = self._slope_of(new)
        self.log.scalars(self.last_step, boundary.scalars(new, found))
        self.log.line(boundary.line(old, new, found, started))

    def _leg(self, lineage: Lineage) -> Leg:
        return Leg(self.route, lineage, self.trainer.optimizer, self.trainer.schedule, self.history)

    def _history_in_stage(self, history: History | None, index: int, step: int) -> History:
        trainer = self.trainer
        return data_history.in_stage(history, self.route, index, step, trainer.mixture, trainer.max_epochs)

    def _follow(self, leg: Leg) -> None:
        """The reader of this stage and of those to come."""
        trainer = self.trainer
        self.whole_history = data_history.with_later_stages(
            self.history, self.route, leg.index, leg.end, trainer.mixture, trainer.max_epochs
        )
        self.reader = self.reader.following(self.whole_history)

    @property
    def _counted_tasks(self) -> list[str]:
        """Whose figures are reported one by one; of a single task they would be those of the run."""
        return list(self.reader.tasks) if len(self.reader.tasks) > 1 else []

    def _restore_or_create(self) -> TrainState:
        """Sets the present stage and the slope's window besides."""
        latest = self.checkpoints.latest_step()
        processes.check_equal(
            "newest checkpoint", f"step = {latest}", "bind MODEL_DIR to a directory that all of them share"
        )
        found = None if latest is None else self.checkpoints.metadata(latest)
        lineage = Lineage.from_json(found.growth_record) if found else Lineage()
        if len(lineage.records) >= len(self.route.stages):
            raise CheckpointMismatchError(
                f"{self.directory}/checkpoint_{latest} has grown {len(lineage.records)} times: expected at least "
                f"{len(lineage.records) + 1} in Trainer.stages, found {len(self.route.stages)}; give all stages, those "
                "that are over too"
            )
        before = found.data_history if found else None
        self.history = self._history_in_stage(before, len(lineage.records), latest or 0)
        self.leg = self._leg(lineage)
        self._follow(self.leg)
        data_history.check_lasts(self.reader.plan, self.whole_history, self.route.length, self.leg.end_of_run)
        self.slope = self._slope_of(self.leg, found.loss_window if found else ())
        if found is not None:
            self._check_lineage(f"{self.directory}/checkpoint_{latest}")
        for record in lineage.records:
            self.checkpoints.pin(record.step)
        with self.leg.context():
            if found is None or latest is None:
                return self.leg.create(self.trainer.seed)
            wanted = self._metadata()
            if found.gin_config:  # none is known of a run under t5x, or from Python
                self.changed = [
                    f"changed since the checkpoint: {line}"
                    for line in changed_lines(found.gin_config, wanted.gin_config)
                ]
            self.changed += filter(None, [self._changed_data(found, latest)])
            return self.checkpoints.restore(latest, self.leg.abstract_state, wanted)

    def _check_lineage(self, checkpoint: str) -> None:
        """Refuses stages that are not those that the checkpoint has been through."""
        leg, lineage = self.leg, self.leg.lineage
        for index, record in enumerate(lineage.records):
            planned = dict(self.route.plans[index].operators)
            if record.operators != planned:
                raise CheckpointMismatchError(
                    f"{checkpoint} has grown into stage {index + 2} by {record.operators}, but Stage.method of that "
                    f"stage now means {planned}; restore it, or bind MODEL_DIR to a new directory"
                )
            policy = self.route.stages[index + 1].multipliers
            if record.multipliers != policy:
                raise CheckpointMismatchError(
                    f"{checkpoint} has grown into stage {index + 2} with Stage.multipliers = {record.multipliers!r}, "
                    f"found {policy!r}; restore it, or bind MODEL_DIR to a new directory"
                )
        if leg.end < lineage.ramp_end:
            raise CheckpointMismatchError(
                f"stage {leg.index + 1} would end at step {leg.end}, while the mask of {checkpoint} still opens: its "
                f"ramp began at step {lineage.step} over {lineage.records[-1].ramp_steps} steps. Bind Stage.steps of "
                f"this stage to {lineage.records[-1].ramp_steps} or more"
            )

    @staticmethod
    def _slope_of(leg: Leg, points: Sequence[Sequence[float]] = ()) -> LossSlope:
        return LossSlope(leg.stage.slope_window, leg.tokens(leg.slope_start), points)

    def _metadata(self) -> Metadata:
        return Metadata(
            config=self.leg.config,
            seed=self.trainer.seed,
            batch_size=self.leg.stage.batch_size,
            mixture=self.history.segments[-1].mixture.to_json(),
            data=self.reader.identity,
            gin_config=gin.config_str(
                max_line_length=10_000
            ),  # a binding a line, for telling what has changed
            growth_record=self.leg.lineage.to_json(),
            loss_window=tuple(self.slope.points) if self.leg.stage.slope is not None else (),
            history=tuple(self.history.to_json()),
        )

    def _save(self) -> None:
        with self.books.spending("saving"):
            self.books.close_entry()
            self.checkpoints.save(self.state, self._metadata())

    def _is_over(self) -> bool:
        """Whether the present stage is: by its steps, or because its loss has become flat."""
        if self.last_step >= self.leg.end:
            return True
        slope = None if self.leg.stage.slope is None else self.slope.slope()
        return slope is not None and slope >= (self.leg.stage.slope or 0.0)

    def _compile(self) -> None:
        """Compiles the next step's program: under the growth mask while that ramps, without one afterwards."""
        started = time.perf_counter()
        self._masked = self.last_step < self.leg.lineage.ramp_end
        with self.books.spending("compiling"):
            traced = self.leg.trace(self._masked, len(self._counted_tasks))
            self._train_step = traced.lower().compile()
            if uncounted := self.books.count(traced.jaxpr):
                self.log.line(uncounted)
        self.log.line(
            f"compiled the training step{' under the growth mask' if self._masked else ''} in "
            f"{time.perf_counter() - started:.1f} s"
        )

    def _changed_data(self, found: Metadata, step: int) -> str | None:
        over = step >= self.leg.end  # then this stage reads no more
        before = found.data_history.at(step)
        return None if over else data_history.changes(before, self.history, step, self.route.length)

    def _introduce(self) -> None:
        if len(self.route.stages) > 1:
            self.log.line(self.route.describe())
        begins = f"resumes at step {self.first_step} in" if self.first_step else "begins in"
        self.log.line(
            f"peak {self.peak.flops_per_second / 1e12:.3g} TFLOP/s ({self.peak.source}); {begins} "
            f"{self.trainer.model_dir}"
        )
        for line in [*self.changed, *self.books.ledger.gaps]:
            self.log.line(line)
        ahead = (self.reader.plan, self.whole_history, self.first_step, self.leg.end_of_run)
        for line in [*data_history.caps_ahead(*ahead), *data_history.not_in_every_batch(*ahead)]:
            self.log.line(line)

    def _report(self) -> None:
        """Writes the means since the last report, and where the run stands."""
        step, latest = self.last_step, self.latest
        values = self.window.take()
        updates = step - int(latest["skipped"])
        values["train/learning_rate"] = float(self.leg.learning_rate(max(updates - 1, 0)))
        values["train/skipped"] = latest["skipped"]
        values["train/tokens"] = self.leg.tokens(step)
        values["train/flops"] = self.leg.flops(step)
        slope = None if self.leg.stage.slope is None else self.slope.slope()
        if slope is not None:
            values["train/loss_slope"] = slope
        values |= {f"speed/{name}": value for name, value in self.speed.read().items()}
        values |= data_history.figures(self.reader.plan, self.leg.sequences(step))
        self.log.scalars(step, {name: value for name, value in values.items() if math.isfinite(value)})
        self.log.line(progress_line(step, self.leg, values))
        self.books.write()
