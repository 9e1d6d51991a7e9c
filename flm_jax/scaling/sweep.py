"""A sweep: trials of hyperparameters on small widths, each carried out once, whatever comes in between.

A trial that is over is a line of `trials.jsonl`; those under way have a checkpoint. The same command goes on with the
rest, and further values, widths or seeds can be added to it.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np

from flm_jax import gin_setup
from flm_jax.scaling.together import Together, Trained, groups
from flm_jax.scaling.trials import Trial
from flm_jax.scaling.widths import at_width
from flm_jax.training.trainer import Trainer

# What trials of one program may differ in, by the last part of the binding's name.
_SHARED_PROGRAM = ("LEARNING_RATE", "learning_rate", "init_std")
_CURVE_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Result:
    """A trial that is over.

    Attributes:
        trial: What it tried.
        num_params: Of its model.
        tokens: It was trained on, padding included.
        train_loss: Mean of the last tenth of its steps, nats per token.
        held_out: Loss of each task with a validation split.
        loss: What trials are compared by: the mean of `held_out`, each task with its share of the mixture; without any
            held-out text `train_loss`.
        skipped: Steps whose gradients were not finite.
        curve: (step, mean training loss since the point before), up to a hundred.
    """

    trial: Trial
    num_params: int
    tokens: int
    train_loss: float
    held_out: dict[str, float]
    loss: float
    skipped: int
    curve: list[tuple[int, float]]

    def to_json(self) -> dict[str, Any]:
        """A line of `trials.jsonl`."""
        values = dataclasses.asdict(self)
        return values | {"trial": {**values["trial"], "bindings": dict(self.trial.bindings)}}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Result":
        """The inverse of `to_json`."""
        trial = values["trial"]
        known = Trial(trial["width"], tuple(trial["bindings"].items()), trial["seed"])
        return Result(**values | {"trial": known, "curve": [tuple(point) for point in values["curve"]]})


class Sweep:
    """The trials of one run's configuration in one directory.

    Args:
        out: Where `sweep.gin`, `trials.jsonl` and the checkpoints of trials under way go.
        files: gin files of the run, which has one stage.
        bindings: Flags of the run.
        paths: In which gin files are looked for.

    Raises:
        ValueError: another run's sweep lies there.
    """

    def __init__(
        self, out: Path, files: Sequence[str], bindings: Sequence[str], paths: Sequence[str]
    ) -> None:
        self._out, self._files, self._bindings, self._paths = out, files, bindings, paths
        self._results = out / "trials.jsonl"
        self._check_same()

    def run(
        self, trials: Sequence[Trial], at_once: int, say: Callable[[str], None] = lambda line: None
    ) -> list[Result]:
        """Carries out those that are not over, and gives the results of all, in their order.

        Args:
            trials: What is wanted.
            at_once: Trials of one program that are trained together.
            say: Takes a line behind each group.

        Raises:
            ValueError: a trial's configuration is wrong, or the run has several stages.
        """
        done = {result.trial: result for result in self._finished()}
        left = [trial for trial in trials if trial not in done]
        for trial in dict.fromkeys(dataclasses.replace(trial, seed=0) for trial in left):
            self._trainer(trial)  # what is wrong is better known now
        for places in groups([_program(trial) for trial in left], at_once):
            group = [left[place] for place in places]
            started = time.perf_counter()
            for result in self._train(group):
                done[result.trial] = result
            say(
                f"{len(done)} of {len(done) + sum(trial not in done for trial in left)} trials; {len(group)} in "
                f"{time.perf_counter() - started:.0f} s: "
                + "; ".join(f"{trial.name}: {done[trial].loss:.4f}" for trial in group)
            )
        return [done[trial] for trial in trials]

    def _train(self, group: list[Trial]) -> list[Result]:
        names = "\n".join(trial.name for trial in group)
        directory = self._out / "under_way" / hashlib.sha256(names.encode()).hexdigest()[:16]
        together = Together([self._trainer(trial) for trial in group], directory)
        found = [
            _result(trial, trained, together.shares)
            for trial, trained in zip(group, together.train(), strict=True)
        ]
        with self._results.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(result.to_json()) + "\n" for result in found))
        shutil.rmtree(directory)
        return found

    def _trainer(self, trial: Trial) -> Trainer:
        """The run of a trial; leaves gin with its configuration."""
        flags = [*self._bindings, *(f"{name}={value}" for name, value in trial.bindings)]
        gin_setup.parse(self._files, [*flags, f"MODEL_DIR={self._out}"], self._paths)
        trainer = gin_setup.built(gin.get_configurable(Trainer))
        if len(trainer.stages) != 1:
            raise ValueError(
                f"expected a run of one stage to sweep over, found {len(trainer.stages)} in Trainer.stages: leave out "
                "the gin file of its growth"
            )
        (stage,) = trainer.stages
        if trial.width is not None:
            stage = dataclasses.replace(
                stage, model=stage.model.with_config(at_width(stage.model.config, trial.width))
            )
        return dataclasses.replace(trainer, stages=[stage], seed=trial.seed)

    def _check_same(self) -> None:
        """A directory belongs to one run's configuration, whatever is varied in it."""
        gin_setup.parse(self._files, [*self._bindings, f"MODEL_DIR={self._out}"], self._paths)
        here, path = gin.config_str(max_line_length=10_000), self._out / "sweep.gin"
        if not path.exists():
            self._out.mkdir(parents=True, exist_ok=True)
            path.write_text(here, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != here:
            raise ValueError(
                f"expected the gin files and flags of the sweep in {path}, found others: give --out another directory, "
                "or the same configuration (what --vary, --widths and --seeds say may change)"
            )

    def _finished(self) -> list[Result]:
        if not self._results.exists():
            return []
        lines = self._results.read_text(encoding="utf-8").split("\n")
        if lines[-1]:  # of a process that was killed while it wrote
            self._results.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
        return [Result.from_json(json.loads(line)) for line in lines[:-1]]


def _program(trial: Trial) -> tuple[Any, ...]:
    """What trials of one program have in common."""
    return trial.width, *(
        (name, value) for name, value in trial.bindings if name.rsplit(".", 1)[-1] not in _SHARED_PROGRAM
    )


def _result(trial: Trial, trained: Trained, shares: dict[str, float]) -> Result:
    losses = trained.losses
    tail = float(np.mean(losses[-max(1, len(losses) // 10) :]))
    held_out = {task: found.loss for task, found in trained.held_out.items()}
    weight = sum(shares[task] for task in held_out)
    loss = sum(shares[task] * held_out[task] for task in held_out) / weight if held_out else tail
    parts = np.array_split(losses, min(_CURVE_POINTS, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    return Result(
        trial,
        trained.num_params,
        trained.tokens,
        tail,
        held_out,
        loss,
        trained.skipped,
        [(int(end), float(part.mean())) for end, part in zip(ends, parts, strict=True)],
    )
