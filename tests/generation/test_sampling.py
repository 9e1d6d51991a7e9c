import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.generation import Sampling, candidates, choose, penalised

pytestmark = pytest.mark.usefixtures("quick_compilation")


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=12), st.integers(1, 6), st.floats(0.05, 0.99))
def test_top_k_and_top_p_keep_just_the_likeliest(logits: list[float], k: int, p: float) -> None:
    row = np.unique(np.round(np.float32(logits), 3))
    kept = np.isfinite(candidates(row[None], Sampling(temperature=1.0, top_k=k))[0])
    assert kept.sum() == min(k, len(row))
    assert np.all(row[kept] >= row[~kept].max(initial=-np.inf))

    kept = np.isfinite(candidates(row[None], Sampling(temperature=1.0, top_p=p))[0])
    probabilities = np.exp(row) / np.exp(row).sum()
    assert np.all(row[kept] >= row[~kept].max(initial=-np.inf))
    assert probabilities[kept].sum() >= p - 1e-5
    assert probabilities[kept].sum() - probabilities[kept].min() < p + 1e-5  # none too many


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.floats(0.05, 0.95))
def test_min_p_keeps_what_is_likely_beside_the_likeliest(logits: list[float], least: float) -> None:
    row = np.unique(np.round(np.float32(logits), 3))
    kept = np.isfinite(candidates(row[None], Sampling(temperature=1.0, min_p=least))[0])
    shares = np.exp(row.astype(np.float64) - row.max())
    assert np.all(kept[shares > least + 1e-5]) and not np.any(kept[shares < least - 1e-5])


@given(st.lists(st.floats(-9, 9), min_size=3, max_size=9), st.floats(0.1, 5), st.integers(0, 511))
def test_the_repetition_penalty_is_that_of_ctrl(logits: list[float], penalty: float, seen: int) -> None:
    row = np.array(logits, np.float32)
    was_seen = np.array([bool(seen >> place & 1) for place in range(len(row))])
    expected = [
        (value / penalty if value > 0 else value * penalty) if there else value
        for value, there in zip(row.astype(np.float64), was_seen, strict=True)
    ]
    found = penalised(row[None], was_seen[None], penalty)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=1e-30)
    assert np.all(np.asarray(found[0])[was_seen] <= row[was_seen]) or penalty < 1


def test_sampling_follows_the_tempered_distribution() -> None:
    logits = np.log(np.array([[0.6, 0.3, 0.1]], np.float32))
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = choose(np.repeat(logits, 20_000, axis=0), Sampling(temperature=0.5), keys)
    shares = np.bincount(draws, minlength=3) / 20_000
    np.testing.assert_allclose(shares, np.array([0.36, 0.09, 0.01]) / 0.46, atol=0.015)


def test_a_rows_draw_is_its_keys_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    together = choose(logits, sampling, keys)
    assert len(set(together.tolist())) > 1
    for row in range(6):
        assert int(choose(logits[row : row + 1], sampling, keys[row : row + 1])[0]) == int(together[row])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("temperature", value) for value in (-1.0, float("nan"), float("inf"))),
        *(("top_k", value) for value in (-1, 1.5)),
        *(("top_p", value) for value in (0.0, 1.5)),
        *(("min_p", value) for value in (-0.1, 1.1)),
        *(("repetition_penalty", value) for value in (0.0, -1.0, float("inf"))),
    ],
)
def test_bad_sampling_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"expected Sampling.{name} \(--{name}\) to be .*, found {wrong}"):
        Sampling(**{name: wrong})
