"""Two processes with two devices each, connected over loopback, against one process with four."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flm_jax import partitioning
from flm_jax.training import processes
from flm_jax.training.ledger import read_ledger
from flm_jax.training.placement import local_rows, to_devices
from flm_jax.training.run_log import read_metrics
from flm_jax.training.streaming import StoredState
from tests.training import runs

GIN = """
from __gin__ import dynamic_registration
from flm_jax import config
from flm_jax import partitioning
from flm_jax.grow import schedule
from flm_jax.training import trainer
include 'gin_configs/models/flm_tiny.gin'
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/growth/stages.gin'
config.ModelConfig.vocab_size = 512
config.ModelConfig.d_model = 48
config.ModelConfig.num_layers = 2
config.ModelConfig.num_heads = 4
config.ModelConfig.head_dim = 16
config.ModelConfig.d_ff = 96
trainer.Trainer.stages = [@small/schedule.Stage(), @large/schedule.Stage()]
schedule.Stage.steps = 12
schedule.Stage.ramp_steps = 9
small/config.ModelConfig.d_model = 32
small/config.ModelConfig.num_heads = 2
small/config.ModelConfig.d_ff = 64
large/schedule.Stage.num_microbatches = 2
TASK_FEATURE_LENGTHS = {"targets": 64}
MIXTURE_OR_TASK_NAME = {"en": 53.5, "zh": 46.5, "instruct": 5.0}
BATCH_SIZE = 8
WARMUP_STEPS = 5
EVAL_PERIOD = 12
CHECKPOINT_PERIOD = 100
trainer.Trainer.log_period = 1
trainer.Trainer.eval_sequences = 8
"""
# The model lies over both processes, too, or every process holds a part of all rows.
MESHES = {
    "rows": "",
    "sequence": "partitioning.MeshShape.sequence = 4\npartitioning.MeshShape.data = 1\n",
    "stages": "partitioning.MeshShape.stage = 2\npartitioning.MeshShape.tensor = 2\npartitioning.MeshShape.data = 1\n",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def of_ours(output: str) -> str:
    """What is left without Gloo's greetings, whose threads write into each other's lines, piece by piece."""
    pieces = (
        "[Gloo] Rank ",
        " is connected to ",
        " peer ranks. ",
        "Expected number of connected peer ranks is : ",
    )
    return re.sub("|".join([*map(re.escape, pieces), r"\d", r"\s"]), "", output)


class Runs:
    """Starts a run's processes."""

    def __init__(self, folder: Path, prepared_dir: Path, mesh: str) -> None:
        self.gin_file, self.prepared_dir = folder / "run.gin", prepared_dir
        self.gin_file.write_text(GIN + MESHES[mesh])

    def start(self, model_dir: Path, devices: int, *flags: str) -> subprocess.Popen[str]:
        env = runs.environment()
        env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
        env["NPROC"] = "16"
        command = [
            sys.executable, "-m", "flm_jax", "train", f"--gin_file={self.gin_file}", f"--gin.MODEL_DIR={model_dir}",
            f"--gin.PREPARED_DIR={self.prepared_dir}", *flags,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def one(self, model_dir: Path) -> list[subprocess.Popen[str]]:
        return [self.start(model_dir, 4)]

    def two(self, model_dir: Path, *of_second: str) -> list[subprocess.Popen[str]]:
        common = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
        flags: tuple[tuple[str, ...], ...] = ((), of_second)
        return [
            self.start(model_dir, 2, *common, f"--process_id={index}", *flags[index]) for index in range(2)
        ]


def stop_at(started: list[subprocess.Popen[str]], model_dir: Path, step: int) -> None:
    """SIGTERM to the last of them, once a step is logged; all end as stopped."""
    deadline = time.monotonic() + 300
    while not any(record["step"] >= step and "train/loss" in record for record in read_metrics(model_dir)):
        assert all(process.poll() is None for process in started) and time.monotonic() < deadline
        time.sleep(0.05)
    started[-1].send_signal(signal.SIGTERM)
    for process in started:
        runs.finish(process, 143)


def stop_before_the_first_step(started: list[subprocess.Popen[str]], model_dir: Path) -> None:
    """SIGTERM to the last of them while they compile: once they have begun to write, which is before."""
    metrics, deadline = model_dir / "metrics.jsonl", time.monotonic() + 300
    before = metrics.stat().st_ino
    while metrics.stat().st_ino == before:  # it is written anew when a run goes on
        assert all(process.poll() is None for process in started) and time.monotonic() < deadline
        time.sleep(0.05)
    started[-1].send_signal(signal.SIGTERM)
    for process in started:
        runs.finish(process, 143)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_train_grow_stop_and_restore_as_one(
    prepared_dir: Path, tmp_path: Path, mesh: str
) -> None:
    """Two begin and go on, with `rows` one goes on, two finish; against one that does all of it."""
    make = Runs(tmp_path, prepared_dir, mesh)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (process,) = make.one(whole)
    runs.finish(process)
    if mesh != "sequence":
        stop_at(make.two(parts), parts, 4)
    if mesh == "rows":
        steps = len(read_metrics(parts))
        stop_before_the_first_step(make.two(parts), parts)
        assert len(read_metrics(parts)) <= steps + 1
        stop_at(make.two(parts), parts, 12)  # behind a checkpoint, while it evaluates
        assert read_metrics(parts)[-1]["step"] == 12
        stop_at(make.one(parts), parts, 15)
    first, second = make.two(parts)
    out, _ = runs.finish(first)
    silent, _ = runs.finish(second)
    assert "step     24/24" in out and not of_ours(silent)
    for name in ("train/loss", "train/en/loss", "train/grad_norm", "growth/gap", "eval/en/loss"):
        expected, found = (
            {record["step"]: record[name] for record in read_metrics(run) if name in record}
            for run in (whole, parts)
        )
        assert list(expected) == list(found) and expected
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5, atol=1e-6)
    cost, of_one = read_ledger(parts), read_ledger(whole)
    assert cost.total.kept == of_one.total.kept == of_one.total.spent
    assert {entry.devices for entry in (*cost.entries, *of_one.entries)} == {4}  # of both processes
    expected, found = (StoredState(run / "checkpoint_24" / "state") for run in (whole, parts))
    assert set(expected.arrays) == set(found.arrays)
    for path in expected.arrays:
        np.testing.assert_allclose(
            found.read(path), expected.read(path), rtol=1e-3, atol=1e-5, err_msg="/".join(path)
        )


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(prepared_dir: Path, tmp_path: Path) -> None:
    make = Runs(tmp_path, prepared_dir, "rows")
    for process in make.two(tmp_path / "run", "--gin.RANDOM_SEED=7"):
        _, err = runs.finish(process, 2)
        assert "all 2 processes to have the same settings, but process 1 differs" in err
    assert "+ Trainer.seed = 7" in err
    assert not (tmp_path / "run").exists()


DIFFER = """
import sys
from pathlib import Path
from flm_jax.training import processes
from flm_jax.training.ledger import read_ledger
index, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
processes.join(f"127.0.0.1:{port}", 2, index)
processes.check_equal("settings", "a = 1\\nb = 2", "never")
for check in (
    lambda: processes.check_equal("settings", f"{'a = 1' * 99}\\nb = {index}", "give both the same"),
    lambda: processes.check_shared(Path(directory)),
):
    try:
        check()
    except processes.ProcessesDifferError as error:
        print("refused:", error)
"""


def test_what_differs_between_processes_is_said(tmp_path: Path) -> None:
    """By its line, in the one that differs; and a directory that is another one there."""
    script, port = tmp_path / "differ.py", free_port()
    script.write_text(DIFFER)
    started = []
    for index in range(2):
        directory = tmp_path / f"of_{index}"
        directory.mkdir()
        command = [sys.executable, str(script), str(index), str(port), str(directory)]
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=runs.environment()
            )
        )
    first, second = (runs.finish(process)[0] for process in started)
    for out in (first, second):
        assert out.count("refused:") == 2
        assert "same settings, but process 1 differs from process 0; give both the same" in out
        assert "expected one directory for all 2 processes, but process 1 cannot see" in out
    assert "This is process 1\n  - b = 0\n  + b = 1" in second and "b = " not in first


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "missing are coordinator, process_id"),
        (
            {"coordinator": "127.0.0.1:1", "num_processes": 2, "process_id": 2},
            "between 0 and .* = 1, found 2",
        ),
    ],
)
def test_incomplete_flags_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processes.join(**given)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    with pytest.raises(ValueError, match="missing are process_id"):
        processes.join()
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(ValueError, match="expected a number in JAX_PROCESS_ID, found 'x'"):
        processes.join()
    monkeypatch.setenv("JAX_PROCESS_ID", "9")
    with pytest.raises(ValueError, match="found 9"):
        processes.join()


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_many_that_has_used_jax_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jax.devices()
    monkeypatch.setenv(variable, "4")
    with pytest.raises(RuntimeError, match="must be called before"):
        processes.join()


def test_alone_a_process_stays_alone() -> None:
    processes.join()
    processes.check_equal("anything", "x", "")
    assert processes.is_first()


def test_rows_come_back_as_they_were() -> None:
    mesh = partitioning.MeshShape(2, 2, 1, 2).build()
    batch = {"x": np.arange(8 * 6).reshape(8, 6)}
    sharding = partitioning.batch_sharding(mesh)
    assert local_rows(sharding, (8, 6)) == tuple(range(8))
    placed = to_devices(batch, sharding, 8, range(8))["x"]
    np.testing.assert_array_equal(placed, batch["x"])
    assert placed.sharding == sharding and isinstance(placed, jax.Array)
