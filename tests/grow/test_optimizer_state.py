from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax import grow, optimizer
from flm_jax.aged_adam import AgedAdamState
from flm_jax.grow.errors import GrowthError, UnknownStateError
from flm_jax.training.step import skipping_non_finite
from tests.grow.growths import assert_equal, drawn_params, grown_config, is_new, old_entries, over_rows
from tests.models import small_config

SOURCE = small_config()
# Half as wide again, so that under µP the final norm's gradients fall to 2/3.
PLAN = grow.plan(SOURCE, grown_config(SOURCE), "msg")


def moments(seed: int) -> Any:
    return jax.tree.map(jnp.square, drawn_params(SOURCE, seed))


def check_moments(mu: Any, nu: Any) -> None:
    """Old entries by the power of the gradient's weight, new ones zero."""
    for found, seed, degree in ((mu, 1, 1), (nu, 2, 2)):
        expected = over_rows(
            lambda row, old: np.asarray(old * np.float32(PLAN.gradient_weight(row) ** degree)),  # noqa: B023
            SOURCE,
            moments(seed),
        )
        assert_equal(old_entries(PLAN, found), expected)
        added = zip(jax.tree.leaves(found), jax.tree.leaves(is_new(PLAN)), strict=True)
        assert all(not np.any(np.asarray(value)[new]) for value, new in added)


def test_the_folded_norm_is_what_has_another_gradient() -> None:
    weights = over_rows(PLAN.gradient_weight, PLAN.target)
    fold = PLAN.target.d_model / SOURCE.d_model
    assert weights["final_norm"] == {"scale": pytest.approx(1 / fold), "bias": pytest.approx(1 / fold)}
    assert set(jax.tree.leaves((weights["layers"], weights["token_embedding"]))) == {1.0}


@pytest.mark.parametrize("wrapped", [False, True])
def test_our_adamw_grows_wherever_it_stands_in_a_chain(wrapped: bool) -> None:
    """Also inside the wrapper that skips steps whose gradients are not finite."""
    plain = optimizer.adamw(SOURCE, optimizer.warmup_cosine(1e-3, 100))
    tx = skipping_non_finite(plain) if wrapped else plain
    state = tx.init(drawn_params(SOURCE))

    def set_moments(part: Any) -> Any:
        if not isinstance(part, AgedAdamState):
            return part
        return part._replace(count=jnp.int32(7), mu=moments(1), nu=moments(2))

    def is_adam(part: Any) -> bool:
        return isinstance(part, AgedAdamState)

    state = jax.tree.map(set_moments, state, is_leaf=is_adam)
    found = jax.jit(PLAN.opt_state)(state)
    grown_tx = optimizer.adamw(PLAN.target, optimizer.warmup_cosine(1e-3, 100))
    grown_tx = skipping_non_finite(grown_tx) if wrapped else grown_tx
    fresh = jax.eval_shape(grown_tx.init, drawn_params(PLAN.target))
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), found, fresh)
    (adam,) = [part for part in jax.tree.leaves(found, is_leaf=is_adam) if is_adam(part)]
    assert int(adam.count) == 7
    check_moments(adam.mu, adam.nu)


def test_optax_adam_grows_too() -> None:
    found = PLAN.opt_state((optax.ScaleByAdamState(jnp.int32(7), moments(1), moments(2)), optax.EmptyState()))
    assert int(found[0].count) == 7
    check_moments(found[0].mu, found[0].nu)


def test_counters_are_kept_and_reset_is_of_adam_only() -> None:
    schedule = optax.ScaleByScheduleState(jnp.int32(7))
    state = (optax.ScaleByAdamState(jnp.int32(7), moments(1), moments(2)), schedule)
    adam, kept = PLAN.opt_state(state, "reset")
    assert int(kept.count) == 7 and int(adam.count) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((adam.mu, adam.nu)))
    assert jax.tree.map(jnp.shape, adam.mu) == jax.tree.map(jnp.shape, drawn_params(PLAN.target))


class Momentum(NamedTuple):
    """Of an optimizer that the library has never seen."""

    velocity: Any


def test_a_state_that_is_not_known_is_refused() -> None:
    for state in (Momentum(moments(1)), (optax.EmptyState(), Momentum(moments(1)))):
        with pytest.raises(UnknownStateError, match=r"type Momentum .*bind Trainer.optimizer"):
            PLAN.opt_state(state)
    trace = optax.sgd(0.1, momentum=0.9).init(drawn_params(SOURCE))
    with pytest.raises(UnknownStateError, match="type TraceState"):
        PLAN.opt_state(trace)


@pytest.mark.parametrize("d_model", [12, 48])
def test_the_state_of_another_model_is_refused(d_model: int) -> None:
    """Smaller or larger: it must not come back padded with something."""
    source = small_config()
    state = optimizer.adamw(source, 1e-3).init(drawn_params(small_config(d_model=d_model)))
    with pytest.raises(GrowthError, match=r"AgedAdamState.mu.*the plan's model has shape .* found"):
        grow.plan(source, grown_config(source), "msg").opt_state(state)
    other = optimizer.adamw(small_config(d_model=d_model), 1e-3).init(drawn_params(source))
    with pytest.raises(GrowthError, match=r"births\['embed'\]: the plan's source has 24 entries"):
        grow.plan(source, grown_config(source), "msg").opt_state(other)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(GrowthError, match=r"'keep'.*expected one of carry, reset.*Stage.optimizer_state"):
        PLAN.opt_state(optax.EmptyState(), "keep")
