"""What compiled programs send: kinds, bytes, mesh axes and trips through loops."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax.partitioning import MeshShape
from flm_jax.pods.collectives import Collective, by_kind, read

MESH = (("data", 2), ("fsdp", 4))


def program(*lines: str, body: tuple[str, ...] = (), condition: tuple[str, ...] = ()) -> str:
    """A program's text, with a loop where there is a body."""
    loop = "  %while.1 = (s32[]) while(%t), condition=%cond, body=%body.7, metadata={}" if body else ""
    return "\n".join(
        [
            "HloModule jit_step",
            "%body.7 (p: (s32[])) -> (s32[]) {",
            *body,
            "}",
            "%cond (p: (s32[])) -> pred[] {",
        ]
        + [*condition, "}", "ENTRY %main (a: f32[2]) -> f32[2] {", *lines, loop, "}"]
    )


def test_kinds_and_bytes() -> None:
    groups = "replica_groups={{0,1,2,3},{4,5,6,7}}"
    found = read(
        program(
            f"  %a = bf16[8,16]{{1,0}} all-gather(%x), channel_id=1, {groups}, dimensions={{0}}",
            f"  %b = f32[2,4]{{1,0}} reduce-scatter(%y), {groups}, dimensions={{0}}, to_apply=%add",
            f"  %c = (f32[3]{{0}}, f32[5]{{0}}) all-reduce(%y, %z), {groups}, to_apply=%add",
            f"  %d = (bf16[2,16]{{1,0}}, bf16[8,16]{{1,0}}) all-gather-start(%x), {groups}",
            "  %e = (bf16[4]{0}, bf16[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), "
            "source_target_pairs={{0,4},{1,5}}, channel_id=3",
            "  %e.1 = bf16[4]{0} collective-permute-done(%e)",
            f"  %f = ((f32[8,4]{{1,0}}), f32[2,4]{{1,0}}) reduce-scatter-start(%y), {groups}, to_apply=%add",
        ),
        MESH,
    )
    assert by_kind(found) == {
        "all-gather": 2 * 2 * 8 * 16,
        "all-reduce": 4 * 8,
        "collective-permute": 2 * 4,
        "reduce-scatter": 2 * 4 * 8 * 4,
    }
    assert {one.kind: one.axes for one in found}["collective-permute"] == ("data",)
    assert {one.axes for one in found if one.kind != "collective-permute"} == {("fsdp",)}
    assert found[0] == Collective("all-gather", ("fsdp",), 4, 512.0, 2), "the largest first"


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp",)),
        ("replica_groups=[1,8]<=[8]", ("data", "fsdp")),
        ("replica_groups={}", ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
    ],
)
def test_forms_of_groups(groups: str, axes: tuple[str, ...]) -> None:
    text = program(f"  %a = f32[8]{{0}} all-reduce(%x), {groups}, use_global_device_ids=true, to_apply=%add")
    (one,) = read(text, MESH)
    assert one.axes == axes


@pytest.mark.parametrize(
    "rounds",
    [
        ("  ROOT %lt = pred[] compare(%i, %n), direction=LT", "  %n = s32[]{:T(128)} constant(80)"),
        ("  %n = u32[] constant(80)", "  ROOT %c = pred[]{:T(512)} compare(%i, %n), direction=LT"),
    ],
)
def test_what_is_in_a_loop_counts_as_often_as_it_runs(rounds: tuple[str, ...]) -> None:
    gather = "  %a = bf16[4,4]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}"
    (one,) = read(program(gather, body=(gather,), condition=rounds), MESH)
    assert (one.times, one.bytes) == (81, 81 * 32)


def test_an_exchange_beside_matmuls_counts_once() -> None:
    """As libtpu writes it: where it starts, in a fusion with a matmul, and where it is over."""
    gather = "  %all-gather.{} = bf16[4,4]{{1,0}} all-gather(%x), channel_id=134, replica_groups=[2,4]<=[8]"
    text = "\n".join(
        [
            "HloModule jit_step",
            "%start.1 (p: bf16[1,4]) -> bf16[4,4] {",
            gather.format(1),
            '  ROOT %c = bf16[4,4]{1,0} custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"',
            "}",
            "%async_collective_fusion.7 (p: bf16[1,4]) -> bf16[4,4] {",
            gather.format(2),
            "}",
            "%done.1 (p: bf16[1,4]) -> bf16[4,4] {",
            gather.format(3),
            '  ROOT %c = bf16[4,4]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"',
            "}",
            "ENTRY %main (a: f32[2]) -> f32[2] {",
            "  %f.1 = bf16[4,4] fusion(%a), kind=kCustom, calls=%start.1",
            "  %f.2 = bf16[4,4] fusion(%a), kind=kOutput, calls=%async_collective_fusion.7",
            "  %f.3 = bf16[4,4] fusion(%a), kind=kCustom, calls=%done.1",
            "}",
        ]
    )
    assert read(text, MESH) == [Collective("all-gather", ("fsdp",), 4, 32, 1, beside=True)]


def test_loops_without_exchanges_may_run_as_they_like() -> None:
    assert (
        read(
            program(body=("  %a = f32[2] add(%x, %y)",), condition=("  ROOT %p = pred[] parameter(0)",)), MESH
        )
        == []
    )


def test_unknown_forms_are_refused() -> None:
    gather = "  %a = bf16[4,4]{1,0} all-gather(%x), replica_groups=?, dimensions={0}"
    with pytest.raises(ValueError, match="groups of devices in a form that is known"):
        read(program(gather), MESH)
    with pytest.raises(ValueError, match="whose rounds are known"):
        read(program(body=(gather,), condition=("  ROOT %p = pred[] parameter(0)",)), MESH)
    with pytest.raises(ValueError, match="found f8e4m3fn"):
        read(program("  %a = f8e4m3fn[8]{0} all-reduce(%x), replica_groups={}"), MESH)
    with pytest.raises(ValueError, match="with an ENTRY"):
        read("HloModule nothing", MESH)


def test_a_program_compiled_here() -> None:
    """A layer's weights, split over fsdp, gathered in each of six rounds; their gradients added up once over data."""
    mesh: Mesh = MeshShape(2, 4).build()
    rows, split = (
        NamedSharding(mesh, PartitionSpec(("data", "fsdp"))),
        NamedSharding(mesh, PartitionSpec(None, "fsdp")),
    )

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        def one(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(one, x, w)[0].sum()

    shapes = (
        jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=rows),
    )
    text = jax.jit(loss).lower(*shapes).compile().as_text()
    found = [one for one in read(text, tuple(mesh.shape.items())) if one.kind == "all-gather"]
    assert sum(one.bytes for one in found) == 6 * 64 * 64 * 4 and {one.axes for one in found} == {("fsdp",)}
