"""Eight virtual devices for every test, and one compilation of each program a session; set before jax is imported."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# The CPU client's threads; with fewer than about four a virtual device, collectives can deadlock.
os.environ["NPROC"] = "32"

if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker shares what the process that started it has made
    _compiled = tempfile.mkdtemp(prefix="flm_jax_compiled_")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# Compilation makes the first example slow; the same examples every time, so that a failure can be repeated.
settings.register_profile("flm", deadline=None, derandomize=True)
settings.load_profile("flm")


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For tests whose programs each run a few times on next to nothing: compiling them is what takes time."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
