import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax import optimizer, parameters
from tests.models import random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_adamw_is_the_formula_with_its_multipliers() -> None:
    """Three updates against numpy, float64, the clipping in force."""
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64", d_model=512)
        params = random_params(config)
        tx = optimizer.adamw(config, lambda count: 0.01 / (count + 1), weight_decay=0.1, clip_norm=1.0)
        state, update = tx.init(params), jax.jit(tx.update)
        rng = np.random.default_rng(0)
        rows = jax.tree.leaves(parameters.table(config), is_leaf=parameters.is_parameter)
        theirs = [np.array(leaf) for leaf in jax.tree.leaves(params)]
        mean, square = [np.zeros_like(p) for p in theirs], [np.zeros_like(p) for p in theirs]
        for count in range(3):
            grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            leaves = [np.array(leaf) for leaf in jax.tree.leaves(grads)]
            norm = np.sqrt(sum((g**2).sum() for g in leaves))
            assert norm > 1
            for i, row in enumerate(rows):
                g = leaves[i] / norm
                mean[i] = 0.9 * mean[i] + 0.1 * g
                square[i] = 0.95 * square[i] + 0.05 * g**2
                adam = (
                    mean[i]
                    / (1 - 0.9 ** (count + 1))
                    / (np.sqrt(square[i] / (1 - 0.95 ** (count + 1))) + 1e-8)
                )
                mult = row.learning_rate_mult(config)
                decay = 0.1 * row.weight_decay_mult(config)
                theirs[i] -= 0.01 / (count + 1) * mult * (adam + decay * theirs[i])
        for ours, expected in zip(jax.tree.leaves(params), theirs, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_norms_and_biases_are_not_decayed() -> None:
    config = small_config()
    params = random_params(config)
    tx = optimizer.adamw(config, 0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    moved = jax.tree.map(lambda update: bool(jnp.any(update)), updates)
    assert moved["token_embedding"]["embedding"] and moved["layers"]["mlp"]["wo_kernel"]
    assert not any(moved["final_norm"].values())
    assert not any(hit for name, hit in moved["layers"]["attention"].items() if name.endswith("bias"))


def test_warmup_cosine() -> None:
    schedule = optimizer.warmup_cosine(1.0, total_steps=110, warmup_steps=10, final=0.1)
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(0.5)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(0.55)
    assert float(schedule(110)) == pytest.approx(0.1)
    assert float(optimizer.warmup_cosine(1.0, total_steps=10)(0)) == 1.0


def test_warmup_stable_decay() -> None:
    schedule = optimizer.warmup_stable_decay(1.0, total_steps=100, warmup_steps=10, decay_steps=20, final=0.0)
    found = [float(schedule(step)) for step in (0, 5, 10, 50, 80, 90, 100)]
    assert found == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])
    with pytest.raises(ValueError, match="expected DECAY_STEPS of at least 1, found 0"):
        optimizer.warmup_stable_decay(1.0, total_steps=100, decay_steps=0)


def test_schedules_are_float64_where_everything_is() -> None:
    with jax.enable_x64(True):
        cosine = optimizer.warmup_cosine(3e-4, total_steps=1000, warmup_steps=7, final=1e-5)
        expected = 1e-5 + (3e-4 - 1e-5) * (1 + np.cos(np.pi * (37 - 7) / 993)) / 2
        assert float(cosine(jnp.int32(37))) == pytest.approx(expected, rel=1e-13)
        wsd = optimizer.warmup_stable_decay(3e-4, total_steps=1000, decay_steps=300, final=1e-5)
        assert float(wsd(jnp.int32(901))) == pytest.approx(3e-4 + (1e-5 - 3e-4) * 201 / 300, rel=1e-13)


def test_schedules_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match=r"100 steps has no room for 100 .*WARMUP_STEPS"):
        optimizer.warmup_cosine(1.0, total_steps=100, warmup_steps=100)
    with pytest.raises(ValueError, match="no room for 120"):
        optimizer.warmup_stable_decay(1.0, total_steps=100, warmup_steps=60, decay_steps=60)
