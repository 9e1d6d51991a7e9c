"""Eight virtual devices for every test; set before jax is imported."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# The CPU client's threads; with fewer than about four a virtual device, collectives can deadlock.
os.environ["NPROC"] = "32"

from hypothesis import settings

# Compilation makes the first example slow; the same examples every time, so that a failure can be repeated.
settings.register_profile("flm", deadline=None, derandomize=True)
settings.load_profile("flm")
