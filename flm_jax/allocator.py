"""The C library's allocator, set up for training on CPUs."""

import ctypes
import importlib.util
import os
import sys

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, for the next step to use; to be called before JAX is imported.

    XLA's CPU client takes and gives back every intermediate array of a step. Large ones come straight from the kernel
    and go back to it, which has to clear their pages each time. Kept, they cost memory: the process stays as large as
    it has ever been. Does nothing beside an accelerator, or another C library than glibc.
    """
    accelerators = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    if sys.platform != "linux" or os.environ.get("JAX_PLATFORMS", "" if accelerators else "cpu") != "cpu":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    mallopt(_M_ARENA_MAX, 1)
