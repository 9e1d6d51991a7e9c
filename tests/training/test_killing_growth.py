"""`flm train` in a process of its own that grows twice, killed where growth could lose something."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flm_jax.training.ledger import read_ledger
from flm_jax.training.run_log import read_metrics
from tests.training import runs

GIN = """
from __gin__ import dynamic_registration
from flm_jax import config
from flm_jax.grow import schedule
from flm_jax.training import trainer
include 'gin_configs/models/flm_tiny.gin'
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/growth/stages.gin'
config.ModelConfig.vocab_size = 512
config.ModelConfig.d_model = 48
config.ModelConfig.num_layers = 3
config.ModelConfig.num_heads = 3
config.ModelConfig.head_dim = 16
config.ModelConfig.d_ff = 96
trainer.Trainer.stages = [@small/schedule.Stage(), @medium/schedule.Stage(), @large/schedule.Stage()]
schedule.Stage.steps = 12
schedule.Stage.ramp_steps = 9
small/config.ModelConfig.d_model = 32
small/config.ModelConfig.num_heads = 2
small/config.ModelConfig.d_ff = 64
small/config.ModelConfig.num_layers = 2
medium/config.ModelConfig.num_layers = 2
large/schedule.Stage.method = "lemon"
large/schedule.Stage.batch_size = 4
TASK_FEATURE_LENGTHS = {"targets": 64}
MIXTURE_OR_TASK_NAME = {"en": 53.5, "zh": 46.5, "instruct": 5.0}
BATCH_SIZE = 8
WARMUP_STEPS = 5
EVAL_PERIOD = 0
CHECKPOINT_PERIOD = 5
trainer.Trainer.log_period = 1
"""
pytestmark = pytest.mark.slow


def has_step(step: int) -> Callable[[Path], bool]:
    return lambda run: any(record["step"] >= step for record in read_metrics(run))


def is_saved(step: int) -> Callable[[Path], bool]:
    """A checkpoint has its name once it is whole; that of a stage's end is waited for, then the model grows."""
    return lambda run: (run / f"checkpoint_{step}").is_dir()


def has_grown(step: int) -> Callable[[Path], bool]:
    return lambda run: any("growth/gap" in r and r["step"] == step for r in read_metrics(run))


def test_kill_9_wherever_growth_could_lose_something(prepared_dir: Path, tmp_path: Path) -> None:
    """In a stage, while growing, just after, in the ramp, while growing again: one run, killed five times."""
    gin_file, whole, parts = tmp_path / "run.gin", tmp_path / "whole", tmp_path / "parts"
    gin_file.write_text(GIN)
    runs.finish(runs.start(gin_file, whole, prepared_dir))
    draw = random.Random(0)
    moments = [
        ("in a stage", has_step(draw.randint(1, 11)), 0.05),
        ("while growing", is_saved(12), 0.5),
        ("just after", has_grown(12), 0.05),
        ("in the ramp", has_step(draw.randint(14, 19)), 0.05),
        ("while growing again", is_saved(24), 0.5),
    ]
    for name, come, delay in moments:
        process = runs.start(gin_file, parts, prepared_dir)
        deadline = time.monotonic() + 200
        while not come(parts):
            assert process.poll() is None and time.monotonic() < deadline, (name, process.communicate())
            time.sleep(0.005)
        time.sleep(draw.random() * delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        last = max(record["step"] for record in read_metrics(parts))
        if name.startswith("while growing"):
            assert is_saved(int(last))(parts) and not has_grown(int(last))(parts), (
                f"the kill {name} missed it"
            )
        assert last < 36
    runs.finish(runs.start(gin_file, parts, prepared_dir))
    runs.assert_bitwise_equal(runs.stored(parts, 36), runs.stored(whole, 36))

    def story(directory: Path) -> list[dict[str, float]]:
        return [
            {name: value for name, value in record.items() if not name.startswith("speed/")}
            for record in read_metrics(directory)
        ]

    assert story(parts) == story(whole)
    cost, expected = read_ledger(parts), read_ledger(whole)
    kept = {stage: each.kept for stage, each in expected.stages.items()}
    assert {stage: each.kept for stage, each in cost.stages.items()} == kept and len(kept) == 3
    assert cost.total.spent.steps > cost.total.kept.steps == 36 and not cost.uncovered
