"""`flm compile` for devices that are not here; where their compilers are not, what it says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flm_jax import presets

ROOT = Path(__file__).parents[2]
TPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs libtpu (flm_jax's extra is jax[tpu])",
)
CUDA = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None,
    reason="compiling for GPUs needs the CUDA plugin (flm_jax's extra is jax[cuda12])",
)
SMALL = (
    "--gin_file=gin_configs/models/flm_tiny.gin",
    "--gin.ModelConfig.dtype=bfloat16",
    "--gin.ModelConfig.head_dim=128",
)
STAGES = (
    "--gin_file=gin_configs/models/flm_101b.gin",
    "--gin_file=gin_configs/data/bilingual.gin",
    "--gin_file=gin_configs/runs/pretrain.gin",
    "--gin_file=gin_configs/growth/flm_101b.gin",
)


def run(*flags: str, verb: str = "compile") -> subprocess.CompletedProcess:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")
    }
    command = [sys.executable, "-m", "flm_jax", verb, *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=560)


def compiled(tmp_path: Path, *flags: str, exit_code: int = 0) -> tuple[dict[str, Any], str]:
    found = run(*flags, f"--json={tmp_path / 'report.json'}")
    assert found.returncode == exit_code, found.stderr[-2000:]
    return json.loads((tmp_path / "report.json").read_text()), found.stdout


@TPU
@pytest.mark.slow
def test_a_model_alone_is_laid_out(tmp_path: Path) -> None:
    found, text = compiled(tmp_path, *SMALL, "--topology=v5e:2x2", "--global_batch=16", "--length=256")
    assert found["num_params"] > presets.flm_tiny().num_params  # heads of 128 in place of 64
    assert found["fits"] and found["global_batch"] == 16 and found["length"] == 256
    assert 0 < found["peak_bytes_per_device"] <= found["device_bytes"] == int(15.75 * 2**30)
    assert found["peak_bytes_per_device"] == sum(found["memory"].values())
    assert found["flops_per_step"] >= found["model_flops_per_step"] > 0
    assert 0 < found["predicted_mfu"] < 1 and found["predicted_step_seconds"] > 0
    assert all(each["bytes"] > 0 and each["times"] > 0 for each in found["collectives"].values())
    assert "searched" in text and "layout" in text and "MFU" in text


@TPU
@pytest.mark.slow
def test_a_layout_that_does_not_divide_gets_the_nearest(tmp_path: Path) -> None:
    flags = (*SMALL, "--topology=v5e:2x2", "--global_batch=6", "--gin.MeshShape.data=4")
    found = run(*flags)
    assert found.returncode == 2
    assert "BATCH_SIZE must be a multiple" in found.stderr and "nearest layout" in found.stderr
    assert "compiled, and fits" in found.stderr


@TPU
@pytest.mark.slow
def test_a_layout_that_does_not_fit_gets_the_nearest(tmp_path: Path) -> None:
    flags = ("--gin_file=gin_configs/models/flm_16b.gin", "--topology=v5e:4x8", "--global_batch=256")
    found, text = compiled(tmp_path, *flags, "--gin.MeshShape.data=1", "--gin.MeshShape.fsdp=32", exit_code=1)
    assert not found["fits"] and "does not fit" in text
    assert "The nearest layout that was found to fit is fsdp 32" in text and "compiled, and fits" in text


@CUDA
@pytest.mark.slow
def test_the_papers_machine(tmp_path: Path) -> None:
    """TP x PP x DP of 2 x 1 x 96, 4 x 2 x 24 and 4 x 4 x 12 on 192 A800, with the paper's batches."""
    preset = "--gin_file=gin_configs/pods/a800_24x8.gin"
    meshes = [
        {"data": 96, "tensor": 2},
        {"data": 24, "stage": 2, "tensor": 4},
        {"data": 12, "stage": 4, "tensor": 4},
    ]
    for number, mesh in enumerate(meshes, 1):
        found, _ = compiled(tmp_path, *STAGES, preset, "--topology=a800:24x8", f"--stage={number}")
        first = found["stages"][0]
        assert found["fits"] and first["mesh"] == mesh and first["length"] == 2048
        assert first["global_batch"] == (2304, 2304, 2160)[number - 1]
        # Moments over 32 of 96, 8 of 24 and 4 of 12 devices of the data axis.
        parts = first["memory"]["params"] * 2 / first["memory"]["optimizer"]
        assert parts == pytest.approx((32, 8, 4)[number - 1], rel=0.02)
        # Nothing of another device's rows or gradients is fetched in a loop.
        largest = max((e for e in first["exchanges"] if e["kind"] == "all-gather"), key=lambda e: e["bytes"])
        assert largest["axes"] == ["tensor"]


@TPU
@pytest.mark.slow
def test_growth_for_a_pod(tmp_path: Path) -> None:
    """Two stages of a small run: steps, masked and not, and the growth between them."""
    flags = (
        *SMALL,
        "--gin_file=gin_configs/data/demo.gin",
        "--gin_file=gin_configs/runs/pretrain.gin",
        "--gin_file=gin_configs/growth/demo.gin",
        "--gin.WARMUP_STEPS=40",
    )
    found, text = compiled(tmp_path, *flags, "--topology=v5e:2x2", "--global_batch=8", "--search")
    assert [one["growth_mask"] for one in found["stages"]].count(True) == len(found["growths"]) == 2
    for one in found["growths"]:
        assert (
            one["fits"]
            and max(one["before"], one["after"]) < one["peak_bytes_per_device"] <= one["both_states_bytes"]
        )
    assert "growth into stage 2" in text


def test_what_is_missing_is_named() -> None:
    assert "nothing says what to compile" in run("--topology=v5e:2x2").stderr
    assert "--topology=CHIP:SHAPE" in run(*SMALL, "--topology=tpu").stderr
    if importlib.util.find_spec("libtpu") is None:
        found = run(*SMALL, "--topology=v5e:2x2")
        assert found.returncode == 2 and "pip install 'flm_jax[tpu]'" in found.stderr


def test_a_dry_run_of_the_papers_schedule(tmp_path: Path) -> None:
    """On one device of this machine: it says that its layout wants others."""
    found = run(
        *STAGES, "--gin_file=gin_configs/pods/v5p_4x8x8.gin", "--dry_run", "--gin.MODEL_DIR=x", verb="train"
    )
    assert found.returncode == 2 and "does not cover the 1 devices" in found.stderr
    assert "--topology is that of a --dry_run" in run(*SMALL, "--topology=v5e:2x2", verb="train").stderr
