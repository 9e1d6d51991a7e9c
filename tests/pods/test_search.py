"""The search through layouts, on eight devices of this machine in place of a host's GPUs."""

import dataclasses

import jax
import pytest

from flm_jax import LanguageModel, presets
from flm_jax.config import ModelConfig
from flm_jax.grow.schedule import Route, Stage
from flm_jax.partitioning import MeshShape
from flm_jax.pods import topology
from flm_jax.pods.estimate import Layout, estimate, state_bytes
from flm_jax.pods.search import Found, laid_out, layout_of, nearest, search
from flm_jax.pods.topology import Topology
from flm_jax.training.leg import check_mesh

EIGHT = topology.parse("a800:1x8")
MODEL = dataclasses.replace(
    presets.flm_tiny(), dtype="bfloat16", d_model=2048, num_heads=16, d_ff=8192, num_layers=24
)


def route(batch: int = 64, **changes: object) -> Route:
    config = dataclasses.replace(MODEL, max_length=2048, **changes)
    return Route.of([Stage(LanguageModel(config), batch, 1e-3, steps=10)], 2048)


def with_memory(gib: float) -> Topology:
    return dataclasses.replace(EIGHT, chip=dataclasses.replace(EIGHT.chip, memory_bytes=int(gib * 2**30)))


def searched(where: Topology = EIGHT, batch: int = 64) -> Found:
    return search(route(batch), 0, where, jax.devices())


def test_all_that_divide_are_looked_at() -> None:
    """The best is the best of all, and every candidate would start."""
    found = searched()
    meshes = {one.layout.mesh for one in found.candidates}
    assert {
        MeshShape(8, 1, 1),
        MeshShape(1, 8, 1),
        MeshShape(1, 1, 8),
        MeshShape(2, 2, 2),
        MeshShape(1, 1, 1, 1, 8),
    } <= meshes
    assert len({one.layout for one in found.candidates}) == len(found.candidates)
    fitting = found.fitting
    assert fitting[0].cost() == min(one.cost() for one in fitting)
    stage = route().stages[0]
    for one in found.candidates[:: len(found.candidates) // 20]:
        again = Route.of([laid_out(stage, one.layout)], 2048)
        check_mesh(again, 0, jax.devices())
        assert layout_of(again.stages[0]) == one.layout


def test_less_memory_never_makes_it_faster() -> None:
    times = []
    for gib in (79, 20, 4, 3):
        found = searched(with_memory(gib))
        assert all(one.estimate.peak <= gib * 2**30 for one in found.fitting)
        times.append(found.fitting[0].estimate.time.seconds)
    assert times == sorted(times) and times[0] < times[-1]


def test_nothing_fits() -> None:
    found = searched(with_memory(1))
    assert not found.fitting and not nearest(found, Layout(MeshShape(8, 1, 1), "none", 1))
    assert "0 are expected to fit" in found.describe() and "too large" in found.describe()


def test_the_nearest_keeps_the_mesh_where_it_can() -> None:
    """First microbatches and recomputation change, then the mesh."""
    wanted = Layout(MeshShape(1, 8, 1), "none", 1)
    found = searched(with_memory(12))
    assert not any(one.layout == wanted for one in found.fitting)
    assert nearest(found, wanted)[0].layout.mesh == wanted.mesh
    assert nearest(found, Layout(MeshShape(1, -1, 1), "none", 1)) == nearest(found, wanted)
    odd = nearest(found, Layout(MeshShape(1, 7, 1), "full", 1))[0]
    assert odd.layout.mesh.fsdp * odd.layout.mesh.data >= 4


def test_what_does_not_divide_is_counted() -> None:
    found = searched(batch=12)
    assert found.refused["whose rows do not divide the batch"]
    assert all(12 % (one.layout.mesh.data * one.layout.mesh.fsdp) == 0 for one in found.candidates)
    assert "whose rows do not divide the batch" in found.describe()


@pytest.mark.parametrize("remat", ["none", "dots", "dots_no_batch", "full", "stage"])
def test_less_kept_and_more_microbatches_need_less(remat: str) -> None:
    shape = MeshShape(1, 4, 1, stage=2) if remat == "stage" else MeshShape(1, 8, 1)
    mesh = shape.build()
    config = route().config(0)

    def peak(remat: str, count: int) -> float:
        return estimate(config, Layout(shape, remat, count), 64, 2048, mesh, EIGHT).peak

    less = {"none": "dots", "dots": "dots_no_batch", "dots_no_batch": "full", "full": None, "stage": None}[
        remat
    ]
    if less is not None:
        assert peak(less, 1) < peak(remat, 1)
    if remat == "stage":  # more microbatches fill a pipeline, and each keeps its own
        assert peak("stage", 8) < peak("full", 8)
    else:
        assert peak(remat, 2) < peak(remat, 1)
    assert state_bytes(config, mesh).params == pytest.approx(4 * config.num_params / 8, rel=0.01)


def test_float32_needs_more() -> None:
    """Activations are twice as large; parameters need no second copy."""
    shape = MeshShape(1, 8, 1)
    narrow, wide = route().config(0), route(dtype="float32").config(0)

    def peak(config: ModelConfig) -> float:
        return estimate(config, Layout(shape, "dots", 1), 64, 2048, shape.build(), EIGHT).peak

    assert 1.6 < peak(wide) / peak(narrow) < 2


def test_the_configs_own_remat_excludes_nothing() -> None:
    """With `stage` in the config meshes without stages are looked at as well."""
    found = search(route(remat="stage"), 0, EIGHT, jax.devices())
    assert {one.layout for one in found.candidates} == {one.layout for one in searched().candidates}


def test_a_kernel_that_the_devices_do_not_have_is_said() -> None:
    with pytest.raises(ValueError, match="'splash' runs on a tpu, found a cpu"):
        search(route(attention="splash"), 0, EIGHT, jax.devices())
