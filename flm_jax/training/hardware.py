"""The peak rate that utilisation is measured against: a data sheet's for known chips, a matmul's for the rest."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.chips import CHIPS

_RATE = {chip.name: chip.flops_per_second for chip in CHIPS}
# Dense bfloat16 FLOP/s of one device as JAX counts devices, by a part of its `device_kind`; those that are not among
# `CHIPS` from the vendors' data sheets. The first match wins.
_DATA_SHEET = (
    ("TPU v6", _RATE["v6e"]),
    ("TPU v5 lite", _RATE["v5e"]),
    ("TPU v5e", _RATE["v5e"]),
    ("TPU v5", _RATE["v5p"]),
    ("TPU v4", 275e12),
    ("B200", 2250e12),
    ("H200", _RATE["h200"]),
    ("H100 PCIe", 756e12),
    ("H100", _RATE["h100"]),
    ("H800", 989e12),
    ("A100", _RATE["a100"]),
    ("A800", _RATE["a800"]),
)


class Peak(NamedTuple):
    """FLOP/s of all devices together, and where the number is from."""

    flops_per_second: float
    source: str


def peak(dtype: str, devices: list[jax.Device]) -> Peak:
    """Peak matmul rate of `devices`.

    On a CPU the rate is measured with matmuls of `dtype` on the whole machine, whose cores all virtual devices
    share, times the processes, each of which is taken to have a machine; on chips it is the data sheet's bfloat16
    rate, whatever `dtype` is.
    """
    kind = devices[0].device_kind
    for part, rate in _DATA_SHEET:
        if part.lower() in kind.lower():
            return Peak(rate * len(devices), f"{len(devices)} x {kind}, data sheet, bfloat16")
    count = len({device.process_index for device in devices} if devices[0].platform == "cpu" else devices)
    return Peak(measured(dtype) * count, f"{kind}, measured {dtype} matmul")


def measured(dtype: str, size: int = 2048, rounds: int = 12) -> float:
    """FLOP/s of the fastest of some `size` x `size` matmuls on the default device."""
    x = jnp.ones((size, size), dtype)
    matmul = jax.jit(jnp.matmul)
    jax.block_until_ready(matmul(x, x))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(matmul(x, x))
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
