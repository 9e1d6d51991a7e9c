"""Where the loss is lowest, and how sure that is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.scaling import sweep_report
from flm_jax.scaling.optimum import best_point, lowest, optima
from flm_jax.scaling.sweep import Result
from flm_jax.scaling.trials import Trial


def result(loss: float, seed: int = 0, width: int | None = 64, **bindings: str) -> Result:
    return Result(Trial(width, tuple(bindings.items()), seed), 10, 100, loss, {}, loss, 0, [])


@given(st.floats(-6, -1), st.floats(0.01, 2), st.floats(1.5, 4), st.floats(-1, 1))
def test_a_parabola_is_found_again(middle: float, curvature: float, ratio: float, shift: float) -> None:
    """Losses that are a parabola in log value, on any grid around its lowest point."""
    best = math.exp(middle + shift * math.log(ratio) / 2.1)
    grid = [math.exp(middle) * ratio**k for k in range(-3, 4)]
    losses = {repr(value): 3 + curvature * math.log(value / best) ** 2 for value in grid}
    assert lowest(losses) == pytest.approx(best, rel=1e-6)


def test_no_lowest_point_at_an_edge_beside_a_divergence_or_without_numbers() -> None:
    assert lowest({"1e-3": 3.0, "2e-3": 3.1, "4e-3": 3.2}) is None
    assert lowest({"1e-3": 3.1, "2e-3": 3.0, "4e-3": math.inf}) is None
    assert lowest({"@a": 3.1, "@b": 3.0, "@c": 3.1}) is None


def test_optimum_over_seeds() -> None:
    """Mean losses 3.1, 3.0, 3.1 over two seeds that differ by 0.02."""
    losses = {"1e-3": 3.1, "2e-3": 3.0, "4e-3": 3.1}
    found = [result(loss + 0.02 * seed, seed, LR=rate) for rate, loss in losses.items() for seed in (0, 1)]
    (one,) = optima(found)
    assert (one.name, one.best, one.edge, one.width) == ("LR", "2e-3", False, 64)
    assert one.loss == pytest.approx(3.01) and one.margin == pytest.approx(0.1)
    assert one.interpolated == pytest.approx(2e-3) and one.of_seeds == pytest.approx((2e-3, 2e-3))
    assert one.spread == pytest.approx(0.02 / math.sqrt(2)) and one.sure == "interior"
    assert optima(found[:4])[0].sure == "at the edge: try further"


def test_two_variations_each_with_the_other_at_its_best() -> None:
    found = [
        result((math.log(lr / 2e-3)) ** 2 + (math.log(std / 0.02)) ** 2, LR=f"{lr:g}", std=f"{std:g}")
        for lr in (1e-3, 2e-3, 4e-3)
        for std in (0.01, 0.02, 0.04)
    ]
    assert dict(best_point(found)) == {"LR": "0.002", "std": "0.02"}
    assert {one.name: one.best for one in optima(found)} == {"LR": "0.002", "std": "0.02"}
    wide = [result(one.loss + 1, width=128, **dict(one.trial.bindings)) for one in found]
    assert [one.width for one in optima(found + wide)] == [64, 64, 128, 128]


def test_a_point_that_diverged_or_lacks_seeds_is_not_best() -> None:
    found = [result(3.0, seed, LR="1e-3") for seed in (0, 1)] + [result(2.0, 0, LR="2e-3")]
    assert dict(best_point(found)) == {"LR": "1e-3"}
    assert dict(best_point([result(math.nan, LR="1"), result(9.0, LR="2")])) == {"LR": "2"}


def test_table_names_the_best_and_how_sure_it_is() -> None:
    found = [result(3 + abs(k) / 10, seed, LR=f"{2e-3 * 2**k:g}") for k in (-1, 0, 1) for seed in (0, 1)]
    text = sweep_report.table(found)
    assert text.count("best\n") == 1
    assert "d_model 64: LR best at 0.002, interpolated 0.002 (0.002 to 0.002 over seeds)" in text
    assert np.isclose(sweep_report.to_json(found)["optima"][0]["interpolated"], 2e-3)
