"""What a dry run says of each process."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from flm_jax import LanguageModel
from flm_jax.grow.schedule import Stage
from flm_jax.partitioning import MeshShape
from flm_jax.pods import launch
from flm_jax.training.trainer import Trainer
from tests.models import small_config


def trainer(shape: MeshShape, batch: int = 16, **changes: Any) -> Trainer:
    stage = Stage(LanguageModel(small_config()), batch, 1e-3, steps=5, mesh=shape)
    settings: dict[str, Any] = {"model_dir": "/shared/run", "prepared_dir": "/shared/data", "mixture": "en"}
    return Trainer([stage], task_feature_lengths={"targets": 32}, **settings | changes)


def test_one_process_reads_all() -> None:
    text = launch.dry_run(trainer(MeshShape(2, 2, 2)))
    assert "process 0: 8 devices (data 0-1, fsdp 0-1, tensor 0-1); reads 16 of 16 rows: 0-15" in text
    assert "/shared/run" in text and "/shared/data" in text


def test_rows_of_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hosts of two devices: those that hold halves of the heads read the same rows."""
    placed = [SimpleNamespace(process_index=device.id // 2) for device in jax.devices()]
    leg = SimpleNamespace(
        mesh=SimpleNamespace(
            devices=np.array(placed).reshape(2, 1, 1, 1, 4),
            axis_names=("data", "stage", "fsdp", "sequence", "tensor"),
            shape={"data": 2, "stage": 1, "fsdp": 1, "sequence": 1, "tensor": 4},
        ),
        stage=SimpleNamespace(batch_size=6),
        row_sharding=SimpleNamespace(
            devices_indices_map=lambda shape: {
                _Key(device): (slice(3 * (number // 4), 3 * (number // 4) + 3),) for number, device in enumerate(placed)
            }
        ),
    )  # fmt: skip
    assert list(launch._processes(leg)) == [  # type: ignore[arg-type]
        "  process 0: 2 devices (data 0, tensor 0-1); reads 3 of 6 rows: 0-2",
        "  process 1: 2 devices (data 0, tensor 2-3); reads 3 of 6 rows: 0-2",
        "  process 2: 2 devices (data 1, tensor 0-1); reads 3 of 6 rows: 3-5",
        "  process 3: 2 devices (data 1, tensor 2-3); reads 3 of 6 rows: 3-5",
    ]


class _Key:
    """A device that can be a key."""

    def __init__(self, device: Any) -> None:
        self.process_index = device.process_index


def test_a_run_that_would_not_start_is_refused() -> None:
    with pytest.raises(ValueError, match="BATCH_SIZE must be a multiple"):
        launch.dry_run(trainer(MeshShape(8, 1, 1), batch=12))
    with pytest.raises(ValueError, match="log_period"):
        launch.dry_run(trainer(MeshShape(8, 1, 1), log_period=0))


@pytest.mark.parametrize(("numbers", "text"), [((3, 1, 2), "1-3"), ((0, 2, 3, 9), "0, 2-3, 9"), ((), "")])
def test_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert launch._ranges(numbers) == text
