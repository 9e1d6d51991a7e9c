"""A sweep: trials of hyperparameters on small widths, each carried out once, whatever comes in between.

A trial that is over is a line of `trials.jsonl`; those under way have a checkpoint. The same command goes on with the
rest, and further values, widths or seeds can be added to it.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
from tqdm import tqdm

from flm_jax import gin_setup
from flm_jax.json_file import write_json
from flm_jax.scaling.together import Prepared, Together, TooLargeError, Trained, groups
from flm_jax.scaling.trials import Result, Trial
from flm_jax.scaling.widths import at_width
from flm_jax.training.trainer import Trainer

# What trials of one program may differ in.
_DATA = ("Stage.learning_rate", "ModelConfig.init_std")
_GROUP = "trials.json"  # of a group that is under way
_CURVE_POINTS = 100


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
            at_once: Trials of one program that are trained together, at most; fewer where they do not fit.
            say: Takes a line behind each group.

        Raises:
            ValueError: a trial's configuration is wrong, or the run has several stages.
        """
        done = {result.trial: result for result in self._finished()}
        left = [trial for trial in trials if trial not in done]
        programs = {}
        for trial in left:  # what is wrong is better known now
            self._trainer(trial)
            programs[trial] = _program(trial, gin.config_str(max_line_length=10_000))
        waiting = self._under_way(left)
        rest = [trial for trial in left if not any(trial in group for group in waiting)]
        waiting += [
            [rest[place] for place in places]
            for places in groups([programs[trial] for trial in rest], at_once)
        ]
        while waiting:
            group, started = waiting.pop(0), time.perf_counter()
            try:
                found = self._train(group)
            except TooLargeError as error:
                if len(group) == 1:
                    raise
                say(f"{error}; half of them at a time")
                shutil.rmtree(self._directory(group))
                waiting = [group[: len(group) // 2], group[len(group) // 2 :], *waiting]
                continue
            done |= {result.trial: result for result in found}
            say(
                f"{len(done)} of {len(done) + sum(map(len, waiting))} trials; {len(group)} in "
                f"{time.perf_counter() - started:.0f} s: "
                + "; ".join(f"{trial.name}: {done[trial].loss:.4f}" for trial in group)
            )
        return [done[trial] for trial in trials]

    def _train(self, group: list[Trial]) -> list[Result]:
        directory = self._directory(group)
        write_json(directory / _GROUP, [trial.to_json() for trial in group])
        together = Together([Prepared.of(self._trainer(trial)) for trial in group], directory / "state")
        with tqdm(total=together.num_steps, unit="step", disable=not sys.stderr.isatty()) as bar:

            def advance(loss: float) -> None:
                bar.set_postfix(trials=len(group), loss=f"{loss:.4f}")
                bar.update()

            trained = together.train(advance)
        found = [_result(trial, each, together.shares) for trial, each in zip(group, trained, strict=True)]
        with self._results.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(result.to_json()) + "\n" for result in found))
        shutil.rmtree(directory)
        return found

    def _directory(self, group: Sequence[Trial]) -> Path:
        """Of a group that is under way."""
        names = "\n".join(trial.name for trial in group)
        return self._out / "under_way" / hashlib.sha256(names.encode()).hexdigest()[:16]

    def _under_way(self, left: Sequence[Trial]) -> list[list[Trial]]:
        """Groups that were killed, to go on with as they are; what nobody wants any longer is removed."""
        found = []
        for directory in sorted((self._out / "under_way").glob("*")):
            file = directory / _GROUP
            group = (
                [Trial.from_json(one) for one in json.loads(file.read_text("utf-8"))] if file.exists() else []
            )
            if group and set(group) <= set(left):
                found.append(group)
            else:
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
            config = at_width(stage.model.config, trial.width)
            stage = dataclasses.replace(stage, model=stage.model.with_config(config))
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


def _program(trial: Trial, text: str) -> tuple[Any, ...]:
    """What trials of one program have in common: the width, and all bindings that are no data of the program."""
    return trial.width, *((name, value) for name, value in trial.bindings if not _is_data(name, text))


def _is_data(name: str, text: str) -> bool:
    """Whether a binding reaches the learning rate's peak or the initial draw, and nothing else of a configuration."""
    if "." in name:
        return name.endswith(_DATA)
    used = [line for line in text.splitlines() if re.search(rf"%{re.escape(name)}(?![\w.])", line)]
    return bool(used) and all(line.partition("=")[0].strip().endswith(_DATA) for line in used)


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
