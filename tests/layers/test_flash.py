"""The kernels for TPUs and GPUs, interpreted, against the dense reference."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import Decoder, LanguageModel, grow, partitioning
from flm_jax.layers import flash as flash_module
from flm_jax.layers.attention import causal_mask, choose
from flm_jax.layers.dense import attend
from flm_jax.layers.flash import flash
from flm_jax.partitioning import MeshShape
from flm_jax.training.step import gradients
from tests.models import random_batch, random_params, small_config

LENGTH = {"splash": 256, "triton": 64}


def heads(backend: str, dtype: Any, groups: int, rows: int = 2) -> tuple[jax.Array, ...]:
    """Queries, keys, values and packed segments, the last of them padding."""
    rng = np.random.default_rng(groups)
    length = LENGTH[backend]
    draw = lambda count: jnp.asarray(rng.standard_normal((rows, length, count, 32)), dtype)  # noqa: E731
    segments = np.sort(rng.integers(1, 5, (rows, length)), axis=1)
    segments[segments == 4] = 0
    return draw(4), draw(groups), draw(groups), jnp.asarray(segments, jnp.int32)


def close(found: jax.Array, expected: jax.Array, dtype: Any) -> None:
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    assert np.linalg.norm(found - expected) <= {"float32": 1e-5, "bfloat16": 2e-2}[dtype] * np.linalg.norm(
        expected
    )


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["splash", "triton"])
def test_forward_and_backward_are_the_dense_reference(backend: str, dtype: str, groups: int) -> None:
    *arrays, segments = heads(backend, dtype, groups)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape))

    def kernel(*arrays: jax.Array) -> jax.Array:
        return flash(backend, *arrays, segments, interpret=True)

    def dense(*arrays: jax.Array) -> jax.Array:
        wide = [x.astype(jnp.float32) for x in arrays]
        return attend(*wide, causal_mask(segments.shape[1], segments))

    close(kernel(*arrays), dense(*arrays), dtype)
    for one, other in zip(
        *(
            jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weights), argnums=(0, 1, 2))(*arrays)
            for f in (kernel, dense)
        ),
        strict=True,
    ):
        close(one, other, dtype)


@pytest.mark.parametrize("backend", ["splash", "triton"])
def test_on_a_mesh(backend: str) -> None:
    """Each device has its rows and heads."""
    *arrays, segments = heads(backend, jnp.float32, 2, rows=4)
    expected = attend(*arrays, causal_mask(segments.shape[1], segments))
    mesh = MeshShape(2, 1, 2).build(jax.devices()[:4])
    with jax.set_mesh(mesh), partitioning.axis_rules():
        found = jax.jit(lambda *a: flash(backend, *a, interpret=True))(*arrays, segments)
    assert "tensor" in str(found.sharding.spec)
    close(found, expected, "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "splash"}, "'splash' runs on a tpu, found a cpu; or bind .* 'dense'"),
        ({"attention": "triton"}, "'triton' runs on a gpu, found a cpu"),
    ],
)
def test_a_kernel_for_other_devices_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(small_config(**changes), 128, "cpu")


def test_auto_takes_the_kernel_of_the_devices_if_that_takes_the_model() -> None:
    config = small_config(head_dim=16)
    with jax.set_mesh(MeshShape(8).build()):
        assert choose(config, 128, "cpu") == "dense"
        assert choose(config, 128, "tpu") == "splash" and choose(config, 100, "tpu") == "dense"
        assert choose(config, 48, "gpu") == "triton" and choose(small_config(), 48, "gpu") == "dense"
    with jax.set_mesh(MeshShape(1, sequence=8).build()):
        assert choose(config, 128, "tpu") == "dense"


def test_parameters_are_drawn_and_growth_is_proven_whatever_the_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On fewer tokens than a kernel takes, and on devices that it does not run on."""
    monkeypatch.setattr(
        flash_module, "refusal", lambda backend, platform, *rest: flash_module.unfit(backend, *rest)
    )
    config = small_config(attention="splash")
    params = Decoder(config).init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    monkeypatch.undo()
    plan = grow.plan(config, dataclasses.replace(config, num_layers=3), "msg")
    assert grow.verify(plan, params).logits < 1e-5


@pytest.mark.parametrize(
    ("backend", "length", "size", "dtype", "message"),
    [
        ("splash", 192, 32, "float32", "multiple of 128 tokens, found 192"),
        ("triton", 40, 32, "float32", "multiple of 16 tokens, found 40"),
        ("triton", 64, 8, "float32", "head_dim = 8"),
        ("splash", 128, 12, "float32", "head_dim = 12"),
        ("triton", 64, 32, "float16", "float16"),
    ],
)
def test_what_a_kernel_cannot_take_is_refused(
    backend: str, length: int, size: int, dtype: str, message: str
) -> None:
    heads = jnp.zeros((1, length, 2, size), dtype)
    with pytest.raises(ValueError, match=message):
        flash(backend, heads, heads, heads, jnp.ones((1, length), jnp.int32), interpret=True)


def test_a_split_sequence_is_refused() -> None:
    heads = jnp.zeros((2, 64, 2, 32))
    with (
        jax.set_mesh(MeshShape(1, sequence=8).build()),
        pytest.raises(ValueError, match=r"MeshShape\.sequence = 8"),
    ):
        flash("triton", heads, heads, heads, jnp.ones((2, 64), jnp.int32), interpret=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["splash", "triton"])
@pytest.mark.parametrize("shape", [MeshShape(2, 1, 2), MeshShape(1, 1, 2, stage=2)], ids=["scan", "pipeline"])
def test_in_the_model_on_a_mesh(backend: str, shape: MeshShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients are those of dense attention on one device, in the scanned blocks and in pipeline stages."""
    monkeypatch.setattr(
        flash_module, "refusal", lambda backend, platform, *rest: flash_module.unfit(backend, *rest)
    )
    monkeypatch.setattr(flash_module, "flash", functools.partial(flash, interpret=True))
    config = small_config(num_kv_heads=2, head_dim=16, max_length=128)
    params, batch = random_params(config), random_batch(config, 4, 128)

    def grads(attention: str, num_microbatches: int) -> Any:
        model = LanguageModel(dataclasses.replace(config, attention=attention))
        return jax.jit(functools.partial(gradients, model, num_microbatches=num_microbatches))

    expected, sums = grads("dense", 1)(params, batch)
    mesh = shape.build(jax.devices()[:4])
    with jax.set_mesh(mesh), partitioning.axis_rules():
        placed = jax.device_put(params, partitioning.param_shardings(config, mesh))
        rows = jax.device_put(batch, partitioning.batch_sharding(mesh))
        program = grads(backend, 2).lower(placed, rows)
        found, found_sums = program.compile()(placed, rows)
    np.testing.assert_allclose(found_sums.nll, sums.nll, rtol=1e-5)
    jax.tree.map(lambda one, other: close(one, other, "float32"), found, expected)
