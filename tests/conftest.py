"""Eight virtual devices for every test, and one compilation of each program a session; set before jax is imported."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Most of a test's time is compilation, and most of that is XLA's fusion emitters: without them a training step compiles
# in a quarter of the time. FLM_TESTS_WITH_FUSION=1 compiles as users do; so does a jaxlib that may not know the flags,
# because XLA aborts the process at one that it does not know.
_KNOWS_THE_FLAGS = importlib.metadata.version("jaxlib").startswith("0.10.")
FAST_TO_COMPILE = (
    ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
    if _KNOWS_THE_FLAGS and not os.environ.get("FLM_TESTS_WITH_FUSION")
    else ()
)
os.environ["XLA_FLAGS"] = " ".join(("--xla_force_host_platform_device_count=8", *FAST_TO_COMPILE))
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

# Tracing makes many small objects that live; looking through them again and again takes a quarter of the time.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    """What is imported by now stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For tests whose programs each run a few times on next to nothing: compiling them is what takes time."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
