"""Prepared data for the trainer's tests, made once a session."""

from pathlib import Path

import pytest

from flm_jax.training import hardware
from tests.prepared_data import make_prepared


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(tmp_path_factory.mktemp("data"), length=64)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matmul peak takes seconds on virtual devices, and no test here reads it."""
    monkeypatch.setattr(hardware, "measured", lambda dtype: 1e11)
