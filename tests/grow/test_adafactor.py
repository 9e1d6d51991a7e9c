"""Adafactor's second moments, kept as means over two axes: what growth makes of them, worked out by hand.

A table of 2 tokens and width 3 with means r = (1, 3) over the width and c = (1, 2, 3) over the tokens stands for the
moments r_i c_j / mean(r): (1/2, 1, 3/2) and (3/2, 3, 9/2).
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.grow import GrowthError, MomentsWarning
from flm_jax.grow.planning import GrowthPlan, decide
from tests.grow.growths import drawn_params, resized
from tests.models import small_config

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::flm_jax.grow.MomentsWarning"),
]

SOURCE = small_config(vocab_size=2, d_model=3, num_heads=1, head_dim=2, d_ff=2, num_layers=1, use_bias=False)
TX = optax.scale_by_factored_rms(min_dim_size_to_factor=2)


def with_table(state: optax.FactoredState, **parts: list[Any]) -> optax.FactoredState:
    def put(tree: Any, value: list[Any]) -> Any:
        return {**tree, "token_embedding": {"embedding": jnp.asarray(value, jnp.float32)}}

    return state._replace(**{name: put(getattr(state, name), value) for name, value in parts.items()})


def started(tx: optax.GradientTransformation = TX) -> optax.FactoredState:
    return tx.init(drawn_params(SOURCE))._replace(count=jnp.int32(7))


FACTORED = with_table(started(), v_row=[1, 3], v_col=[1, 2, 3])
WHOLE = [[1 / 2, 1, 3 / 2], [3 / 2, 3, 9 / 2]]


def of_table(plan: GrowthPlan, state: optax.FactoredState, **how: Any) -> list[np.ndarray]:
    """The grown table's means over its largest and second largest axis, and its moments where it has them."""
    found = plan.opt_state(state, **how)
    return [np.asarray(tree["token_embedding"]["embedding"]) for tree in (found.v_row, found.v_col, found.v)]


def check(found: list[np.ndarray], *expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def grown(**named: tuple[int, str]) -> GrowthPlan:
    sizes = {axis: size for axis, (size, _) in named.items()}
    return decide(SOURCE, resized(SOURCE, **sizes), {axis: name for axis, (_, name) in named.items()})


def test_zeros_join_the_means() -> None:
    """Over twice the width, half of it 0, the mean halves; a new column's own mean is 0."""
    check(of_table(grown(embed=(6, "mask")), FACTORED), [1 / 2, 3 / 2], [1, 2, 3, 0, 0, 0], [0])


def test_copies_have_a_quarter_of_the_squares() -> None:
    """Each copy has half of the gradient, so every mean is a quarter of the old."""
    expected = [1 / 4, 3 / 4], [1 / 4, 2 / 4, 3 / 4] * 2, [0]
    check(of_table(grown(embed=(6, "duplicate")), FACTORED), *expected)


def test_the_axes_may_change_places() -> None:
    """With 8 tokens the tokens are the largest axis: their means are over the other."""
    check(of_table(grown(vocab=(8, "mean")), FACTORED), [1 / 4, 2 / 4, 3 / 4], [1, 3] + 6 * [0], [0])


def test_what_the_target_factors_is_learnt_from_its_state() -> None:
    """From a least size of 4 on the source's table was whole and the target's is not; else it would stay whole."""
    tx = optax.scale_by_factored_rms(min_dim_size_to_factor=4)
    state = with_table(started(tx), v=WHOLE)
    plan = grown(vocab=(8, "mean"), embed=(6, "duplicate"))
    like = jax.eval_shape(tx.init, drawn_params(plan.target))
    quarter = np.asarray(WHOLE + 6 * [[0, 0, 0]]) / 4
    both = np.concatenate([quarter, quarter], axis=1)
    check(of_table(plan, state, like=like), both.mean(axis=0), both.mean(axis=1), [0])
    check(of_table(plan, state), [0], [0], both)


def test_policies() -> None:
    plan = grown(embed=(6, "duplicate"))
    check(of_table(plan, FACTORED, policy="reset"), [0, 0], 6 * [0], [0])
    assert int(plan.opt_state(FACTORED, "reset").count) == 0
    assert int(plan.opt_state(FACTORED).count) == 7
    for policy in ("age", "asymmetric"):
        with pytest.raises(GrowthError, match="FactoredState has one count for all"):
            plan.opt_state(FACTORED, policy)


def test_new_moments_under_an_old_count_are_warned_of() -> None:
    """Adafactor's decay of 1 - count^-0.8 takes moments of 0 for old ones; copies bring theirs."""
    with pytest.warns(MomentsWarning, match="FactoredState has one count"):
        grown(embed=(6, "mask")).opt_state(FACTORED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grown(embed=(6, "duplicate")).opt_state(FACTORED)


def test_moments_that_are_0_everywhere_stay_0_and_not_a_number_nowhere() -> None:
    found = jax.tree.leaves(grown(embed=(6, "duplicate")).opt_state(started()))
    assert not any(np.any(leaf) for leaf in found[1:])


def test_means_of_another_model_are_refused() -> None:
    wrong = with_table(FACTORED, v_row=[1, 2, 3])
    with pytest.raises(
        GrowthError, match=r"FactoredState of a parameter with axes .*expected moments of \(2, 3\)"
    ):
        grown(embed=(6, "mask")).opt_state(wrong)
