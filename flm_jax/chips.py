"""What a chip can do: data-sheet rates, links and memory, and how much of its peak a training step's matmuls reach.

TPUs: cloud.google.com/tpu/docs (system architecture of each version; ICI there is a chip's, both ways together).
NVIDIA: the data sheets of each board; NVLink there is both ways together, too. Nobody publishes the power of a TPU.
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
        flops_per_second: Dense bfloat16.
        memory_bytes: That a program may use.
        memory_bandwidth: Bytes a second.
        link_bandwidth: Bytes a second that a chip can send: along one axis of a TPU's torus, both directions together;
            to the other GPUs of its host.
        network_bandwidth: Bytes a second that it can send to other slices; of GPUs, to other hosts.
        whole: Chips along an axis of the torus from which on it is closed; of GPUs without meaning.
        efficiency: Share of the peak that the matmuls of a training step reach, see docs/pods.md: from one published
            run of each kind where there is one.
        target: What a GPU's compiler has to know of it: compute capability, cores, shared memory of a core, of a block,
            second-level cache (bytes), clock (GHz), FPUs of a core.
        watts: At most (thermal design power, of SXM boards); None where it is not published.
    """

    name: str
    kind: Literal["tpu", "gpu"]
    flops_per_second: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    efficiency: float
    whole: int = 1
    target: tuple[float, ...] = ()
    watts: float | None = None


# Ampere and Hopper, for their compiler.
_SM_80 = (8.0, 108, 167_936, 166_912, 41_943_040, 1.41, 64)
_SM_90 = (9.0, 132, 233_472, 232_448, 52_428_800, 1.98, 128)

# TPUs: what their compiler gives out. GPUs: 0.95 of what the board has, as launch/slurm.sbatch lets JAX take.
CHIPS = (
    Chip("v6e", "tpu", 918e12, 125 * GIB // 4, 1600e9, 200e9, 12.5e9, 0.52, whole=16),
    Chip("v5e", "tpu", 197e12, 63 * GIB // 4, 819e9, 100e9, 3.1e9, 0.74, whole=16),
    Chip("v5p", "tpu", 459e12, 95 * GIB, 2765e9, 200e9, 6.25e9, 0.72, whole=4),
    Chip("h200", "gpu", 989e12, 133 * GIB, 4800e9, 450e9, 50e9, 0.6, target=_SM_90, watts=700),
    Chip("h100", "gpu", 989e12, 75 * GIB, 3352e9, 450e9, 50e9, 0.6, target=_SM_90, watts=700),
    Chip("a100", "gpu", 312e12, 75 * GIB, 2039e9, 300e9, 25e9, 0.65, target=_SM_80, watts=400),
    Chip("a800", "gpu", 312e12, 75 * GIB, 2039e9, 200e9, 12.5e9, 0.65, target=_SM_80, watts=400),
)
