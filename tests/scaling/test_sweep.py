"""Trials that are trained together are what each would be alone; a sweep that was killed goes on."""

import dataclasses
import json
from pathlib import Path

import gin
import numpy as np
import pytest

from flm_jax import cli
from flm_jax.scaling import sweep as sweeps
from flm_jax.scaling import together
from flm_jax.scaling.sweep import Sweep
from flm_jax.scaling.together import Prepared, Together, TooLargeError
from flm_jax.scaling.trials import Result, Trial, Variation, grid
from flm_jax.training.run_log import read_metrics
from tests.training import runs
from tests.training.conftest import no_measuring as no_measuring
from tests.training.conftest import prepared_dir as prepared_dir

FLAGS = [
    "TRAIN_STEPS=8",
    "WARMUP_STEPS=2",
    "EVAL_PERIOD=0",
    "ModelConfig.num_layers=1",
    "MIXTURE_OR_TASK_NAME=en",
]


@pytest.fixture
def gin_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.gin"
    path.write_text(runs.GIN)
    return path


def sweep(tmp_path: Path, gin_file: Path, prepared_dir: Path, name: str = "sweep", *flags: str) -> Sweep:
    return Sweep(tmp_path / name, [str(gin_file)], [*FLAGS, f"PREPARED_DIR={prepared_dir}", *flags], [])


def trials(*values: str, seeds: int = 2, name: str = "LEARNING_RATE") -> list[Trial]:
    return grid([None], [Variation(name, values)], range(seeds))


def losses(results: list[Result]) -> list[float]:
    return [result.loss for result in results]


@pytest.mark.slow
def test_together_as_each_alone_and_as_the_trainer(
    tmp_path: Path, gin_file: Path, prepared_dir: Path
) -> None:
    one = sweep(tmp_path, gin_file, prepared_dir)
    names = ("LEARNING_RATE", "ModelConfig.init_std")
    points = [(("1e-2", "0.02"), 0), (("3e-3", "0.05"), 0), (("1e-2", "0.02"), 3)]
    wanted = [Trial(None, tuple(zip(names, values, strict=True)), seed) for values, seed in points]
    found = Together([Prepared.of(one._trainer(trial)) for trial in wanted], tmp_path / "a").train()
    alone = Together([Prepared.of(one._trainer(wanted[1]))], tmp_path / "b").train()[0]
    np.testing.assert_allclose(found[1].losses, alone.losses, rtol=1e-5)
    trainer = one._trainer(wanted[2])
    (stage,) = trainer.stages
    stage = dataclasses.replace(stage, mesh=runs.FirstDevices())
    dataclasses.replace(trainer, stages=[stage], model_dir=str(tmp_path / "run")).run()
    records = [record["train/loss"] for record in read_metrics(tmp_path / "run") if "train/loss" in record]
    np.testing.assert_allclose(found[2].losses, records, rtol=1e-5)
    assert found[0].losses[-1] < found[0].losses[0] - 0.05
    assert np.ptp([ours.losses[-1] for ours in found]) > 0.01  # they are three trials, not one thrice
    assert set(found[0].held_out) == {"en"}


def test_killed_and_gone_on_with_is_as_uninterrupted(
    tmp_path: Path, gin_file: Path, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = trials("1e-2", "3e-3")
    whole = sweep(tmp_path, gin_file, prepared_dir, "whole").run(wanted, at_once=4)
    read = together.Together._batch

    def killed(self: Together, number: int) -> object:
        if number == 6:  # the checkpoint of step 4 is there
            raise KeyboardInterrupt
        return read(self, number)

    monkeypatch.setattr(Together, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, gin_file, prepared_dir).run(wanted, at_once=4)
    (tmp_path / "sweep" / "under_way" / "of_nobody").mkdir()
    steps: list[int] = []
    monkeypatch.setattr(
        Together, "_batch", lambda self, number: (steps.append(number), read(self, number))[1]
    )
    assert (
        sweep(tmp_path, gin_file, prepared_dir).run(wanted, at_once=1) == whole
    )  # as it was begun, four at once
    assert steps == [0, 4, 5, 6, 7]  # the first to compile for
    assert not any((tmp_path / "sweep" / "under_way").iterdir())


def test_only_what_is_new_is_trained(
    tmp_path: Path, gin_file: Path, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(tmp_path, gin_file, prepared_dir).run(trials("1e-2", seeds=1), at_once=2)
    record = tmp_path / "sweep" / "trials.jsonl"
    record.write_text(record.read_text() + '{"trial": {"wid')  # of a process that was killed while it wrote
    trained: list[int] = []
    train = Sweep._train
    monkeypatch.setattr(
        Sweep, "_train", lambda self, group: (trained.append(len(group)), train(self, group))[1]
    )
    both = sweep(tmp_path, gin_file, prepared_dir).run(trials("1e-2", "3e-3", seeds=1), at_once=2)
    assert trained == [1] and both[0] == first[0] and len(losses(both)) == 2
    assert len(record.read_text().splitlines()) == 2
    with pytest.raises(ValueError, match=r"expected the gin files and flags of the sweep in .*found others"):
        sweep(tmp_path, gin_file, prepared_dir, "sweep", "BATCH_SIZE=4")


def test_other_bindings_and_widths_are_other_programs(
    tmp_path: Path, gin_file: Path, prepared_dir: Path
) -> None:
    lines: list[str] = []
    wanted = [
        Trial(width, (("ModelConfig.output_mult", value),), 0)
        for width, value in ((32, "1.0"), (32, "2.0"), (64, "1.0"))
    ]
    found = sweep(tmp_path, gin_file, prepared_dir).run(wanted, at_once=4, say=lines.append)
    assert len(lines) == 3 and len(set(losses(found))) == 3
    small, same, large = (result.num_params for result in found)
    assert small == same < large
    assert [result.tokens for result in found] == [8 * 8 * 64] * 3


def test_each_trial_has_its_own_schedule(tmp_path: Path, gin_file: Path, prepared_dir: Path) -> None:
    """Constant rates: the schedule's end is tied to the varied macro, and is looked up when the schedule is made."""
    tied = sweep(
        tmp_path, gin_file, prepared_dir, "sweep", "FINAL_LEARNING_RATE=%LEARNING_RATE", "WARMUP_STEPS=0"
    )
    wanted = trials("1e-3", "8e-3", seeds=1)
    prepared = [Prepared.of(tied._trainer(trial)) for trial in wanted]
    for each, rate in zip(prepared, (1e-3, 8e-3), strict=True):
        np.testing.assert_allclose(each.rates, np.full(8, rate), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "flags", "is_data"),
    [
        ("LEARNING_RATE", [], True),
        ("schedule.Stage.learning_rate", [], True),
        ("ModelConfig.init_std", [], True),
        ("ModelConfig.output_mult", [], False),
        ("WARMUP_STEPS", [], False),
        ("LEARNING_RATE", ["optimizer.adamw.weight_decay=%LEARNING_RATE"], False),
        ("LEARNING_RATE", ["FINAL_LEARNING_RATE=%LEARNING_RATE"], False),
    ],
)
def test_what_trials_of_one_program_may_differ_in(
    tmp_path: Path, gin_file: Path, prepared_dir: Path, name: str, flags: list[str], is_data: bool
) -> None:
    sweep(tmp_path, gin_file, prepared_dir, "sweep", *flags)
    assert sweeps._is_data(name, gin.config_str(max_line_length=10_000)) == is_data


def test_a_group_that_does_not_fit_is_halved(
    tmp_path: Path, gin_file: Path, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def check(memory: object, count: int) -> None:
        sizes.append(count)
        if count > 1:
            raise TooLargeError(f"{count} trials together need more")

    monkeypatch.setattr(together, "_check_fits", check)
    lines: list[str] = []
    found = sweep(tmp_path, gin_file, prepared_dir).run(
        trials("1e-2", "3e-3", "1e-3", seeds=1), 3, lines.append
    )
    assert sizes == [3, 1, 2, 1, 1] and len(found) == 3
    assert not any(
        (tmp_path / "sweep" / "under_way").iterdir()
    )  # or its trials would be taken up again with those
    assert [line.startswith("1 of 3 trials") for line in lines] == [False, True, False, False, False]


def test_a_wrong_trial_is_refused_before_any_is_trained(
    tmp_path: Path, gin_file: Path, prepared_dir: Path
) -> None:
    one = sweep(tmp_path, gin_file, prepared_dir)
    with pytest.raises(ValueError, match=r"ModelConfig.init_std must be positive"):
        one.run(trials("0.02", "-1.0", name="ModelConfig.init_std"), at_once=1)
    with pytest.raises(ValueError, match=r"a width of 40 would have 2.5 of ModelConfig.num_heads"):
        one.run([Trial(40, (), 0)], at_once=1)
    assert not (tmp_path / "sweep" / "trials.jsonl").exists()


def test_command(tmp_path: Path, gin_file: Path, prepared_dir: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["scaling", "sweep", f"--gin_file={gin_file}", f"--gin.PREPARED_DIR={prepared_dir}"]
    command += [f"--gin.{flag}" for flag in FLAGS] + [f"--out={tmp_path / 'out'}", "--widths=32"]
    command += ["--vary=LEARNING_RATE=1e-3,1e-2", "--vary=ModelConfig.init_std=0.01,0.02", "--at_once=4"]
    assert (
        cli.main(
            [
                *command,
                f"--json={tmp_path}/x.json",
                f"--csv={tmp_path}/points.csv",
                f"--figure={tmp_path}/x.png",
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "LEARNING_RATE=1e-2 ModelConfig.init_std=0.02" in printed.out and "4 of 4 trials" in printed.err
    found = json.loads((tmp_path / "x.json").read_text())
    assert [one["name"] for one in found["optima"]] == ["LEARNING_RATE", "ModelConfig.init_std"]
    assert min(trial["loss"] for trial in found["trials"]) == found["optima"][0]["loss"]
    points = (tmp_path / "points.csv").read_text().splitlines()
    assert points[1].startswith("32,0.0") and points[1].endswith(f",{found['optima'][0]['loss']},0")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["scaling", "sweep", "--out=x", "--vary=A=1"]) == 2
    assert "nothing says what to train" in capsys.readouterr().err
