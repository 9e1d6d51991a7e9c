"""What the growth does to gradients, from which the rule of the optimizer's state follows."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax import LanguageModel, ModelConfig, optimizer
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.layers.growth_mask import GrowthMask
from tests.grow.growths import config64, drawn_params, is_new, llama64, resized
from tests.models import random_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3, impl="rbg")
SIZES: dict[str, Any] = {"vocab_size": 16, "d_model": 6, "d_ff": 5}
FLM = config64(**SIZES, num_heads=2, head_dim=4)
GROUPED = llama64(**SIZES)
LARGER = {"embed": 9, "heads": 3, "mlp": 8, "layers": 3}
CASES: dict[str, tuple[ModelConfig, dict[str, int], Any]] = {
    "msg": (FLM, LARGER, "msg"),
    "lemon": (FLM, LARGER, "lemon"),
    "pad": (GROUPED, {**LARGER, "queries": 3}, "pad"),
    "composable": (GROUPED, {**LARGER, "queries": 3}, "composable"),
    "copies": (
        GROUPED,
        {**LARGER, "embed": 12, "queries": 3},
        {
            "heads": "net2net",
            "queries": "uneven",
            "mlp": "duplicate_noise",
            "embed": "uneven",
            "layers": "zero",
        },
    ),
}


@cache
def planned(method: str) -> GrowthPlan:
    source, sizes, named = CASES[method]
    return decide(source, resized(source, **sizes), named)


def gradient_of(config: ModelConfig) -> Callable[[Any, GrowthMask | None], Any]:
    """Of the loss on one packed batch, by the parameters."""
    model, batch = LanguageModel(config), random_batch(config, 2, 12)

    def loss(params: Any, mask: GrowthMask | None) -> jax.Array:
        sums = model.token_sums(params, batch, mask)
        return sums.total / sums.weight

    return jax.jit(jax.grad(loss))


@cache
def grown_gradient(method: str) -> Callable[[Any, GrowthMask | None], Any]:
    """Of the grown model; one program serves the tests of a method."""
    return gradient_of(planned(method).target)


@pytest.mark.parametrize("method", CASES)
def test_gradients_pull_back_through_the_growth(method: str) -> None:
    """Loss(p) is grown loss(A p), so its gradient is A transposed of the grown model's, means and copies included."""
    with jax.enable_x64(True):
        plan = planned(method)
        params = drawn_params(plan.source)
        grown, back = jax.vjp(jax.jit(lambda params: plan.params(params, KEY)), params)
        (found,) = back(grown_gradient(method)(grown, plan.mask(0.0)))
        expected = gradient_of(plan.source)(params, None)

        def close(a: jax.Array, b: jax.Array) -> None:
            assert jnp.max(jnp.abs(b)) > 0
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * float(jnp.max(jnp.abs(b))))

        jax.tree.map(close, found, expected)


def trainable(plan: GrowthPlan) -> Any:
    """The new entries; of a table that is not the readout too, those of tokens that occur."""
    new = is_new(plan)
    if plan.source.tied_readout:
        return new
    seen = np.zeros(plan.target.vocab_size, bool)
    seen[np.unique(random_batch(plan.target, 2, 12)["decoder_input_tokens"])] = True
    table = new["token_embedding"]["embedding"] & seen[:, None]
    assert np.any(table)
    return {**new, "token_embedding": {"embedding": table}}


@pytest.mark.parametrize("method", CASES)
def test_every_new_entry_trains_after_two_updates(method: str) -> None:
    """No new entry is dead: not one number of the third gradient is 0, the mask being at 0, 1/4 and 1/2."""
    with jax.enable_x64(True):
        plan = planned(method)
        params = jax.jit(plan.params)(drawn_params(plan.source), KEY)
        multipliers = plan.multipliers(optimizer.width_multipliers(plan.source))
        tx = optimizer.adamw(plan.target, 1e-3, multipliers=multipliers)
        state = tx.init(params)
        update = jax.jit(tx.update)
        shares = []
        for value in (0.0, 0.25, 0.5):
            gradient = grown_gradient(method)(params, plan.mask(value))
            # Of the new entries of each parameter, how many have a gradient.
            shares.append(
                jax.tree.map(lambda grad, new: np.mean(np.asarray(grad)[new] != 0), gradient, trainable(plan))
            )
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        first, _, third = (np.asarray(jax.tree.leaves(share)) for share in shares)
        # At the start what reads nothing new, or is read by nothing, has none: growth is hidden, by mask or zeros.
        if method != "copies":
            assert np.all(first == 0) if method == "msg" else np.any(first == 0)
        np.testing.assert_array_equal(third, 1.0)


def test_both_sides_silent_would_be_dead() -> None:
    """The control: new FFN units whose two matrices are both zero have no gradient in either, and never will."""
    with jax.enable_x64(True):
        plan = planned("lemon")
        params = jax.jit(plan.params)(drawn_params(plan.source), KEY)
        old, mlp = plan.source.d_ff, params["layers"]["mlp"]
        assert not np.any(mlp["wo_kernel"][:, old:])
        silent = {**mlp, "wi_kernel": mlp["wi_kernel"].at[..., old:].set(0)}
        found = grown_gradient("lemon")({**params, "layers": {**params["layers"], "mlp": silent}}, None)
        found = found["layers"]["mlp"]
        assert not np.any(found["wi_kernel"][..., old:]) and not np.any(found["wo_kernel"][:, old:])
