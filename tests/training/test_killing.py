"""`flm train` in a process of its own, stopped in every way that a run is stopped."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from flm_jax.cli import EXIT_STOPPED
from flm_jax.training.checkpoints import load_params
from flm_jax.training.ledger import read_ledger
from flm_jax.training.run_log import read_metrics
from tests.training import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gin") / "run.gin"
    path.write_text(runs.GIN)
    return path


@pytest.fixture(scope="module")
def uninterrupted(gin_file: Path, prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_dir = tmp_path_factory.mktemp("uninterrupted")
    runs.finish(runs.start(gin_file, model_dir, prepared_dir))
    return model_dir


def wait_for_step(process: subprocess.Popen[str], model_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(record["step"] >= step for record in read_metrics(model_dir)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def assert_ends_like(model_dir: Path, uninterrupted: Path) -> None:
    runs.assert_bitwise_equal(runs.stored(model_dir, 60), runs.stored(uninterrupted, 60))

    def curve(directory: Path) -> dict[float, float]:
        return {r["step"]: r["train/loss"] for r in read_metrics(directory) if "train/loss" in r}

    assert curve(model_dir) == curve(uninterrupted)
    assert len(read_metrics(model_dir)) == len(read_metrics(uninterrupted))
    cost, whole = read_ledger(model_dir).total, read_ledger(uninterrupted).total
    assert cost.kept == whole.kept == whole.spent and whole.kept.steps == 60
    assert cost.spent.steps >= 60 and cost.spent.model_flops >= whole.spent.model_flops


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_a_random_step(
    seed: int, gin_file: Path, prepared_dir: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """With a checkpoint every fourth step the writer is at work when the kill comes."""
    draw = random.Random(seed)
    process = runs.start(gin_file, tmp_path, prepared_dir)
    wait_for_step(process, tmp_path, draw.randint(3, 50))
    time.sleep(draw.random() * 0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_metrics(tmp_path)[-1]["step"] < 60
    runs.finish(runs.start(gin_file, tmp_path, prepared_dir))
    assert_ends_like(tmp_path, uninterrupted)


def test_sigterm_saves_exits_and_resumes(
    gin_file: Path, prepared_dir: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    rare = "--gin.CHECKPOINT_PERIOD=1000"
    process = runs.start(gin_file, tmp_path, prepared_dir, rare)
    wait_for_step(process, tmp_path, 5)
    process.terminate()
    out, _ = runs.finish(process, EXIT_STOPPED)
    assert EXIT_STOPPED == 143
    saved = load_params(tmp_path)[2]
    assert 5 <= saved < 60
    assert f"step {saved}: stopped by a signal, checkpoint saved" in out
    out, _ = runs.finish(runs.start(gin_file, tmp_path, prepared_dir, rare))
    assert f"resumes at step {saved}" in out
    assert_ends_like(tmp_path, uninterrupted)
