"""Laws of plans: growing and slicing back is nothing, axes commute, two growths are one."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from flm_jax import ModelConfig, grow
from flm_jax.aged_adam import AgedAdamState
from flm_jax.grow.planning import GrowthPlan
from flm_jax.training.state import TrainState
from tests.grow.growths import assert_equal, drawn_params, grown_config, is_new, old_entries, over_rows
from tests.models import small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = small_config(vocab_size=16, d_model=16, num_heads=2, head_dim=2, d_ff=6)
SIZES = {"d_model": 32, "num_heads": 3, "d_ff": 9, "num_layers": 3}
# Again as large: d_model by powers of two, so that the folds are exact.
LARGER = {"d_model": 64, "num_heads": 5, "d_ff": 10, "num_layers": 7}


def grown(plan: GrowthPlan, params: Any, seed: int = 1) -> Any:
    return jax.jit(plan.params)(params, jax.random.key(seed, impl="rbg"))


@pytest.mark.parametrize("method", ["msg", "lemon"])
def test_slicing_back_gives_the_old_entries_times_their_weight(method: str) -> None:
    """Bitwise; all but the norms have the weight 1."""
    params = drawn_params(SOURCE)
    plan = grow.plan(SOURCE, grown_config(SOURCE, **{**SIZES, "d_model": 24}), method)
    expected = over_rows(lambda row, old: np.asarray(old) * np.float32(plan.weight(row)), SOURCE, params)
    assert_equal(old_entries(plan, grown(plan, params)), expected)
    weighted = over_rows(lambda row: plan.weight(row) != 1 and row.role.value, SOURCE)
    gains = {"norm_gain"} if method == "lemon" else set()
    assert set(jax.tree.leaves(weighted)) == {False, "readout_gain", "readout_bias"} | gains


@pytest.mark.parametrize(("method", "d_model"), [("msg", 32), ("lemon", 64)])
def test_slicing_back_is_the_identity(method: str, d_model: int) -> None:
    """Where the weights are powers of two, LEMON's root of d / D included, dividing them out is exact."""
    params = drawn_params(SOURCE)
    plan = grow.plan(SOURCE, grown_config(SOURCE, **{**SIZES, "d_model": d_model}), method)
    back = old_entries(plan, grown(plan, params))
    assert_equal(over_rows(lambda row, value: value / np.float32(plan.weight(row)), SOURCE, back), params)


def state_of(config: ModelConfig) -> TrainState:
    """With moments of every size, and births of every index at another time."""
    axes = ("vocab", "embed", "heads", "kv", "mlp", "layers")
    births = {axis: np.arange(config.size(axis), dtype=np.int32) for axis in axes}
    adam = AgedAdamState(np.int32(100), drawn_params(config, 1), drawn_params(config, 2), births)
    return TrainState(np.int32(100), drawn_params(config), (adam,))


def grown_through(*plans: GrowthPlan) -> TrainState:
    """The source's state after these growths, one after the other, each with its own key."""

    def all_of_them(state: TrainState) -> TrainState:
        for seed, plan in enumerate(plans):
            state = plan(state, jax.random.key(seed, impl="rbg"))
        return state

    return jax.jit(all_of_them)(state_of(SOURCE))


@pytest.mark.parametrize("method", ["msg", "lemon"])
def test_axes_commute(method: str) -> None:
    """Heads and layers first, or width and FFN: what was there, and all of the optimizer's state, are equal."""
    first, second = {"num_heads": 3, "num_layers": 3}, {"d_model": 32, "d_ff": 9}
    direct = grow.plan(SOURCE, grown_config(SOURCE, **first, **second), method)
    found = [grown_through(direct)]
    for one, other in ((first, second), (second, first)):
        a = grow.plan(SOURCE, grown_config(SOURCE, **one), method)
        b = grow.plan(a.target, grown_config(a.target, **other), method)
        assert b.target == direct.target
        found.append(grown_through(a, b))
    for state in found[1:]:
        assert_equal(old_entries(direct, state.params), old_entries(direct, found[0].params))
        assert_equal(state.opt_state, found[0].opt_state)


@pytest.mark.parametrize("method", ["msg", "gstack"])
def test_two_growths_are_one(method: str) -> None:
    """Outside the entries that are new, whose draws are others; for stacking everywhere."""
    deeper = {"num_layers": 3}, {"num_layers": 7}
    once, again = deeper if method == "gstack" else (SIZES, LARGER)
    first = grow.plan(SOURCE, grown_config(SOURCE, **once), method)
    second = grow.plan(first.target, grown_config(first.target, **again), method)
    direct = grow.plan(SOURCE, second.target, method)
    assert direct.target == second.target
    maps = {axis: earlier.then(second.maps[axis]) for axis, earlier in first.maps.items()}
    composed = dataclasses.replace(direct, maps=maps)
    in_two, in_one = grown_through(first, second), grown_through(composed)
    # New entries are as old either way, because no update was made between the growths.
    assert_equal(in_two.opt_state, in_one.opt_state)
    if method == "gstack":
        assert_equal(in_two.params, in_one.params)
    else:
        assert_equal(old_entries(composed, in_two.params), old_entries(composed, in_one.params))
        assert_equal(
            old_entries(composed, in_one.params), old_entries(first, old_entries(second, in_two.params))
        )


def test_draws_depend_on_the_key_and_the_name_only() -> None:
    """The same key gives the same weights, another one others, and no two parameters have the same."""
    plan = grow.plan(SOURCE, grown_config(SOURCE, **SIZES), "msg")
    params = drawn_params(SOURCE)
    one, again, other = (grown(plan, params, seed) for seed in (1, 1, 2))
    assert_equal(one, again)
    new = is_new(plan)
    for name in ("query_kernel", "key_kernel"):
        where = new["layers"]["attention"][name]
        a, b = (np.asarray(tree["layers"]["attention"][name])[where] for tree in (one, other))
        assert not np.any(a == b)
    query, key = (one["layers"]["attention"][f"{name}_kernel"] for name in ("query", "key"))
    assert not np.any((query == key)[new["layers"]["attention"]["query_kernel"]])


def test_new_weights_have_the_initialisation_of_the_grown_model() -> None:
    """Standard deviations of the target's width and depth, gains of 1."""
    source = small_config(d_model=64, num_heads=4, d_ff=64)
    plan = grow.plan(source, dataclasses.replace(source, d_model=128, d_ff=256, num_layers=4), "msg")
    params, new = grown(plan, drawn_params(source)), is_new(plan)
    for name in ("wi_kernel", "wo_kernel"):
        row = over_rows(lambda row: row, plan.target)["layers"]["mlp"][name]
        values = np.asarray(params["layers"]["mlp"][name])[new["layers"]["mlp"][name]]
        assert values.std() == pytest.approx(row.init_std(plan.target), rel=0.03)
    norm = np.asarray(params["layers"]["mlp_norm"]["scale"])[new["layers"]["mlp_norm"]["scale"]]
    assert np.all(norm == 1)
    final = np.asarray(params["final_norm"]["scale"])[new["final_norm"]["scale"]]
    assert np.all(final == 2)  # a fresh gain with the fold of D / d, which every entry needs after the ramp
