import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from flm_jax import partitioning
from flm_jax.layers.linear import linear
from flm_jax.partitioning import MeshShape


@settings(max_examples=10)
@given(
    rows=st.integers(1, 3), length=st.integers(1, 5), inputs=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    outputs=st.lists(st.integers(1, 4), min_size=1, max_size=2), biased=st.booleans(),
)  # fmt: skip
def test_values_and_gradients_are_einsums(
    rows: int, length: int, inputs: list[int], outputs: list[int], biased: bool
) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((rows, length, *inputs)))
        kernel = jnp.asarray(rng.standard_normal((*inputs, *outputs)))
        bias = jnp.asarray(rng.standard_normal(outputs)) if biased else None
        weights = jnp.asarray(rng.standard_normal((rows, length, *outputs)))
        ins, outs = "ij"[: len(inputs)], "op"[: len(outputs)]

        def plain(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
            out = jnp.einsum(f"bl{ins},{ins}{outs}->bl{outs}", x, kernel)
            return out if bias is None else out + bias

        def ours(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
            return linear(x, kernel, bias, num_inputs=len(inputs))

        @jax.jit
        def look(*arrays: jax.Array) -> list[jax.Array]:
            return [(f(*arrays), jax.vjp(f, *arrays)[1](weights)) for f in (ours, plain)]

        found, expected = look(x, kernel, bias)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)


def test_sums_over_tokens_are_float32() -> None:
    """1,001 tokens of 1.0: bfloat16 cannot even hold the sum."""
    x = jnp.ones((7, 143, 1), jnp.bfloat16)
    total = jax.grad(
        lambda kernel, bias: jnp.sum(linear(x, kernel, bias).astype(jnp.float32)), argnums=(0, 1)
    )
    for gradient in total(jnp.ones((1, 1)), jnp.ones(1)):
        assert gradient.dtype == jnp.float32 and gradient.item() == 1001.0


@pytest.mark.parametrize(
    "shape", [MeshShape(2, 1, 1, sequence=4), MeshShape(2, 1, 4)], ids=["sequence", "tensor"]
)
def test_a_split_length_is_not_gathered(shape: MeshShape) -> None:
    """Where devices split batch and length, both matmuls and the bias' sum leave them split."""
    mesh = shape.build()
    x, kernel, bias = jnp.ones((4, 8, 16)), jnp.ones((16, 32)), jnp.ones(32)

    def loss(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(linear(x, kernel, bias)))

    with jax.set_mesh(mesh), partitioning.axis_rules():
        rows = NamedSharding(mesh, partitioning.mesh_spec("batch", "residual", None))
        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), out_shardings=(rows, None, None))
        text = program.lower(jax.device_put(x, rows), kernel, bias).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "all-reduce" in text
