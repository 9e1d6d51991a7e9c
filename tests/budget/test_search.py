"""The search against closed forms and against trying everything, on laws whose best schedule is known."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from flm_jax.budget import search
from flm_jax.budget.problem import AllocationError, Problem, Sizes, allocate, final_loss
from flm_jax.scaling.laws import LossLaw
from flm_jax.scaling.published_laws import LAWS

LAW = LAWS["besiroglu2024"]
laws_ = st.builds(
    LossLaw,
    E=st.floats(0.5, 2.5),
    A=st.floats(100, 900),
    alpha=st.floats(0.25, 0.45),
    B=st.floats(200, 3000),
    beta=st.floats(0.25, 0.45),
)


def geometric(low: float, high: float, count: int) -> Sizes:
    """Sizes with 6 N FLOPs a token."""
    params = np.geomspace(low, high, count)
    return Sizes.of(params, 6 * params)


def worth(law: LossLaw, size: float, loss: float) -> float:
    """Tokens from scratch to this loss, by solving the law for D."""
    return (law.B / (loss - law.E - law.A / size**law.alpha)) ** (1 / law.beta)


def run(law: LossLaw, params: tuple[float, ...], tokens: tuple[float, ...], carryover: float) -> float:
    """A run followed stage by stage, independent of `final_loss`."""
    loss = law.E + law.A / params[0] ** law.alpha + law.B / tokens[0] ** law.beta
    for size, more in zip(params[1:], tokens[1:], strict=True):
        data = carryover * worth(law, size, loss) + more
        loss = law.E + law.A / size**law.alpha + law.B / data**law.beta
    return loss


def everything(problem: Problem, sizes: Sizes, stages: int, grid: int) -> float:
    """The lowest loss of all sequences of sizes with all shares of tokens on a grid."""
    parts = np.linspace(problem.min_share, 1, grid)
    best = np.inf
    for places in itertools.combinations(range(len(sizes.params)), stages):
        flops, params = sizes.flops[list(places)], tuple(sizes.params[list(places)])
        for shares in itertools.product(parts, repeat=stages - 1):
            last = 1 - sum(shares)
            if last < problem.min_share:
                continue
            split = np.array([*shares, last])
            total = min(problem.flops / (flops @ split), problem.max_tokens)
            best = min(best, run(problem.law, params, tuple(split * total), problem.carryover))
    return best


@settings(deadline=None, max_examples=30)
@given(law=laws_, flops=st.floats(1e18, 1e25))
def test_one_stage_finds_the_compute_optimal_size(law: LossLaw, flops: float) -> None:
    """Hoffmann et al., equation 4: N = G (C / 6)^a, with G = (alpha A / beta B)^(1 / (alpha + beta))."""
    gain = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    best = gain * (flops / 6) ** (law.beta / (law.alpha + law.beta))
    found = search.from_scratch(Problem(law, flops), sizes := geometric(best / 50, best * 30, 2000))
    assert sizes.params[found.places[0]] == pytest.approx(best, rel=0.01)
    assert found.tokens[0] == pytest.approx(flops / 6 / best, rel=0.01)
    expected = law.E + law.A / best**law.alpha + law.B / (flops / 6 / best) ** law.beta
    assert found.loss == pytest.approx(expected, rel=1e-4)


@settings(deadline=None, max_examples=15)
@given(law=laws_, carryover=st.floats(0.3, 1), min_share=st.floats(0.02, 0.3), limited=st.booleans())
def test_two_stages_are_the_best_of_all(
    law: LossLaw, carryover: float, min_share: float, limited: bool
) -> None:
    flops = 1e22
    best = search.from_scratch(Problem(law, flops), geometric(1e7, 1e13, 500))
    limit = best.tokens[0] * 0.6 if limited else float("inf")
    problem = Problem(law, flops, carryover, min_share, limit)
    middle = np.geomspace(1e7, 1e13, 500)[best.places[0]]
    sizes = geometric(middle / 20, middle * 3, 9)
    found = search.grown(problem, sizes, 2)
    assert found is not None
    tried = everything(problem, sizes, 2, grid=300)
    # No worse than everything tried, and as good as the grid lets it be.
    assert tried - 1e-3 * (tried - law.E) <= found.loss <= tried + 1e-6 * (tried - law.E)
    keeps_to_the_limits(problem, sizes, found)


@pytest.mark.parametrize(
    ("carryover", "limit"), [(1.0, np.inf), (0.8, np.inf), (0.5, np.inf), (1.0, 2e11), (0.8, 2e11)]
)
def test_three_stages_are_the_best_of_all(carryover: float, limit: float) -> None:
    problem = Problem(LAW, 4.8e22, carryover, 0.05, limit)
    sizes = geometric(1e9, 6e10, 7)
    found = search.grown(problem, sizes, 3)
    assert found is not None
    tried = everything(problem, sizes, 3, grid=60)
    assert tried - 2e-3 * (tried - LAW.E) <= found.loss <= tried + 1e-6 * (tried - LAW.E)
    keeps_to_the_limits(problem, sizes, found)


def keeps_to_the_limits(problem: Problem, sizes: Sizes, found: search.Schedule) -> None:
    tokens = np.array(found.tokens)
    spent = tokens @ sizes.flops[list(found.places)]
    assert spent <= problem.flops * (1 + 1e-9) and tokens.sum() <= problem.max_tokens * (1 + 1e-9)
    assert max(spent / problem.flops, tokens.sum() / problem.max_tokens) == pytest.approx(1)
    assert (tokens / tokens.sum()).min() >= problem.min_share - 1e-6
    params = tuple(sizes.params[list(found.places)])
    assert found.loss == pytest.approx(run(problem.law, params, found.tokens, problem.carryover), rel=1e-9)


def test_the_switch_is_where_both_models_learn_alike() -> None:
    """At the best switch the cost of the next bit of loss is the same before and after: by finite differences."""
    sizes = geometric(1e9, 4e9, 2)
    loss = search.switch_loss(LAW, sizes, 1.0)[0, 1]
    price = [
        flops * (worth(LAW, size, loss - 1e-6) - worth(LAW, size, loss))
        for size, flops in zip(sizes.params, sizes.flops, strict=True)
    ]
    assert price[0] == pytest.approx(price[1], rel=1e-4)
    assert np.isinf(
        search.switch_loss(LAW, sizes, 0.25)[0, 1]
    )  # a token of the large model costs four times as much


def test_the_switch_does_not_depend_on_the_budget() -> None:
    sizes = geometric(5e9, 2e10, 2)
    losses = []
    for flops in (2e22, 8e22):
        tokens, _ = allocate(Problem(LAW, flops, min_share=1e-4), sizes.params, sizes.flops)
        losses.append(float(LAW.loss(sizes.params[0], tokens[0])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(search.switch_loss(LAW, sizes, 1.0)[0, 1], rel=1e-4)


def test_growing_that_keeps_everything_and_growing_that_keeps_little() -> None:
    """From no less than a third of the best size: a tiny first model costs nothing, whatever growing keeps of it."""
    sizes, flops = geometric(7e9, 1e11, 40), 4.8e22
    scratch = search.from_scratch(Problem(LAW, flops), sizes)
    whole = search.grown(Problem(LAW, flops, 1.0), sizes, 2)
    little = search.grown(Problem(LAW, flops, 0.3, 0.2), sizes, 2)
    assert whole is not None and little is not None
    assert whole.loss < scratch.loss < little.loss


def test_more_stages_are_no_worse_where_growing_keeps_everything() -> None:
    sizes, problem = geometric(1e9, 1e11, 20), Problem(LAW, 4.8e22, 1.0, 0.01)
    losses = [found.loss for stages in (2, 3, 4) if (found := search.grown(problem, sizes, stages))]
    assert losses == sorted(losses, reverse=True) and len(losses) == 3


def test_a_first_stage_cannot_be_nothing() -> None:
    """Without a least share growth that does not pay would be planned with no tokens, at no cost."""
    problem = Problem(LAW, 4.8e22, 0.5, 1e-6)
    sizes = geometric(1e10, 1.5e10, 2)
    tokens, loss = allocate(problem, sizes.params, sizes.flops)
    assert tokens[0] < 1e-3 * tokens[1]
    held, worse = allocate(Problem(LAW, 4.8e22, 0.5, 0.05), sizes.params, sizes.flops)
    assert held[0] >= 0.0499 * held.sum() and worse > loss


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_a_search_that_does_not_converge_begins_elsewhere(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two other points, to the same tokens; then it says so."""
    sizes, asked = geometric(1e9, 4e10, 3), Problem(LAW, 4.8e22)
    expected, loss = allocate(asked, sizes.params, sizes.flops)
    starts: list[tuple[float, ...]] = []
    minimize = optimize.minimize

    def failing(function: Any, start: np.ndarray, **settings: Any) -> optimize.OptimizeResult:
        starts.append(tuple(start))
        found = minimize(function, start, **settings)
        return optimize.OptimizeResult(found, success=len(starts) > failures, message="a test")

    monkeypatch.setattr(optimize, "minimize", failing)
    if failures == 3:
        with pytest.raises(AllocationError, match=r"1e\+09, 6\.325e\+09, 4e\+10 parameters: a test"):
            allocate(asked, sizes.params, sizes.flops)
    else:
        tokens, again = allocate(asked, sizes.params, sizes.flops)
        assert tokens == pytest.approx(expected, rel=1e-3) and again == pytest.approx(loss, rel=1e-9)
    assert len(set(starts)) == len(starts) == min(failures + 1, 3)


def test_cost_from_scratch_is_the_inverse() -> None:
    sizes, problem = geometric(1e9, 1e11, 3000), Problem(LAW, 4.8e22)
    loss = search.from_scratch(problem, sizes).loss
    assert search.cost_from_scratch(problem, sizes, loss) == pytest.approx(problem.flops, rel=1e-4)
    assert search.cost_from_scratch(problem, sizes, LAW.E) == float("inf")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((LAW, 1e22, 0.0), "--carryover"),
        ((LAW, 1e22, 1.0, 0.0), "--min_share"),
        ((LAW, 1e22, 1.0, 0.05, -1.0), "must be positive"),
    ],
)
def test_problems_that_are_none(arguments: tuple, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Problem(*arguments)


def test_sizes_that_are_none() -> None:
    with pytest.raises(ValueError, match="must rise"):
        Sizes.of([1.0, 2.0], [3.0, 3.0])
    with pytest.raises(ValueError, match="vectors"):
        Sizes.of([1.0, 2.0], [3.0])
    with pytest.raises(ValueError, match="more than all"):
        search.grown(Problem(LAW, 1e22, 1.0, 0.6), geometric(1e9, 1e10, 5), 2)
    assert search.grown(Problem(LAW, 1e22), geometric(1e9, 1e10, 2), 3) is None
    assert final_loss(LAW, [1e9], [1e10], 1.0) == pytest.approx(float(LAW.loss(1e9, 1e10)))
