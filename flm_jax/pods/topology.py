"""Accelerators by name, as devices that can be compiled for and are not here.

`v5p:4x8x8` is a TPU slice of 256 chips in a torus, `2xv5e:16x16` two slices, `a800:24x8` 24 hosts of 8 GPUs.
"""

import dataclasses
import importlib.util
import math
import os
import re

from flm_jax.chips import CHIPS, Chip

# What the compilers read when they are first used.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",  # or libtpu complains that it finds no others
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing that two processes could contend for
    "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0",  # nothing can be timed
}
_BY_NAME = {chip.name: chip for chip in CHIPS if chip.kind == "tpu" or chip.target}


class TopologyError(ValueError):
    """A topology that there is not, or whose compiler is not installed."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some slices of a TPU, or some hosts with GPUs.

    Attributes:
        name: As given.
        chip: What it is made of.
        shape: Chips along each axis of a slice's torus; of GPUs hosts and GPUs of a host.
        slices: Of TPUs; GPUs have one.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def num_devices(self) -> int:
        """In all."""
        return self.slices * math.prod(self.shape)

    def devices(self) -> list:
        """JAX's devices, to compile for.

        Raises:
            TopologyError: the compiler is not installed, or does not know the topology.
        """
        from jax.experimental import topologies

        try:
            if self.chip.kind == "tpu":
                _require("libtpu", "tpu")
                settings = {"num_slices": self.slices} if self.slices > 1 else {}
                found = topologies.get_topology_desc(
                    platform="tpu",
                    topology_name=self.name.split("x", 1)[1] if self.slices > 1 else self.name,
                    **settings,
                )
            else:
                _require("jax_plugins.xla_cuda12", "cuda")
                hosts, per_host = self.shape
                found = topologies.get_topology_desc(
                    platform="cuda",
                    topology_name=f"1x{hosts}x{per_host}",
                    topology=f"1x{hosts}x{per_host}",
                    target_config=_target_config(self.chip),
                )
        except TopologyError:
            raise
        except (RuntimeError, ValueError) as error:
            raise TopologyError(f"--topology={self.name}: the compiler refuses it: {error}") from error
        return list(found.devices)


def parse(name: str) -> Topology:
    """`v5p:4x8x8`, `2xv5e:16x16` or `a800:24x8`.

    Raises:
        TopologyError: another form, or a chip that is not known.
    """
    found = re.fullmatch(r"(?:([2-9]|[1-9]\d+)x(?=v))?([a-z]\w*):(\d+(?:x\d+)*)", name)
    if not found or found[2] not in _BY_NAME:
        raise TopologyError(
            "expected --topology=CHIP:SHAPE such as v5p:4x8x8, 2xv5e:16x16 (two slices) or a800:24x8 (24 hosts of 8), "
            f"with one of {', '.join(sorted(_BY_NAME))}; found {name!r}"
        )
    chip, shape = _BY_NAME[found[2]], tuple(int(size) for size in found[3].split("x"))
    axes = {"v5p": 3, "v5e": 2, "v6e": 2}.get(chip.name, 2)
    if len(shape) != axes or 0 in shape:
        what = "hosts x GPUs of a host" if chip.kind == "gpu" else f"{axes} axes of its torus"
        raise TopologyError(f"--topology={name}: {chip.name} has {what}, found {found[3]}")
    return Topology(name, chip, shape, int(found[1] or 1))


def prepare_environment() -> None:
    """Sets what the compilers read; before JAX is first used."""
    for variable, value in ENVIRONMENT.items():
        if variable == "XLA_FLAGS":
            value = " ".join(filter(None, (os.environ.get(variable), value)))
        os.environ[variable] = value
    os.environ["JAX_PLATFORMS"] = "cpu"


def _require(module: str, extra: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise TopologyError(
            f"to compile for this topology {module.split('.')[-1]} is needed: pip install 'flm_jax[{extra}]' (no "
            "accelerator has to be there)"
        )


def _target_config(chip: Chip) -> str:
    """XLA's description of a GPU, a text-format GpuTargetConfigProto."""
    capability, cores, shared, shared_of_block, cache, clock, fpus = chip.target
    extension = "feature_extension: ACCELERATED_FEATURES" if capability >= 9 else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {shared:.0f}
  shared_memory_per_block_optin: {shared_of_block:.0f}
  core_count: {cores:.0f}  fpus_per_core: {fpus:.0f}  clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  memory_bandwidth: {chip.memory_bandwidth:.0f}  device_memory_size: {chip.memory_bytes}  l2_cache_size: {cache:.0f}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {int(capability)} {extension} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "NVIDIA {chip.name.upper()}"
"""
