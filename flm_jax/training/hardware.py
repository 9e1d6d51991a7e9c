"""What the devices can do and draw: a data sheet's peak rate and watts; for the rest a matmul's rate, and no watts."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.chips import CHIPS

_CHIP = {chip.name: (chip.flops_per_second, chip.watts) for chip in CHIPS}
# Dense bfloat16 FLOP/s and watts of one device as JAX counts devices, by a part of its `device_kind`; those that are
# not among `CHIPS` from the vendors' data sheets. The first match wins.
_DATA_SHEET: tuple[tuple[str, tuple[float, float | None]], ...] = (
    ("TPU v6", _CHIP["v6e"]),
    ("TPU v5 lite", _CHIP["v5e"]),
    ("TPU v5e", _CHIP["v5e"]),
    ("TPU v5", _CHIP["v5p"]),
    ("TPU v4", (275e12, None)),
    ("B200", (2250e12, 1000)),
    ("H200 NVL", (835e12, 600)),
    ("H200", _CHIP["h200"]),
    ("H100 PCIe", (756e12, 350)),
    ("H100 NVL", (835e12, 400)),
    ("H100", _CHIP["h100"]),
    ("H800", (989e12, 700)),
    ("A100-PCIE", (312e12, 250)),
    ("A100 80GB PCIe", (312e12, 300)),
    ("A100", _CHIP["a100"]),
    ("A800 80GB PCIe", (312e12, 300)),
    ("A800", _CHIP["a800"]),
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
    if known := _data_sheet(kind):
        return Peak(known[0] * len(devices), f"{len(devices)} x {kind}, data sheet, bfloat16")
    count = len({device.process_index for device in devices} if devices[0].platform == "cpu" else devices)
    return Peak(measured(dtype) * count, f"{kind}, measured {dtype} matmul")


def watts(device_kind: str) -> float | None:
    """What one device draws at most, by its data sheet; None for CPUs and TPUs, of which no such number is known."""
    known = _data_sheet(device_kind)
    return known[1] if known else None


def _data_sheet(device_kind: str) -> tuple[float, float | None] | None:
    return next((found for part, found in _DATA_SHEET if part.lower() in device_kind.lower()), None)


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
