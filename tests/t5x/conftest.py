"""t5x's trainer, where it is importable; a run under it is a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REASON = "t5x is not importable here (docs/t5x.md says what it needs)"


@pytest.fixture(scope="session")
def t5x() -> Any:
    """The package, with the modules that its trainer uses."""
    pytest.importorskip("t5x.train", reason=REASON, exc_type=ImportError)
    import t5x

    return t5x


@pytest.fixture(scope="session")
def run_t5x(t5x: Any) -> Callable[..., str]:
    """Runs `python -m MODULE FLAGS...` on 4 virtual devices and returns what it printed."""

    def run(module: str, *flags: str) -> str:
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        done = subprocess.run(
            [sys.executable, "-m", module, *flags],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stderr

    return run
