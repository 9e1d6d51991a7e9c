import json
from pathlib import Path

import pytest

from flm_jax.config import ModelConfig
from flm_jax.training.hardware import Peak
from flm_jax.training.run_log import EVAL, METRICS_FILE, RunLog, read_metrics
from flm_jax.training.speed import Speedometer
from tests.models import small_config


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 10) as log:
        for step in range(1, 6):
            log.scalars(step, {"train/loss": float(step)})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 6, "train/lo')  # the process was killed here
    with RunLog(tmp_path, 3, 10) as log:
        log.scalars(4, {"train/loss": 40.0})
    assert [(r["step"], r["train/loss"]) for r in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert all(json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines())
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_knows_whether_a_step_was_evaluated(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 10) as log:
        assert not log.measured_at(0, EVAL)
        log.scalars(0, {"eval/en/loss": 1.0})
        log.scalars(5, {"train/loss": 1.0})
    for step, expected in ((0, True), (5, False)):
        with RunLog(tmp_path, step, 10) as log:
            assert log.measured_at(step, EVAL) is expected


def test_a_growth_that_was_undone_is_taken_out(tmp_path: Path) -> None:
    """A checkpoint from before the growth at step 5 is gone on from: that growth has not happened."""
    with RunLog(tmp_path, 0, 10) as log:
        for step in (3, 5):
            log.scalars(step, {"growth/gap": 0.0, "growth/stage": step})
            log.scalars(step, {"train/loss": 1.0})
    with RunLog(tmp_path, 5, 10, growths=[3]):
        pass
    assert [(r["step"], "growth/gap" in r) for r in read_metrics(tmp_path)] == [
        (3, True),
        (3, False),
        (5, False),
    ]


def test_speeds_between_two_readings() -> None:
    config: ModelConfig = small_config(remat="full")
    clock = iter([3.0, 25.0, 25.0, 35.0, 35.0])  # made; read, begun anew, twice
    speed = Speedometer(config, 64, Peak(1e9, "a test"), now=lambda: next(clock))
    for _ in range(11):
        speed.step(tokens=200, hardware_flops=4e8)
    found = speed.read()
    assert found["seconds_per_step"] == pytest.approx(2.0)
    assert found["tokens_per_second"] == pytest.approx(100.0)
    assert found["mfu"] == pytest.approx(100 * config.flops_per_token(64) / 1e9)
    assert found["hfu"] == pytest.approx(11 * 4e8 / 22 / 1e9)
    speed.step(tokens=200, hardware_flops=4e8)
    speed.step(tokens=200, hardware_flops=None)
    assert set(speed.read()) == {"seconds_per_step", "tokens_per_second", "mfu"}
