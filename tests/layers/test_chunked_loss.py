from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from flm_jax import partitioning
from flm_jax.layers.chunked_loss import Settings, Sums, chunked_loss
from flm_jax.partitioning import MeshShape

Z_LOSS = 1e-2


def plain(scale: float, hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
    """From all logits, by the definition."""
    logits = scale * hidden @ table.T
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.sum(jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0] * weights)
    z_loss = Z_LOSS * jnp.sum(jax.nn.logsumexp(logits, axis=-1) ** 2 * weights)
    hits = jnp.argmax(logits, axis=-1) == targets
    return Sums(nll + z_loss, nll, z_loss, jnp.sum(hits * weights), jnp.sum(weights))


def problem(rows: int, length: int, width: int, vocab: int, dtype: Any = np.float64) -> tuple[Any, ...]:
    rng = np.random.default_rng(rows * length + vocab)
    return (
        jnp.asarray(rng.standard_normal((rows, length, width)), dtype),
        jnp.asarray(rng.standard_normal((vocab, width)), dtype),
        jnp.asarray(rng.integers(0, vocab, (rows, length)), jnp.int32),
        jnp.asarray(rng.integers(0, 4, (rows, length)), jnp.int32),
    )


def with_gradients(loss: Callable[..., Sums], *arguments: Any) -> tuple[Sums, tuple[jax.Array, jax.Array]]:
    def total(hidden: jax.Array, table: jax.Array) -> tuple[jax.Array, Sums]:
        sums = loss(hidden, table, *arguments[2:])
        return sums.total / 3, sums

    (_, sums), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*arguments[:2])
    return sums, gradients


@settings(max_examples=15)
@given(
    rows=st.integers(1, 4), length=st.integers(1, 9), vocab=st.integers(2, 30), chunk=st.integers(1, 40),
    each=st.booleans(),
)  # fmt: skip
def test_values_and_gradients_are_those_of_all_logits(
    rows: int, length: int, vocab: int, chunk: int, each: bool
) -> None:
    with jax.enable_x64(True):
        arguments = problem(rows, length, 5, vocab)
        how = Settings(0.7, Z_LOSS, chunk, each)

        @jax.jit
        def both(*arguments: jax.Array) -> tuple[Any, ...]:
            return (
                with_gradients(lambda *a: chunked_loss(how, *a)[0], *arguments),
                with_gradients(lambda *a: plain(0.7, *a), *arguments),
                chunked_loss(how, *arguments)[1],
            )

        found, expected, tokens = both(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), found, expected)
        assert (tokens is not None) == each
        if tokens is not None:
            weights = np.asarray(arguments[3])
            np.testing.assert_allclose(np.sum(tokens.nll * weights), found[0].nll, rtol=1e-11)
            np.testing.assert_allclose(np.sum(tokens.correct * weights), found[0].correct)


def test_a_large_vocabulary_in_float32() -> None:
    arguments = problem(2, 24, 16, 100_352, np.float32)
    found = with_gradients(lambda *a: chunked_loss(Settings(1.0, Z_LOSS, 10, False), *a)[0], *arguments)
    expected = with_gradients(lambda *a: plain(1.0, *a), *arguments)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(other)


def temporary_bytes(rows: int, length: int) -> int:
    """Of the compiled program that makes value and gradients."""
    how = Settings(1.0, Z_LOSS, 64, False)
    shapes = (
        jax.ShapeDtypeStruct((rows, length, 32), jnp.float32),
        jax.ShapeDtypeStruct((100_352, 32), jnp.float32),
        *[jax.ShapeDtypeStruct((rows, length), jnp.int32)] * 2,
    )

    def loss(hidden: jax.Array, table: jax.Array, *rest: jax.Array) -> jax.Array:
        return chunked_loss(how, hidden, table, *rest)[0].total

    analysis = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_memory_does_not_depend_on_batch_and_length() -> None:
    few, more, many = temporary_bytes(2, 128), temporary_bytes(8, 128), temporary_bytes(8, 2048)
    logits = 64 * 100_352 * 4
    assert few < 2.5 * logits, "a chunk's logits and what is computed from them"
    assert abs(more - few) < 0.005 * few and abs(many - few) < 0.005 * few
    assert many < 0.01 * 8 * 2048 * 100_352 * 4, "all logits"


@pytest.mark.parametrize(
    "shape", [MeshShape(2, 2, 2), MeshShape(1, 1, 2, 2, 2), MeshShape(1, 8, 1)], ids=["dft", "tqs", "f"]
)
@pytest.mark.parametrize("each", [False, True])
def test_split_over_a_mesh(shape: MeshShape, each: bool) -> None:
    """Tokens over data, fsdp and sequence, rows of the table over tensor and stage, its columns over fsdp."""
    arguments = problem(8, 12, 16, 64, np.float32)
    how = Settings(0.7, Z_LOSS, 5, each)
    expected = with_gradients(lambda *a: plain(0.7, *a), *arguments)
    alone = chunked_loss(how, *arguments)[1]
    mesh = shape.build()
    with jax.set_mesh(mesh), partitioning.axis_rules():
        specs = [partitioning.mesh_spec(*axes) for axes in (("batch", "length", None), ("vocab", "embed"))]
        rows = partitioning.batch_sharding(mesh)
        placed = [
            jax.device_put(value, sharding)
            for value, sharding in zip(
                arguments, [*(NamedSharding(mesh, spec) for spec in specs), rows, rows], strict=True
            )
        ]
        found = jax.jit(lambda *a: with_gradients(lambda *b: chunked_loss(how, *b)[0], *a))(*placed)
        tokens = jax.jit(lambda *a: chunked_loss(how, *a)[1])(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tokens, alone)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(other)
