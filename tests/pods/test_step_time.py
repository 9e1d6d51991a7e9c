"""The model of a step's time: its arithmetic, and runs of MaxText that are published with their layout."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flm_jax.config import ModelConfig
from flm_jax.partitioning import MESH_AXES, MeshShape
from flm_jax.pods import step_time, topology
from flm_jax.pods.collectives import Collective
from flm_jax.pods.estimate import Layout, exchanged
from flm_jax.pods.topology import Topology


def stand_in(where: Topology, shape: MeshShape) -> Any:
    """A mesh of devices with coordinates, in the order of the torus."""
    places = list(itertools.product(range(where.slices), *map(range, where.shape)))
    devices = np.empty(len(places), object)
    devices[:] = [
        SimpleNamespace(id=number, slice_index=place[0], coords=place[1:])
        for number, place in enumerate(places)
    ]
    sizes = [getattr(shape, axis) for axis in MESH_AXES]
    return SimpleNamespace(devices=devices.reshape(sizes), axis_names=MESH_AXES, size=devices.size)


@pytest.mark.parametrize(
    ("name", "shape", "axes", "expected"),
    [
        ("v5p:4x8x8", MeshShape(1, 256), ("fsdp",), 3 * 200e9),
        ("v5p:4x8x8", MeshShape(1, 4, 64), ("fsdp",), 200e9),
        ("v5p:4x8x8", MeshShape(1, 4, 64), ("tensor",), 2 * 200e9),
        ("v5e:16x16", MeshShape(1, 128, 2), ("tensor",), 100e9 / 2),  # two of a ring of sixteen
        ("v5e:4x4", MeshShape(1, 16), ("fsdp",), 2 * 100e9 / 2),  # no ring is closed
        (
            "v5p:4x8x8",
            MeshShape(1, 16, 16),
            ("fsdp",),
            200e9 * (0.5 / 2 + 1),
        ),  # every other of four, all of eight
        ("2xv5e:16x16", MeshShape(2, 256), ("data",), 3.1e9),
        ("2xv5e:16x16", MeshShape(4, 128), ("data",), 2 * 3.1e9),  # two of each slice
        ("2xv5e:16x16", MeshShape(2, 256), ("fsdp",), 2 * 100e9),
        ("a800:24x8", MeshShape(24, 1, 8), ("tensor",), 200e9),
        ("a800:24x8", MeshShape(24, 1, 8), ("data",), 12.5e9),
        ("a800:24x8", MeshShape(96, 1, 2), ("data",), 4 * 12.5e9),  # four network cards of each host
    ],
)
def test_bandwidth(name: str, shape: MeshShape, axes: tuple[str, ...], expected: float) -> None:
    where = topology.parse(name)
    assert step_time.bandwidth(stand_in(where, shape), axes, where) == expected


def test_exchanges() -> None:
    gather = Collective("all-gather", ("fsdp",), 4, 1e9, 1)
    assert step_time.exchange_seconds(gather, 100e9) == pytest.approx(0.0075)
    reduce = dataclasses.replace(gather, kind="all-reduce")
    assert step_time.exchange_seconds(reduce, 100e9) == pytest.approx(0.015)
    assert step_time.exchange_seconds(dataclasses.replace(gather, kind="collective-permute"), 100e9) == 0.02


def test_what_is_waited_for() -> None:
    """Parameters and gradients are exchanged beside the matmuls, activations are waited for."""
    where, shape = topology.parse("v5p:4x8x8"), MeshShape(1, 4, 64)
    mesh, flops = stand_in(where, shape), 256 * 459e12 * 0.72 * 10
    beside = Collective("all-gather", ("fsdp",), 4, 4 / 3 * 200e9, 1)
    waits = Collective("all-gather", ("tensor",), 64, 64 / 63 * 400e9, 1)
    time = step_time.predict(flops, 2765e9, [beside, waits], mesh, where)
    assert dataclasses.astuple(time) == pytest.approx((10, 1, 1, 1)) and time.seconds == pytest.approx(12)
    slow = step_time.predict(flops, 0, [dataclasses.replace(beside, bytes=20 * beside.bytes)], mesh, where)
    assert slow.seconds == pytest.approx(20)


def llama(
    d_model: int, layers: int, heads: int, groups: int | None, d_ff: int, vocab: int, remat: str
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab, d_model=d_model, num_layers=layers, num_heads=heads, head_dim=128, d_ff=d_ff,
        num_kv_heads=groups, norm="rmsnorm", activation="swiglu", use_bias=False, tied_readout=False,
        max_length=8192, xpos_scale_base=None, remat=remat,
    )  # fmt: skip


def whole_squares(config: ModelConfig, length: int) -> float:
    """FLOPs a token as MaxText counted them until July 2025, attention above the diagonal included."""
    attention = 6 * config.num_layers * config.num_heads * config.head_dim
    return config.flops_per_token(length) + attention * (length - 1)


# Of MaxText's MaxText/configs/v5e/ and v5p/ (TFLOP/s a chip, whole squares) and of AI-Hypercomputer/tpu-recipes
# (seconds a step). The first of each chip has set its efficiency, the others are predicted.
V5E_16B = llama(4096, 32, 64, None, 28_672, 32_000, "full")
V5E_32B = dataclasses.replace(V5E_16B, d_model=8192)
V5E_64B = dataclasses.replace(V5E_32B, num_layers=64)
LLAMA_2_70B = llama(8192, 80, 64, 8, 28_672, 32_000, "full")
GPT_3 = ModelConfig(50_304, 12_288, 96, 96, 128, 49_152, remat="full")


@pytest.mark.parametrize(
    ("name", "config", "rows", "length", "seconds", "teraflops"),
    [
        ("v5e:16x16", V5E_16B, 6, 2048, None, 120),
        ("v5e:16x16", V5E_32B, 4, 2048, None, 132),
        ("v5e:16x16", V5E_64B, 2, 2048, None, 118),
        ("v6e:16x16", GPT_3, 3, 2048, 17.182, None),
        ("v6e:16x16", LLAMA_2_70B, 4, 4096, 17.373, None),
        ("v6e:16x16", dataclasses.replace(LLAMA_2_70B, vocab_size=128_256), 4, 8192, 34.562, None),
        ("v6e:16x16", llama(4096, 32, 32, 8, 14_336, 128_256, "full"), 4, 8192, 4.546, None),
        ("v5p:4x8x8", dataclasses.replace(LLAMA_2_70B, remat="dots"), 4, 4096, 4 * 4096 / 692, None),
    ],
    ids=["16B", "32B", "64B", "gpt-3", "llama-2-70b", "llama-3.1-70b", "llama-3.1-8b", "llama-2-70b-v5p"],
)
def test_published_steps(
    name: str, config: ModelConfig, rows: int, length: int, seconds: float | None, teraflops: float | None
) -> None:
    """Within 15 %; all with fsdp over the whole slice, `rows` sequences a chip."""
    where = topology.parse(name)
    tokens = rows * length
    if seconds is None:
        assert teraflops is not None
        seconds = whole_squares(config, length) * tokens / (teraflops * 1e12)
    shape = MeshShape(1, where.num_devices)
    batch = rows * where.num_devices
    flops = config.hardware_flops_per_token(length) * tokens * where.num_devices
    sent = exchanged(config, Layout(shape, config.remat, 1), batch, length)
    found = step_time.predict(flops, 0, sent, stand_in(where, shape), where).seconds
    assert found == pytest.approx(seconds, rel=0.15)
