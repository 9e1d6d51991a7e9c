"""Small runs of the trainer, in this process and in one of their own."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flm_jax import LanguageModel, optimizer
from flm_jax.grow.schedule import Stage
from flm_jax.partitioning import MeshShape
from flm_jax.training.trainer import Trainer
from tests.conftest import FAST_TO_COMPILE
from tests.models import small_config

MIXTURE = {"en": 53.5, "zh": 46.5, "instruct": 5.0}
CONFIG = small_config(vocab_size=512, parametrization="standard", output_mult=1.0, input_mult=1.0)

GIN = """
from __gin__ import dynamic_registration
from flm_jax import config
from flm_jax.training import trainer
include 'gin_configs/models/flm_tiny.gin'
include 'gin_configs/runs/pretrain.gin'
config.ModelConfig.vocab_size = 512
config.ModelConfig.d_model = 32
config.ModelConfig.num_layers = 2
config.ModelConfig.num_heads = 2
config.ModelConfig.head_dim = 16
config.ModelConfig.d_ff = 64
TASK_FEATURE_LENGTHS = {"targets": 64}
MIXTURE_OR_TASK_NAME = {"en": 53.5, "zh": 46.5, "instruct": 5.0}
BATCH_SIZE = 8
TRAIN_STEPS = 60
WARMUP_STEPS = 5
EVAL_PERIOD = 40
CHECKPOINT_PERIOD = 4
trainer.Trainer.log_period = 1
"""


class FirstDevices(MeshShape):
    """As few of the virtual devices as the axes need: compiling for all eight takes the tests three times as long."""

    def build(self, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
        needed = abs(self.data) * self.fsdp * self.tensor * self.sequence * self.stage
        return super().build(jax.devices()[:needed] if devices is None else devices)


def trainer(model_dir: Path, prepared_dir: Path, **changes: Any) -> Trainer:
    """Twelve steps on one device, no evaluation; the rate is the same however many steps there are."""
    model = changes.pop("model", None) or LanguageModel(changes.pop("config", CONFIG))
    stage = Stage(
        model=model,
        steps=changes.pop("train_steps", 12),
        batch_size=changes.pop("batch_size", 8),
        num_microbatches=changes.pop("num_microbatches", 1),
        learning_rate=3e-3,
        warmup_steps=2,
        mesh=changes.pop("mesh", FirstDevices()),
    )
    settings: dict[str, Any] = {
        "stages": [stage],
        "schedule": lambda peak, total_steps, warmup_steps: optimizer.warmup_cosine(peak, 100, warmup_steps),
        "model_dir": str(model_dir),
        "prepared_dir": str(prepared_dir),
        "mixture": MIXTURE,
        "task_feature_lengths": {"targets": 64},
        "log_period": 1,
        "eval_period": 0,
        "checkpoint_period": 5,
    }
    return Trainer(**{**settings, **changes})


def start(gin_file: Path, model_dir: Path, prepared_dir: Path, *flags: str) -> subprocess.Popen[str]:
    """`flm train` in a process of its own, on one device, with what it prints in pipes."""
    command = [
        sys.executable, "-m", "flm_jax", "train", f"--gin_file={gin_file}", f"--gin.MODEL_DIR={model_dir}",
        f"--gin.PREPARED_DIR={prepared_dir}", *flags,
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    """Of a process of its own, on one device."""
    return {
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XLA_FLAGS": " ".join(FAST_TO_COMPILE),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **{name: value for name, value in os.environ.items() if "COMPIL" in name},  # the session's cache
    }


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a process printed, once it has ended with this exit code."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{out}\n{err}"
    return out, err


def stored(model_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint's state by its path: parameters, moments, counters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onto the devices that they were on: meant
        state = ocp.PyTreeCheckpointer().restore(model_dir.absolute() / f"checkpoint_{step}" / "state")
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_bitwise_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Every array of two states has the same bits."""
    assert set(one) == set(other)
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.tobytes() == other[name].tobytes(), name
