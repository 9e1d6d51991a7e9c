"""The run: from a model, prepared data and a directory to checkpoints and a log; resumable at any moment.

The batch of a step is a function of the step, so the state on disk is all there is to resume from.
"""

import contextlib
import dataclasses
import difflib
import enum
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from flm_jax import partitioning
from flm_jax.model import PACKED_FEATURES, LanguageModel
from flm_jax.tasks.packing import sequence_length
from flm_jax.tasks.reader import Reader
from flm_jax.training import hardware
from flm_jax.training.checkpoints import Checkpoints, Metadata
from flm_jax.training.held_out import HeldOutEvaluator, to_devices
from flm_jax.training.run_log import RunLog
from flm_jax.training.speed import Speedometer
from flm_jax.training.state import TrainState, abstract_state, create_state
from flm_jax.training.step import skipping_non_finite, train_step
from flm_jax.training.stop import StopRequest, stop_on_sigterm

# The whole numbers among a trainer's settings, and the least that each may be.
_LEAST = {
    "train_steps": 1,
    "batch_size": 1,
    "num_microbatches": 1,
    "seed": 0,
    "log_period": 1,
    "eval_period": 0,
    "checkpoint_period": 1,
    "checkpoints_to_keep": 1,
    "max_skipped_in_a_row": 1,
}


class TrainingAbortedError(RuntimeError):
    """Too many steps in a row had gradients that were not finite; the last good checkpoint is intact."""


class Outcome(enum.Enum):
    """How a run ended without an error."""

    FINISHED = "finished"
    STOPPED = "stopped by a signal, checkpoint saved"


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One training run, as gin describes it.

    Attributes:
        model: What is trained.
        optimizer: How, an optax transformation; steps with gradients that are not finite are skipped.
        learning_rate_fn: The schedule inside `optimizer`, for the log: a function of the updates made.
        model_dir: Checkpoints, `metrics.jsonl` and `tensorboard/` go here; what is there is continued.
        prepared_dir: What `flm data prepare` wrote.
        mixture: A task's name, or task to relative share of tokens.
        task_feature_lengths: As in seqio; a packed sequence is as long as the features together.
        train_steps: Batches to take, all runs on `model_dir` together.
        batch_size: Sequences a step, over all devices.
        num_microbatches: Parts of a batch whose gradients are added up, to save memory.
        seed: Of the initialisation and of the data order.
        mesh: How the devices are arranged.
        log_period: Steps between two lines.
        eval_period: Steps between two evaluations on held-out text; also before the first and after the last
            step. 0 for none.
        eval_sequences: Sequences of each task's validation split that are used; None for all.
        checkpoint_period: Steps between two checkpoints; the last step is always saved.
        checkpoints_to_keep: The newest ones.
        max_skipped_in_a_row: Steps whose gradients are not finite, one after the other, before the run aborts.
    """

    model: LanguageModel
    optimizer: optax.GradientTransformation
    learning_rate_fn: Callable[[Any], Any] | float
    model_dir: str
    prepared_dir: str
    mixture: str | Mapping[str, float]
    task_feature_lengths: int | Mapping[str, int]
    train_steps: int
    batch_size: int
    num_microbatches: int = 1
    seed: int = 0
    mesh: partitioning.MeshShape = partitioning.MeshShape()
    log_period: int = 10
    eval_period: int = 500
    eval_sequences: int | None = None
    checkpoint_period: int = 500
    checkpoints_to_keep: int = 2
    max_skipped_in_a_row: int = 10

    def run(self) -> Outcome:
        """Trains to `train_steps`, or until SIGTERM, after which the state is saved.

        Raises:
            TrainingAbortedError: too many bad steps in a row.
            ValueError: the settings do not fit each other, the data or the checkpoint; each says what to bind.
            FileNotFoundError: no prepared data.
        """
        if jax.process_count() > 1:
            raise ValueError(
                f"flm train runs in one process so far, found {jax.process_count()}: start it once, on all devices"
            )
        mesh = self.mesh.build()
        self._check(mesh)
        directory = Path(self.model_dir).expanduser()
        reader = Reader(self.prepared_dir, self.mixture, length=self.length, seed=self.seed, split="train")
        self._check_vocabulary(reader)
        directory.mkdir(parents=True, exist_ok=True)
        with jax.set_mesh(mesh), partitioning.axis_rules(), stop_on_sigterm() as stop:
            checkpoints = Checkpoints(directory, self.checkpoints_to_keep)
            try:
                return _Run(self, mesh, directory, reader, checkpoints, stop).run()
            finally:
                checkpoints.close()  # waits: what was begun is durable before the process ends

    @property
    def length(self) -> int:
        """Tokens of a packed sequence."""
        return sequence_length(self.task_feature_lengths)

    def _check(self, mesh: Mesh) -> None:
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
        parts = mesh.shape["data"] * mesh.shape["fsdp"] * self.num_microbatches
        if self.batch_size % parts:
            raise ValueError(
                f"BATCH_SIZE must be a multiple of data x fsdp devices x num_microbatches = "
                f"{mesh.shape['data']} x {mesh.shape['fsdp']} x {self.num_microbatches}; found {self.batch_size}"
            )
        if self.length > self.model.config.max_length:
            raise ValueError(
                f"TASK_FEATURE_LENGTHS {self.task_feature_lengths} make sequences of {self.length} tokens, more "
                f"than ModelConfig.max_length = {self.model.config.max_length}"
            )

    def _check_vocabulary(self, reader: Reader) -> None:
        rows, pieces = self.model.config.vocab_size, reader.vocabulary.size
        if rows < pieces:
            raise ValueError(
                f"ModelConfig.vocab_size = {rows} has no rows for all {pieces} pieces of the tokenizer that "
                f"{self.prepared_dir} was prepared with; bind ModelConfig.vocab_size to {pieces} or more"
            )


class _Run:
    """The moving parts of `Trainer.run`."""

    def __init__(
        self,
        trainer: Trainer,
        mesh: Mesh,
        directory: Path,
        reader: Reader,
        checkpoints: Checkpoints,
        stop: StopRequest,
    ) -> None:
        self.trainer = trainer
        self.directory = directory
        self.reader = reader
        self.checkpoints = checkpoints
        self.stop = stop
        self.batch_sharding = partitioning.batch_sharding(mesh)
        self.optimizer = skipping_non_finite(trainer.optimizer)
        self.metadata = Metadata(
            config=trainer.model.config,
            seed=trainer.seed,
            batch_size=trainer.batch_size,
            mixture=trainer.mixture if isinstance(trainer.mixture, str) else dict(trainer.mixture),
            data=reader.identity,
            gin_config=gin.config_str(),
        )
        self.mesh = mesh
        self.abstract_state = abstract_state(trainer.model.config, self.optimizer, mesh)
        self.state = self._restore_or_create()
        self.first_step = int(self.state.step)
        self.held_out = HeldOutEvaluator(
            trainer.model, mesh, list(reader.tasks.values()), trainer.batch_size, trainer.eval_sequences
        )
        self.peak = hardware.peak(trainer.model.config.dtype, list(mesh.devices.flat))
        self.speed = Speedometer(trainer.model.config, trainer.length, self.peak)

    def run(self) -> Outcome:
        trainer = self.trainer
        with RunLog(self.directory, self.first_step, trainer.train_steps) as log:
            self.log = log
            self._introduce()
            for line in self.changed:
                log.line(f"changed since the checkpoint: {line}")
            if self.first_step >= trainer.train_steps:
                log.line(
                    f"nothing to train: the checkpoint is at step {self.first_step}, "
                    f"TRAIN_STEPS is {trainer.train_steps}"
                )
            else:
                started = time.perf_counter()
                self._train_step = self._compile()
                log.line(f"compiled the training step in {time.perf_counter() - started:.1f} s")
            if trainer.eval_period and self.held_out.missing:
                log.line(f"not evaluated, for want of a validation split: {', '.join(self.held_out.missing)}")
            if self._evaluation_due(self.first_step) and not log.evaluated:
                self._evaluate(self.first_step)
            self.speed.restart()
            for step, batch in self._batches():
                if self.stop.received:
                    break
                self._one_step(step, batch)
            self.checkpoints.save(self.state, self.metadata)
            self.checkpoints.wait()
            if self.last_step < trainer.train_steps:
                log.line(
                    f"step {self.last_step}: {Outcome.STOPPED.value}; the same command goes on from here"
                )
                return Outcome.STOPPED
        return Outcome.FINISHED

    def _one_step(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Takes the step after `step` steps, and does what is due behind it."""
        trainer = self.trainer
        self.state, metrics = self._train_step(self.state, to_devices(batch, self.batch_sharding))
        done = step + 1
        # Reading the metrics waits for the step. On a CPU with virtual devices, steps that are dispatched on top
        # of each other can deadlock.
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.last_step = done
        self.log.advance()
        self.speed.step(values["tokens"])
        self.window.append(values)
        if values["skipped_in_a_row"]:
            self.log.line(
                f"step {done}: gradient not finite, step skipped ({values['skipped_in_a_row']:.0f} in a row, "
                f"{values['skipped']:.0f} in all)"
            )
            if values["skipped_in_a_row"] >= trainer.max_skipped_in_a_row:
                self._report(done)
                raise TrainingAbortedError(
                    f"at step {done} the gradients were not finite {values['skipped_in_a_row']:.0f} times in a row "
                    f"(Trainer.max_skipped_in_a_row = {trainer.max_skipped_in_a_row}); the parameters are those before "
                    "the first of them. Lower the learning rate, or look at the data of these steps."
                )
        if done % trainer.log_period == 0 or done == trainer.train_steps:
            self._report(done)
        # Saved first: an evaluation may be long, and one that is cut short is made up for by the next start.
        if done % trainer.checkpoint_period == 0 or done == trainer.train_steps:
            self.checkpoints.save(self.state, self.metadata)
        if self._evaluation_due(done):
            self._evaluate(done)

    def _restore_or_create(self) -> TrainState:
        trainer = self.trainer
        self.window: list[dict[str, float]] = []
        self.changed: list[str] = []
        latest = self.checkpoints.latest_step()
        self.last_step = latest or 0
        if latest is None:
            return create_state(trainer.model, self.optimizer, self.mesh, trainer.seed)
        self.changed = _changed_lines(self.checkpoints.metadata(latest).gin_config, self.metadata.gin_config)
        return self.checkpoints.restore(latest, self.abstract_state, self.metadata)

    def _compile(self) -> Callable[..., Any]:
        """The training step, compiled once and for all: another shape or layout is an error, not a second program."""
        trainer = self.trainer
        rows = jax.ShapeDtypeStruct(
            (trainer.batch_size, trainer.length), np.int32, sharding=self.batch_sharding
        )
        step = jax.jit(
            train_step(trainer.model, self.optimizer, trainer.num_microbatches),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state), None),
        )
        return step.lower(self.abstract_state, dict.fromkeys(PACKED_FEATURES, rows)).compile()

    def _batches(self) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        trainer = self.trainer
        steps = range(self.first_step, trainer.train_steps)
        batches = self.reader.prefetch(
            self.first_step * trainer.batch_size,
            trainer.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(batches):
            yield from zip(steps, batches, strict=False)

    def _introduce(self) -> None:
        trainer, config = self.trainer, self.trainer.model.config
        tokens = trainer.batch_size * trainer.length
        self.log.line(
            f"{config.num_params:,} parameters, {trainer.train_steps:,} steps of {trainer.batch_size} x "
            f"{trainer.length} = {tokens:,} tokens, {config.dtype}, mesh {dict(self.mesh.shape)}\n"
            f"peak {self.peak.flops_per_second / 1e12:.3g} TFLOP/s ({self.peak.source}); "
            f"{'begins in' if not self.first_step else f'resumes at step {self.first_step} in'} {trainer.model_dir}"
        )

    def _report(self, step: int) -> None:
        """Writes the means since the last report; steps weigh by their tokens with loss, skipped ones are left out."""
        good = [v for v in self.window if math.isfinite(v["loss"]) and math.isfinite(v["grad_norm"])]
        latest = self.window[-1]
        weights = np.array([max(values["loss_tokens"], 1e-9) for values in good])
        values = {
            f"train/{name}": float(np.average([v[name] for v in good], weights=weights)) if good else math.nan
            for name in ("loss", "z_loss", "accuracy", "grad_norm")
        }
        updates = step - int(latest["skipped"])
        rate = self.trainer.learning_rate_fn
        values["train/learning_rate"] = float(rate(max(updates - 1, 0))) if callable(rate) else rate
        values["train/skipped"] = latest["skipped"]
        values["train/tokens"] = step * self.trainer.batch_size * self.trainer.length  # padding included
        speed = self.speed.read()
        values |= {f"speed/{name}": value for name, value in speed.items()}
        self.window.clear()
        self.log.scalars(step, {name: value for name, value in values.items() if math.isfinite(value)})
        self.log.line(self._line(step, values))

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        parts = [
            f"step {step:>6}/{self.trainer.train_steps}",
            f"loss {values['train/loss']:.4f}",
            f"grad {values['train/grad_norm']:.3f}",
            f"lr {values['train/learning_rate']:.2e}",
        ]
        if values["train/skipped"]:
            parts.append(f"skipped {values['train/skipped']:.0f}")
        if "speed/tokens_per_second" in values:
            left = (self.trainer.train_steps - step) * values["speed/seconds_per_step"]
            parts += [
                f"{values['speed/tokens_per_second']:,.0f} tok/s",
                f"{values['speed/seconds_per_step'] * 1e3:,.0f} ms/step",
                f"MFU {values['speed/mfu']:.1%}",
                f"HFU {values['speed/hfu']:.1%}",
                f"left {time.strftime('%H:%M:%S', time.gmtime(left))}",
            ]
        return "  ".join(parts)

    def _evaluation_due(self, step: int) -> bool:
        period = self.trainer.eval_period
        return bool(period) and (step % period == 0 or step == self.trainer.train_steps)

    def _evaluate(self, step: int) -> None:
        """Loss, bits per byte and accuracy on each task's held-out text."""
        with self.speed.paused():
            tasks = self.held_out(self.state.params, cancelled=lambda: self.stop.received)
            if tasks is None:
                return
            # One record for all tasks: a run that is killed here has evaluated all of them or none.
            values = {
                f"eval/{name}/{measure}": getattr(found, measure)
                for name, found in tasks.items()
                for measure in ("loss", "bits_per_byte", "accuracy")
            }
            self.log.scalars(step, values)
            for name, found in tasks.items():
                self.log.line(
                    f"eval {step:>6}  {name}: loss {found.loss:.4f} nats/token, {found.bits_per_byte:.4f} bits/byte "
                    f"({found.tokens:,} tokens)"
                )


def _changed_lines(before: str, now: str) -> list[str]:
    """The bindings that differ between two gin configurations: `- ` as it was, `+ ` as it is."""
    lines = difflib.ndiff(before.splitlines(), now.splitlines())
    return [line for line in lines if line.startswith(("- ", "+ ")) and "=" in line]
