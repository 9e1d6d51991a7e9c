"""What a chip can do: data-sheet rates, links and memory, and how much of its peak a training step's matmuls reach.

TPUs: cloud.google.com/tpu/docs (system architecture of each version; ICI there is a chip's, both ways together).
NVIDIA: the data sheets of each board; NVLink there is both ways together, too.
"""

import dataclasses
from typing import Literal

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as JAX counts devices.

    Attributes:
        name: In the name of a topology.
        kind: What its compiler is.
        device_kind: Part of what JAX calls it, in small letters.
        flops_per_second: Dense bfloat16.
        memory_bytes: That a program may use.
        memory_bandwidth: Bytes a second.
        link_bandwidth: Bytes a second that a chip can send: along one axis of a TPU's torus, both directions together;
            to the other GPUs of its host.
        network_bandwidth: Bytes a second that it can send to other slices; of GPUs, to other hosts.
        per_host: Devices of a host.
        whole: Chips along an axis of the torus from which on it is closed; of GPUs without meaning.
        efficiency: Share of the peak that the matmuls of a training step reach, see docs/pods.md: from one published
            run of each kind where there is one.
        target: What a GPU's compiler has to know of it: compute capability, cores, shared memory of a core, of a block,
            second-level cache (bytes), clock (GHz), FPUs of a core.
    """

    name: str
    kind: Literal["tpu", "gpu"]
    device_kind: str
    flops_per_second: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    per_host: int
    efficiency: float
    whole: int = 1
    target: tuple[float, ...] = ()


# v5p before v5e: JAX calls the one "TPU v5", the other "TPU v5 lite".
CHIPS = (
    Chip("v6e", "tpu", "tpu v6", 918e12, 125 * GIB // 4, 1600e9, 200e9, 12.5e9, 8, 0.52, whole=16),
    Chip("v5e", "tpu", "tpu v5 lite", 197e12, 63 * GIB // 4, 819e9, 100e9, 3.1e9, 8, 0.74, whole=16),
    Chip("v5p", "tpu", "tpu v5", 459e12, 95 * GIB, 2765e9, 200e9, 6.25e9, 4, 0.72, whole=4),
    Chip("b200", "gpu", "b200", 2250e12, 180 * GIB, 8000e9, 900e9, 50e9, 8, 0.6),
    Chip(
        "h200", "gpu", "h200", 989e12, 141 * GIB, 4800e9, 450e9, 50e9, 8, 0.6,
        target=(9.0, 132, 233_472, 232_448, 52_428_800, 1.98, 128),
    ),
    Chip(
        "h100", "gpu", "h100", 989e12, 79 * GIB, 3352e9, 450e9, 50e9, 8, 0.6,
        target=(9.0, 132, 233_472, 232_448, 52_428_800, 1.98, 128),
    ),
    Chip(
        "a100", "gpu", "a100", 312e12, 79 * GIB, 2039e9, 300e9, 25e9, 8, 0.65,
        target=(8.0, 108, 167_936, 166_912, 41_943_040, 1.41, 64),
    ),
    Chip(
        "a800", "gpu", "a800", 312e12, 79 * GIB, 2039e9, 200e9, 12.5e9, 8, 0.65,
        target=(8.0, 108, 167_936, 166_912, 41_943_040, 1.41, 64),
    ),
)  # fmt: skip
