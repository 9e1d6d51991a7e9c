"""Growth in mid-run under Adam: what was there does not notice, what is new begins as under a fresh Adam."""

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax import ModelConfig, grow, optimizer
from flm_jax.aged_adam import AgedAdamState, scale_by_aged_adam
from flm_jax.grow.planning import GrowthPlan
from tests.grow.growths import assert_equal, drawn_params, is_new, old_entries, over_rows
from tests.models import small_config

# Standard parametrisation has no readout multiplier, so nothing is folded and old gradients stay what they were.
SOURCE = small_config(vocab_size=16, d_model=6, num_heads=2, head_dim=2, d_ff=5, parametrization="standard")
B1, B2, EPS = 0.9, 0.999, 1e-8  # with b2 = 0.999 a wrong bias correction is largest


def planned(**sizes: Any) -> GrowthPlan:
    return grow.plan(SOURCE, dataclasses.replace(SOURCE, **sizes), "msg")


PLAN = planned(d_model=9, num_heads=3, d_ff=7, num_layers=3)


def gradients(config: ModelConfig, seed: int) -> Any:
    return drawn_params(config, seed=100 + seed)


@cache
def adam(config: ModelConfig) -> optax.GradientTransformation:
    found = scale_by_aged_adam(config, B1, B2, over_rows(lambda row: EPS, config))
    return optax.GradientTransformation(found.init, jax.jit(found.update))


def updated(config: ModelConfig, state: Any, seeds: range) -> tuple[Any, Any]:
    """The last update, and the state after it."""
    updates, update = None, adam(config).update
    for seed in seeds:
        updates, state = update(gradients(config, seed), state)
    return updates, state


def started(count: int = 40) -> AgedAdamState:
    """The source's state after `count` updates."""
    return updated(SOURCE, adam(SOURCE).init(drawn_params(SOURCE)), range(count))[1]


def with_old(gradient: Any, old: Any) -> Any:
    """A gradient of the grown model with `old`, one of the source's, where the old entries stand."""
    pairs = zip(jax.tree.leaves(is_new(PLAN)), jax.tree.leaves(old), strict=True)
    scattered = []
    for value, (new, inner) in zip(jax.tree.leaves(gradient), pairs, strict=True):
        changed = np.array(value)
        changed[~new] = np.ravel(inner)  # the old entries stand in their old order
        scattered.append(changed)
    return jax.tree.unflatten(jax.tree.structure(gradient), scattered)


class Course(NamedTuple):
    """Three updates and the state after each."""

    updates: list[Any]
    states: list[Any]


def course(config: ModelConfig, state: Any, gradients: list[Any]) -> Course:
    update, found = adam(config).update, Course([], [])
    for gradient in gradients:
        updates, state = update(gradient, state)
        found.updates.append(updates)
        found.states.append(state)
    return found


class Courses(NamedTuple):
    """Of the source, the grown model, and the grown model as if all had been there from the start."""

    ungrown: Course
    grown: Course
    unborn: Course


@pytest.fixture(scope="module")
def courses() -> Courses:
    """With equal gradients for what all of them have."""
    old = [gradients(SOURCE, seed) for seed in range(3)]
    new = [with_old(gradients(PLAN.target, seed), gradient) for seed, gradient in enumerate(old)]
    state = started()
    grown = jax.jit(PLAN.opt_state)(state)
    unborn = grown._replace(births=jax.tree.map(jnp.zeros_like, grown.births))
    return Courses(
        course(SOURCE, state, old), course(PLAN.target, grown, new), course(PLAN.target, unborn, new)
    )


def test_old_entries_do_not_notice(courses: Courses) -> None:
    """Bitwise: moments and updates are those of the optimizer that has not grown."""
    for update, grown, unborn in zip(*(found.updates for found in courses), strict=True):
        assert_equal(old_entries(PLAN, grown), update)
        assert_equal(old_entries(PLAN, grown), old_entries(PLAN, unborn))
    for state, grown, _ in zip(*(found.states for found in courses), strict=True):
        assert_equal(old_entries(PLAN, grown.mu), state.mu)
        assert_equal(old_entries(PLAN, grown.nu), state.nu)


def test_births_of_zero_are_optax_adam() -> None:
    ours, theirs = adam(SOURCE), optax.scale_by_adam(B1, B2, EPS)
    state, other = ours.init(drawn_params(SOURCE)), theirs.init(drawn_params(SOURCE))
    update = jax.jit(theirs.update)
    for seed in range(5):
        found, state = ours.update(gradients(SOURCE, seed), state)
        expected, other = update(gradients(SOURCE, seed), other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)
        assert_equal((state.mu, state.nu, state.count), (other.mu, other.nu, other.count))


def test_new_entries_begin_as_under_a_fresh_adam(courses: Courses) -> None:
    fresh = optax.scale_by_adam(B1, B2, EPS)
    fresh_update, state = jax.jit(fresh.update), fresh.init(drawn_params(PLAN.target))
    for seed, update in enumerate(courses.grown.updates):
        # The gradients of the old entries are others here, which does not matter: Adam is elementwise.
        expected, state = fresh_update(gradients(PLAN.target, seed), state)
        np.testing.assert_allclose(of_new(update), of_new(expected), rtol=1e-5, atol=1e-6)
    first = np.abs(of_new(courses.grown.updates[0]))
    assert first.size > 300
    np.testing.assert_allclose(first, 1, rtol=1e-3)  # whatever the gradient, Adam's first update is its sign
    # Without births the correction is that of the 41st update, which is far from 1.
    one_count_for_all = (1 - B1) / (1 - B1**41) / np.sqrt((1 - B2) / (1 - B2**41))
    np.testing.assert_allclose(np.abs(of_new(courses.unborn.updates[0])), one_count_for_all, rtol=1e-3)
    assert abs(one_count_for_all - 1) > 0.3


def of_new(tree: Any) -> np.ndarray:
    """All entries that `PLAN` has added."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(is_new(PLAN)), strict=True)
    return np.concatenate([np.asarray(value)[new] for value, new in pairs])


def test_two_growths_give_every_entry_the_age_of_its_youngest_index() -> None:
    wider = planned(d_model=9)
    deeper = grow.plan(wider.target, dataclasses.replace(wider.target, d_ff=7), "msg")
    state = wider.opt_state(started(4))
    state = deeper.opt_state(updated(wider.target, state, range(3))[1])
    np.testing.assert_array_equal(state.births["embed"], [0] * 6 + [4] * 3)
    np.testing.assert_array_equal(state.births["mlp"], [0] * 5 + [7] * 2)
    assert not np.any(state.births["layers"]) and not np.any(state.births["heads"])
    update, after = updated(deeper.target, state, range(7, 9))
    # Count is 9 now; rows are `embed`, columns `mlp`.
    age = np.full((9, 7), 9)
    age[6:], age[:, 5:] = 5, 2
    m, v = (np.asarray(moment["layers"]["mlp"]["wi_kernel"], np.float64) for moment in (after.mu, after.nu))
    expected = (m / (1 - B1**age)) / (np.sqrt(v / (1 - B2**age)) + EPS)
    np.testing.assert_allclose(update["layers"]["mlp"]["wi_kernel"], expected, rtol=2e-5)


def test_stacked_layers_take_the_births_and_moments_of_their_source() -> None:
    deeper = planned(num_layers=3)  # spread: the layer between is new
    state = deeper.opt_state(started(4))
    np.testing.assert_array_equal(state.births["layers"], [0, 4, 0])
    stacked = grow.plan(deeper.target, dataclasses.replace(deeper.target, num_layers=7), "gstack")
    found = stacked.opt_state(state)
    np.testing.assert_array_equal(found.births["layers"], [0, 4, 0, 0, 4, 0, 0])
    source = np.arange(7) % 3
    for old, new in ((state.mu, found.mu), (state.nu, found.nu)):
        assert_equal(jax.tree.map(lambda x: np.asarray(x)[source], old["layers"]), new["layers"])


def test_what_is_new_is_warmed_up_again() -> None:
    """Weight decay too; what is old keeps every bit. The factors are the documented ones."""
    plan, params = PLAN, drawn_params(PLAN.target)
    plain, warmed = (
        optimizer.adamw(plan.target, 1e-3, weight_decay=0.5, rewarm_steps=steps, rewarm_peak=1.5)
        for steps in (0, 2)
    )
    state = optimizer.adamw(SOURCE, 1e-3).init(drawn_params(SOURCE))
    state = plan.opt_state((state[0], started(), *state[2:]))
    other, update, rewarming = state, jax.jit(plain.update), jax.jit(warmed.update)
    for seed, factor in enumerate((0.75, 1.5, 1.25, 1.0, 1.0)):
        gradient = gradients(plan.target, seed)
        usual, state = update(gradient, state, params)
        found, other = rewarming(gradient, other, params)
        assert_equal(old_entries(plan, found), old_entries(plan, usual))
        np.testing.assert_allclose(of_new(found), factor * of_new(usual), rtol=1e-5, atol=1e-9)
        assert np.all(of_new(usual) != 0)
        assert_equal((found_state := other[1]).mu, state[1].mu)
        assert int(found_state.count) == 41 + seed


def test_nothing_is_warmed_up_in_a_run_that_has_not_grown() -> None:
    params, gradient = drawn_params(SOURCE), gradients(SOURCE, 0)
    plain, warmed = (optimizer.adamw(SOURCE, 1e-3, rewarm_steps=steps) for steps in (0, 5))
    assert_equal(*(jax.jit(tx.update)(gradient, tx.init(params), params)[0] for tx in (plain, warmed)))


def test_reset_begins_adam_anew() -> None:
    fresh = adam(PLAN.target).init(drawn_params(PLAN.target))
    assert_equal(PLAN.opt_state(started(4), "reset"), fresh)
