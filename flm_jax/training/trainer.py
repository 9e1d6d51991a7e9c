"""What a training run is: stages, prepared data and a directory, as gin describes them."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gin
import jax
import optax

from flm_jax import optimizer as optimizers
from flm_jax.grow.lineage import Lineage
from flm_jax.grow.schedule import Route, Stage
from flm_jax.tasks.history import History
from flm_jax.tasks.packing import sequence_length
from flm_jax.tasks.reader import Reader
from flm_jax.training import data_history, processes
from flm_jax.training.bookkeeper import Bookkeeper
from flm_jax.training.checkpoints import Checkpoints
from flm_jax.training.leg import Leg, check_mesh
from flm_jax.training.run import Outcome as Outcome
from flm_jax.training.run import Run
from flm_jax.training.run import TrainingAbortedError as TrainingAbortedError
from flm_jax.training.stop import stop_on_sigterm

# The whole numbers among a trainer's settings, and the least that each may be.
_LEAST = {
    "seed": 0,
    "log_period": 1,
    "eval_period": 0,
    "suite_period": 0,
    "checkpoint_period": 1,
    "checkpoints_to_keep": 1,
    "max_skipped_in_a_row": 1,
}


@runtime_checkable
class Checked(Protocol):
    """What can tell beforehand that it would fail."""

    def check(self) -> None:
        """Raises a ValueError or an OSError."""
        ...


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One training run.

    Attributes:
        stages: What is trained, one after the other, each grown out of the one before; one stage is a run without
            growth.
        model_dir: Checkpoints, `metrics.jsonl`, `ledger.json` and `tensorboard/` go here; what is there is continued.
        prepared_dir: What `flm data prepare` wrote.
        mixture: What is read: a task's name, task to relative share of tokens, a schedule of these by tokens, or
            `Alternating` (`tasks.mixture`). A stage may have its own.
        task_feature_lengths: As in seqio; a packed sequence is as long as the features together.
        optimizer: Makes each stage's optimizer: `optimizer(config, learning_rate, multipliers=)`, with a function of
            the updates made and with what growth asks for. Steps with gradients that are not finite are skipped.
        schedule: Makes each stage's learning rate: `schedule(peak=, total_steps=, warmup_steps=)`.
        seed: Of the initialisation, of the new weights and of the data order.
        log_period: Steps between two lines.
        eval_period: Steps between two evaluations on held-out text; also before the first step and after the last of
            every stage. 0 for none.
        eval_sequences: Sequences of each task's validation split that are used; None for all.
        suite: What is asked of the model besides, `evaluation.suites.SuiteRun` or a function of the same form; None
            for nothing. If it has a method `check`, that is called before the first step.
        suite_period: Steps between two times; also before the first step and after the last of every stage. 0 for
            never.
        checkpoint_period: Steps between two checkpoints; the last of every stage is always saved, and kept.
        checkpoints_to_keep: The newest ones, besides the stages' ends.
        max_skipped_in_a_row: Steps whose gradients are not finite, one after the other, before the run aborts.
        max_epochs: For which a task may be read, a number or task to number; None for any. From there on its share
            goes to the others.
    """

    stages: Sequence[Stage]
    model_dir: str
    prepared_dir: str
    mixture: Any
    task_feature_lengths: int | Mapping[str, int]
    optimizer: Callable[..., optax.GradientTransformation] = optimizers.adamw
    schedule: Callable[..., optax.Schedule] = optimizers.warmup_cosine
    seed: int = 0
    log_period: int = 10
    eval_period: int = 500
    eval_sequences: int | None = None
    suite: Callable[..., Iterable[Any]] | None = None
    suite_period: int = 0
    checkpoint_period: int = 500
    checkpoints_to_keep: int = 2
    max_skipped_in_a_row: int = 10
    max_epochs: float | Mapping[str, float] | None = None

    def run(self) -> Outcome:
        """Trains to the end of the last stage, or until SIGTERM, after which the state is saved.

        Raises:
            TrainingAbortedError: too many bad steps in a row.
            LedgerError: the ledger of the run so far cannot be read.
            FunctionChangedError: a growth did not keep the function as its method should.
            GrowthError: a growth cannot be planned; before anything is written.
            ValueError: the settings do not fit each other, the data or the checkpoint; each says what to bind.
            FileNotFoundError: no prepared data.
        """
        started = time.perf_counter()
        processes.check_equal(
            "settings", self._settings(), "start all of them with the same gin files and flags"
        )
        route = self.check()
        directory = Path(self.model_dir).expanduser()
        history = self._history(route)
        reader = Reader(self.prepared_dir, history, length=route.length, seed=self.seed, split="train")
        self._check_vocabulary(reader)
        files = {
            name: [file.sha256 for split in sorted(task.splits) for file in task.counts(split).files]
            for name, task in reader.tasks.items()
        }
        found = "\n".join(f"{name} = {hashes}" for name, hashes in files.items())
        processes.check_equal("prepared data", found, "give all of them the same PREPARED_DIR")
        if not any(directory.glob("checkpoint_*")):
            data_history.check_lasts(reader.plan, history, route.length, route.end_of_run(0, 0))
        directory.mkdir(parents=True, exist_ok=True)
        processes.check_shared(directory)
        with stop_on_sigterm() as stop, Bookkeeper(directory, started) as books:
            checkpoints = Checkpoints(directory, self.checkpoints_to_keep)
            try:
                return Run(self, route, directory, reader, checkpoints, stop, books).run()
            finally:
                checkpoints.close()  # waits: what was begun is durable before the process ends

    def _settings(self) -> str:
        """What the processes of a run must have in common."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("stages", "optimizer", "schedule", "suite")  # whose bindings gin has
        }
        stages = [vars(stage) | {"model": stage.model.config} for stage in self.stages]
        lines = [f"Trainer.{name} = {value!r}" for name, value in fields.items()]
        lines += [
            f"stage {index}: {name} = {value!r}"
            for index, stage in enumerate(stages, 1)
            for name, value in stage.items()
        ]
        return "\n".join([*lines, gin.config_str(max_line_length=10_000)])

    def check(self, devices: list[jax.Device] | None = None) -> Route:
        """The run's stages; refuses, before anything is written, what would fail in mid-run.

        Args:
            devices: On which it is to run, which need not be here; all that are here unless given.

        Raises:
            ValueError: saying what to bind.
        """
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"Trainer.{name} must be a whole number of at least {least}, found {value!r}"
                )
        for name in ("model_dir", "prepared_dir"):
            if not isinstance(getattr(self, name), str | Path):
                raise ValueError(f"Trainer.{name} must be a path in quotes, found {getattr(self, name)!r}")
        if self.eval_sequences is not None and self.eval_sequences < 1:
            raise ValueError(
                f"Trainer.eval_sequences must be None or at least 1, found {self.eval_sequences}"
            )
        if self.suite_period and self.suite is None:
            raise ValueError(
                f"Trainer.suite_period = {self.suite_period} has no suite to run: bind Trainer.suite (add "
                "--gin_file=gin_configs/runs/iq.gin), or Trainer.suite_period to 0"
            )
        if self.suite_period and isinstance(self.suite, Checked):
            self.suite.check()
        route = Route.of(self.stages, sequence_length(self.task_feature_lengths))
        for index in range(len(route.stages)):
            check_mesh(route, index, devices)
        runs = [self.legs(route, devices)]
        if any(stage.slope is not None for stage in route.stages):
            runs.append(self.legs(route, devices, early=True))
        for legs in runs:
            states = [leg.abstract_state for leg in legs]
            for leg, old, new in zip(legs[1:], states, states[1:], strict=False):
                grow = functools.partial(
                    route.plans[leg.index - 1], policy=leg.stage.optimizer_state, like=new
                )
                jax.eval_shape(grow, old, jax.random.key(0))
        return route

    def legs(self, route: Route, devices: list[jax.Device] | None = None, early: bool = False) -> list[Leg]:
        """All stages, each as it is at its longest; their schedules and optimizers can be made.

        Args:
            route: The stages.
            devices: As in `check`.
            early: Every stage that a flat loss may end does so at the first opportunity, which leaves the schedules the
                least room.

        Raises:
            ValueError: a stage has no room for its schedule, or for the window of its slope.
        """
        legs: list[Leg] = []
        lineage = Lineage()
        history = data_history.in_stage(None, route, 0, 0, self.mixture, self.max_epochs)
        for index in range(len(route.stages)):
            leg = Leg(route, lineage, self.optimizer, self.schedule, history, devices)
            legs.append(leg)
            if leg.earliest_end > leg.end:
                raise ValueError(
                    f"stage {index + 1}: the window of its slope begins behind ramp and warmup at step "
                    f"{leg.slope_start} and, with Stage.slope_window = {leg.stage.slope_window} of the tokens, is full "
                    f"at step {leg.earliest_end}, but the stage ends at {leg.end}; lower Stage.slope_window, or set "
                    "Stage.slope to None"
                )
            if not leg.is_last:
                end = leg.earliest_end if early else leg.end
                lineage = route.grown(lineage, end, end, leg.sequences(end))
                history = data_history.in_stage(history, route, index + 1, end, self.mixture, self.max_epochs)
        return legs

    def _history(self, route: Route) -> History:
        """Of a run from its first step on, each stage at its longest."""
        history = data_history.in_stage(None, route, 0, 0, self.mixture, self.max_epochs)
        return data_history.with_later_stages(
            history, route, 0, route.end(0, 0, history), self.mixture, self.max_epochs
        )

    def _check_vocabulary(self, reader: Reader) -> None:
        rows, pieces = self.stages[0].model.config.vocab_size, reader.vocabulary.size
        if rows < pieces:
            raise ValueError(
                f"ModelConfig.vocab_size = {rows} has no rows for all {pieces} pieces of the tokenizer that "
                f"{self.prepared_dir} was prepared with; bind ModelConfig.vocab_size to {pieces} or more"
            )
