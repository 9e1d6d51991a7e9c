"""Training of what a growth has added and of nothing else."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

from flm_jax import optimizer
from flm_jax.grow import train_only_new
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.optimizer import width_multipliers
from tests.grow.growths import assert_equal, drawn_params, is_new, old_entries, resized
from tests.models import LLAMA, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = small_config(vocab_size=16, d_model=6, num_heads=2, head_dim=2, d_ff=4)
GROUPED = small_config(**{**LLAMA, "vocab_size": 16, "d_model": 6, "num_heads": 4, "head_dim": 2, "d_ff": 4})
PLANS = {
    "llama_pro": decide(SOURCE, resized(SOURCE, layers=4), "llama_pro"),
    "msg": decide(SOURCE, resized(SOURCE, embed=9, heads=3, mlp=6, layers=3), "msg"),
    "copies": decide(GROUPED, resized(GROUPED, embed=12, queries=3, mlp=6), "hypercloning"),
}


def after_updates(plan: GrowthPlan, tx: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """Parameters and optimizer state after three updates by gradients that are nowhere 0."""
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in range(3):
        updates, state = update(drawn_params(plan.target, 10 + seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def adamw(plan: GrowthPlan) -> optax.GradientTransformation:
    mults = plan.multipliers(width_multipliers(plan.source))
    return optimizer.adamw(plan.target, 1e-2, weight_decay=0.5, multipliers=mults)


@pytest.mark.parametrize("method", PLANS)
def test_old_entries_keep_every_bit_and_new_ones_train(method: str) -> None:
    """Weight decay moves neither; the optimizer's state, with clipping before it, is that of training all."""
    plan = PLANS[method]
    params = drawn_params(plan.target)
    found, state = after_updates(plan, train_only_new(adamw(plan), plan), params)
    everything, other_state = after_updates(plan, adamw(plan), params)
    assert_equal(old_entries(plan, found), old_entries(plan, params))
    for a, b, whole, new in zip(
        *map(jax.tree.leaves, (found, params, everything, is_new(plan))), strict=True
    ):
        assert np.all((np.asarray(a) != b)[new])
        # What is new trains as if all did, as the optimizer goes by entries.
        np.testing.assert_allclose(np.asarray(a)[new], np.asarray(whole)[new], rtol=1e-5, atol=1e-6)
        assert np.all((np.asarray(whole) != b)[~new])
    moments = [(s[1].mu, s[1].count) for s in (state, other_state)]
    assert_equal(*moments)


def test_parameters_with_new_entries_are_a_mask_for_optax() -> None:
    """The whole of them trains then, which is coarser: of layers that are stacked the old ones too."""
    plan = PLANS["llama_pro"]
    mask = jax.tree.map(np.any, plan.is_new())
    assert set(jax.tree.leaves(mask["layers"])) == {True}
    assert set(jax.tree.leaves((mask["token_embedding"], mask["final_norm"]))) == {False}
    tx = optax.chain(
        optax.masked(optax.adam(1e-2), mask),
        optax.masked(optax.set_to_zero(), jax.tree.map(np.logical_not, mask)),
    )
    params = drawn_params(plan.target)
    found, _ = after_updates(plan, tx, params)
    assert_equal(found["token_embedding"], params["token_embedding"])
    assert_equal(found["final_norm"], params["final_norm"])
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(bool(np.all(a != b)), True), found["layers"], params["layers"]
    )


@pytest.mark.parametrize("method", PLANS)
def test_what_is_new_is_told_by_broadcast(method: str) -> None:
    plan = PLANS[method]
    found = jax.tree.map(lambda new, whole: np.broadcast_to(new, whole.shape), plan.is_new(), is_new(plan))
    assert_equal(found, is_new(plan))
