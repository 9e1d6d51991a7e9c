import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax.layers import dense
from flm_jax.layers.attention import causal_mask
from flm_jax.layers.dense import attend

pytestmark = pytest.mark.usefixtures("quick_compilation")


def plainly(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """By the definition, differentiated by JAX."""
    key, value = (jnp.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
    scores = jnp.einsum("blhk,bshk->bhls", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhls,bshk->blhk", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)), value)


@settings(max_examples=8, deadline=None)
@given(
    length=st.sampled_from([6, 8, 12]),
    groups=st.sampled_from([1, 2]),
    repeats=st.sampled_from([1, 3]),
    causal=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_blocks_are_the_definition(length: int, groups: int, repeats: int, causal: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    draw = lambda heads: jnp.asarray(rng.normal(size=(2, length, heads, 4)))  # noqa: E731
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(dense, "causal_blocks", lambda length: 1 if length % 4 else 4)
        arrays = draw(groups * repeats), draw(groups), draw(groups)
        weights = draw(groups * repeats)
        mask = causal_mask(length, jnp.asarray(np.sort(rng.integers(0, 3, (2, length)))))

        def both(function, *extra):
            return jax.value_and_grad(lambda arrays: jnp.sum(function(*arrays, mask, *extra) * weights))(
                arrays
            )

        found, expected = both(attend, causal), both(plainly)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_causal_sequence_costs_five_eighths() -> None:
    arrays = [jax.ShapeDtypeStruct((2, 256, 4, 16), np.float32)] * 3

    def flops(causal: bool) -> float:
        def run(*arrays):
            return jnp.sum(attend(*arrays, causal_mask(256, None), causal))

        return jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(*arrays).compile().cost_analysis()["flops"]

    assert flops(True) < 0.66 * flops(False)


@pytest.mark.parametrize(("sharpness", "offset"), [(1, 0), (1, 10), (10, 3), (30, 0)])
def test_bfloat16_gradients(sharpness: float, offset: float) -> None:
    """Values with a common offset, as from a bias, cancel in the scores' gradient; they have to in bfloat16, too."""
    rng = np.random.default_rng(0)
    query, key, value, weights = rng.normal(size=(4, 2, 256, 2, 32))
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (query * sharpness, key, value + offset)]
    mask = causal_mask(256, None)

    def gradients(function, arrays):
        return jax.grad(lambda arrays: jnp.sum(function(*arrays, mask) * jnp.asarray(weights)))(arrays)

    found = gradients(functools.partial(attend, causal=True), narrow)
    with jax.enable_x64(True):
        expected = gradients(plainly, [jnp.asarray(np.asarray(x, np.float64)) for x in narrow])
    for one, other in zip(found, expected, strict=True):
        error = np.linalg.norm(np.asarray(one, np.float64) - other) / np.linalg.norm(other)
        assert error < 6e-3
