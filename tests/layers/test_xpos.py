import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.layers.xpos import rotate, rotation
from tests import reference
from tests.models import small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def scores(q: np.ndarray, k: np.ndarray, positions: np.ndarray, **changes: object) -> np.ndarray:
    """`[L, L]` of one head's `[L, K]`, float64."""
    config = small_config(dtype="float64", head_dim=q.shape[-1], **changes)
    with jax.enable_x64(True):
        tables = rotation(np.asarray(positions)[None], config)
        query = rotate(q[None, :, None], tables.query_cos, tables.query_sin)[0, :, 0]
        key = rotate(k[None, :, None], tables.key_cos, tables.key_sin)[0, :, 0]
    return np.asarray(query) @ np.asarray(key).T


@given(shift=st.integers(0, 4000), seed=st.integers(0, 10))
def test_scores_depend_on_distance_only(shift: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 6, 8))
    positions = np.sort(rng.integers(0, 500, 6))
    np.testing.assert_allclose(
        scores(q, k, positions), scores(q, k, positions + shift), rtol=1e-9, atol=1e-11
    )


def test_parity_with_the_formula_written_out() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 12, 16))
    config = small_config(head_dim=16)
    positions = np.array([0, 1, 2, 3, 5, 8, 13, 21, 100, 511, 512, 2047])
    expected = np.array(
        [
            [
                reference.xpos(q[a], n, config, 1) @ reference.xpos(k[b], m, config, -1)
                for b, m in enumerate(positions)
            ]
            for a, n in enumerate(positions)
        ]
    )
    np.testing.assert_allclose(scores(q, k, positions), expected, rtol=1e-6)


def test_without_scale_it_is_rope() -> None:
    """RoPE as complex numbers: (a + ib) e^(i n theta)."""
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 5, 8))
    positions = np.array([0, 3, 7, 30, 900])

    def rope(x: np.ndarray) -> np.ndarray:
        pairs = x[:, :4] + 1j * x[:, 4:]
        return pairs * np.exp(1j * positions[:, None] * 10_000.0 ** (-np.arange(4) / 4))

    expected = (rope(q) @ rope(k).conj().T).real
    np.testing.assert_allclose(
        scores(q, k, positions, xpos_scale_base=None), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tables_are_at_least_float32(dtype: str) -> None:
    assert rotation(np.arange(4)[None], small_config(dtype=dtype)).query_cos.dtype == np.float32
