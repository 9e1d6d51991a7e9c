"""FLOPs of traced programs: scans by their trip count, all devices, recomputation as the compiler carries it out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from flm_jax import LanguageModel, partitioning
from flm_jax.config import ModelConfig
from flm_jax.flops import count
from flm_jax.layers.flash import flash
from flm_jax.model import PACKED_FEATURES
from flm_jax.optimizer import adamw
from flm_jax.partitioning import MeshShape
from flm_jax.training.state import abstract_state
from flm_jax.training.step import gradients, skipping_non_finite, train_step
from tests.compiled_flops import matmul_flops
from tests.models import LLAMA, random_batch, random_params, small_config

CONFIG = small_config(d_model=32, num_layers=8, num_heads=8, head_dim=4, d_ff=48)


def counted(config: ModelConfig, shape: MeshShape | None = None, num_microbatches: int = 1) -> float:
    """Of the gradients of 16 x 32 tokens, over the tokens."""
    params, batch = random_params(config), random_batch(config, 16, 32)
    mesh = MeshShape(1).build(jax.devices()[:1]) if shape is None else shape.build()
    with jax.set_mesh(mesh), partitioning.axis_rules():
        step = functools.partial(
            gradients, LanguageModel(config, loss_chunk=64), num_microbatches=num_microbatches
        )
        traced = jax.jit(step).trace(params, batch)
    return count(traced.jaxpr) / (16 * 32)


@pytest.mark.parametrize("remat", ["none", "dots", "dots_no_batch", "full"])
def test_as_the_formula_says(remat: str) -> None:
    config = dataclasses.replace(CONFIG, remat=remat)
    assert counted(config) == pytest.approx(config.hardware_flops_per_token(32), rel=0.002)


@pytest.mark.parametrize(
    ("remat", "length", "block", "num_microbatches"),
    [
        ("none", 64, {}, 1),
        ("none", 512, LLAMA, 2),
        ("full", 256, LLAMA, 2),
        ("dots", 256, {}, 1),
        ("dots_no_batch", 512, {}, 2),
    ],
)
def test_as_compiled(remat: str, length: int, block: dict, num_microbatches: int) -> None:
    """The whole training step: XLA's text, the trace and the formula have the same matmuls as often; 2 % is the bar."""
    config = dataclasses.replace(CONFIG, remat=remat, max_length=512, **block)
    mesh, optimizer = MeshShape(1).build(jax.devices()[:1]), adamw(config, lambda count: 1e-3)
    rows = jax.ShapeDtypeStruct((2, length), jnp.int32)
    with jax.set_mesh(mesh), partitioning.axis_rules():
        step = jax.jit(train_step(LanguageModel(config), skipping_non_finite(optimizer), num_microbatches))
        state = abstract_state(config, skipping_non_finite(optimizer), mesh)
        traced = step.trace(state, dict.fromkeys(PACKED_FEATURES, rows))
        compiled = matmul_flops(traced.lower().compile().as_text())
    assert compiled == pytest.approx(count(traced.jaxpr), rel=0.02)
    assert compiled == pytest.approx(config.hardware_flops_per_token(length) * 2 * length, rel=0.02)


@pytest.mark.parametrize("shape", [MeshShape(8), MeshShape(2, 2, 2)], ids=["data", "three"])
def test_all_devices_together(shape: MeshShape) -> None:
    assert counted(CONFIG, shape, 2) == pytest.approx(counted(CONFIG))


@pytest.mark.parametrize("remat", ["none", "full", "stage"])
def test_idle_stages_compute_as_well(remat: str) -> None:
    """Four stages and four microbatches take seven ticks; readout and loss are no part of it."""
    config = dataclasses.replace(CONFIG, remat=remat)
    readout = 3 * 2 * config.vocab_size * config.d_model
    expected = readout + 7 / 4 * (config.hardware_flops_per_token(32) - readout)
    assert counted(config, MeshShape(1, 1, 2, stage=4), 4) == pytest.approx(expected, rel=0.002)


def test_beside_the_compilers_count() -> None:
    """Of matmuls without a loop XLA counts the same; of a loop it counts one round."""

    def layers(x: jax.Array, w: jax.Array, unrolled: bool) -> jax.Array:
        def one(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return x @ w, None

        return jax.lax.scan(one, x, w, unroll=unrolled)[0]

    x, w = jnp.ones((64, 128)), jnp.ones((6, 128, 128))
    for unrolled, times in ((True, 6), (False, 1)):
        traced = jax.jit(layers, static_argnums=2).trace(x, w, unrolled)
        compiled: Any = traced.lower().compile().cost_analysis()
        assert count(traced.jaxpr) == 6 * 2 * 64 * 128 * 128
        assert compiled["flops"] == pytest.approx(times * 2 * 64 * 128 * 128, rel=0.01)


def test_manual_regions_count_on_every_device() -> None:
    mesh = MeshShape(8).build()
    spec = PartitionSpec("data")
    both = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count(jax.make_jaxpr(both)(jnp.ones((16, 4)))) == 8 * 2 * 2 * 2 * 4


def test_a_loop_of_unknown_length_is_refused() -> None:
    def until_large(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="a while loop with matmuls"):
        count(jax.make_jaxpr(until_large)(jnp.ones((2, 2))))


@pytest.mark.parametrize(
    ("backend", "length", "block"), [("splash", 1024, 512), ("splash", 384, 128), ("triton", 256, 64)]
)
def test_kernels_by_their_blocks(backend: str, length: int, block: int) -> None:
    """Forward 2 matmuls a block of scores on or below the diagonal, backward 7; 6 heads of 64, 2 rows."""
    rows, heads, size = 2, 6, 64
    x = jnp.ones((rows, length, heads, size))
    segments = jnp.ones((rows, length), jnp.int32)

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return flash(backend, q, k, v, segments, interpret=True).sum()

    blocks = length // block
    pair = 2 * rows * heads * size * block**2 * blocks * (blocks + 1) / 2
    assert count(jax.make_jaxpr(attention)(x, x, x)) == pytest.approx(2 * pair)
    both = jax.make_jaxpr(jax.grad(attention, (0, 1, 2)))(x, x, x)
    assert count(both) == pytest.approx((2 + 7) * pair, rel=1e-3)  # besides, a sum over each head's entries
