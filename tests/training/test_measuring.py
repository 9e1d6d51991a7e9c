"""What is measured between steps: held-out loss and a suite, when due and once."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flm_jax import ModelConfig
from flm_jax.evaluation.benchmark_suite import BenchmarkSuite
from flm_jax.evaluation.iq_suite import IqSuite
from flm_jax.evaluation.measured import Measured
from flm_jax.evaluation.suites import SuiteRun
from flm_jax.training.run_log import read_metrics
from flm_jax.training.trainer import Outcome
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")


class NormOfTheParameters:
    """A suite whose answers are functions of what it was given."""

    def __init__(self) -> None:
        self.asked: list[tuple[ModelConfig, int]] = []

    def __call__(
        self, config: ModelConfig, params: Any, vocabulary: Any, growth: Any, mesh: Any
    ) -> Iterator[Measured]:
        self.asked.append((config, vocabulary.size))
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
        yield Measured("iq", "norm", "exact", float(sum((leaf**2).sum() for leaf in leaves)))
        yield Measured("iq", "nothing", "exact", float("nan"))


def measured(model_dir: Path) -> list[tuple[int, float]]:
    return [
        (int(record["step"]), record["suite/iq/norm/exact"])
        for record in read_metrics(model_dir)
        if any(name.startswith("suite/") for name in record)
    ]


def test_a_suite_is_asked_when_it_is_due_and_once(
    tmp_path: Path, prepared_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    suite = NormOfTheParameters()
    settings: dict[str, Any] = {"train_steps": 7, "suite_period": 3, "eval_period": 4}
    whole = runs.trainer(tmp_path / "whole", prepared_dir, suite=suite, **settings)
    assert whole.run() is Outcome.FINISHED
    found = measured(tmp_path / "whole")
    assert [step for step, _ in found] == [0, 3, 6, 7]
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    assert len({value for _, value in found}) == 4  # other parameters each time
    assert suite.asked[0][0] == runs.CONFIG and suite.asked[0][1] <= runs.CONFIG.vocab_size
    leaves = [
        array.astype(np.float64)
        for name, array in runs.stored(tmp_path / "whole", 7).items()
        if "target" in name
    ]
    assert found[-1][1] == pytest.approx(sum((leaf**2).sum() for leaf in leaves), rel=1e-12)
    evaluated = [r["step"] for r in read_metrics(tmp_path / "whole") if "eval/en/loss" in r]
    assert evaluated == [0, 4, 7]
    assert "suite     3  iq/norm/exact: " in capsys.readouterr().out
    # A run that has ended has nothing to ask again.
    again = NormOfTheParameters()
    assert runs.trainer(tmp_path / "whole", prepared_dir, suite=again, **settings).run() is Outcome.FINISHED
    assert not again.asked and measured(tmp_path / "whole") == found


def test_a_stop_while_it_is_asked_is_made_up_for(tmp_path: Path, prepared_dir: Path) -> None:
    class Preempted(NormOfTheParameters):
        def __call__(self, *arguments: Any) -> Iterator[Measured]:
            for measure in super().__call__(*arguments):
                if len(self.asked) == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield measure

    settings: dict[str, Any] = {"train_steps": 6, "suite_period": 3}
    runs.trainer(tmp_path / "whole", prepared_dir, suite=NormOfTheParameters(), **settings).run()
    preempted = runs.trainer(tmp_path / "stopped", prepared_dir, suite=Preempted(), **settings)
    assert preempted.run() is Outcome.STOPPED
    assert [step for step, _ in measured(tmp_path / "stopped")] == [0]
    goes_on = runs.trainer(tmp_path / "stopped", prepared_dir, suite=NormOfTheParameters(), **settings)
    assert goes_on.run() is Outcome.FINISHED
    assert measured(tmp_path / "stopped") == measured(tmp_path / "whole")


def test_what_is_wrong_with_a_suite_is_said_before_the_first_step(tmp_path: Path, prepared_dir: Path) -> None:
    def run(*suites: Any, period: int = 5) -> None:
        runs.trainer(
            tmp_path / "run", prepared_dir, suite=SuiteRun(suites), suite_period=period, train_steps=1
        ).run()

    with pytest.raises(ValueError, match=r"expected tasks among counting.*head_slice"):
        run(IqSuite(tasks=["counting"]), IqSuite(tasks=["head_slice"]))
    with pytest.raises(ValueError, match=r"wic \(--symbolic_dir"):
        run(IqSuite(tasks=["wic"]))
    with pytest.raises(ValueError, match="arc_easy"):
        run(BenchmarkSuite(["arc_esy"]))
    assert not (tmp_path / "run").exists()
    run(IqSuite(tasks=["head_slice"]), period=0)  # which is never asked
    assert (tmp_path / "run").exists()


def test_a_period_needs_a_suite(tmp_path: Path, prepared_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"Trainer.suite_period = 5 has no suite.*gin_configs/runs/iq.gin"):
        runs.trainer(tmp_path, prepared_dir, suite_period=5).run()
    with pytest.raises(ValueError, match=r"Trainer.suite_period must be a whole number"):
        runs.trainer(tmp_path, prepared_dir, suite_period=-1).run()
