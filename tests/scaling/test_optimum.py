"""Where the loss is lowest, and how sure that is."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.scaling import sweep_figure, sweep_report
from flm_jax.scaling.optimum import best_point, lowest, optima
from flm_jax.scaling.trials import Result, Trial, Variation, at_random, grid


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
    """Losses 3.1, 3.0, 3.12 in every seed, which shift all of them by 0, 0.2 and 0.4: the shifts say nothing."""
    losses = {"1e-3": 3.1, "2e-3": 3.0, "4e-3": 3.12}
    found = [result(loss + 0.2 * seed, seed, LR=rate) for rate, loss in losses.items() for seed in (0, 1, 2)]
    (one,) = optima(found)
    assert (one.name, one.best, one.edge, one.width, one.compared) == ("LR", "2e-3", False, 64, 3)
    assert one.loss == pytest.approx(3.2) and one.margin == pytest.approx(0.1)
    assert one.error == pytest.approx(0, abs=1e-12) and one.sure == "interior"
    assert one.interpolated == pytest.approx(lowest(losses))
    assert one.of_seeds == pytest.approx((one.interpolated,) * 3)
    assert optima(found[:6])[0].sure == "at the edge: try further"


def test_a_margin_within_the_seeds_error_and_a_seed_at_the_edge() -> None:
    """Paired differences 0.02, -0.02 and 0.03: 0.01 on average, standard error 0.0153."""
    noise = {0: 0.02, 1: -0.02, 2: 0.03}
    found = [result(3.5, seed, LR=rate) for seed in noise for rate in ("1e-3", "8e-3")]
    found += [result(3.0, seed, LR="2e-3") for seed in noise]
    found += [result(3.0 + more, seed, LR="4e-3") for seed, more in noise.items()]
    (one,) = optima(found)
    assert one.margin == pytest.approx(0.01) and one.error == pytest.approx(0.01528, rel=1e-3)
    assert one.sure == "interior, the next value is as good within the seeds' error"
    falling = [result(2.9 - float(rate), 3, LR=rate) for rate in ("1e-3", "2e-3", "4e-3", "8e-3")]
    assert optima(found + falling)[0].of_seeds[3] is None
    assert "1 of 4 at the edge)" in sweep_report.table(found + falling)


def test_points_at_random_are_not_called_an_edge() -> None:
    """A bowl around (1e-3, 0.02): the best of 40 points has no neighbours on its lines, and says so."""
    variations = [Variation.parse("LR=1e-4..1e-2"), Variation.parse("std=0.002..0.2")]
    centre = {"LR": 1e-3, "std": 0.02}
    found = []
    for trial in at_random([64], variations, range(1), 40):
        height = sum(math.log(float(value) / centre[name]) ** 2 for name, value in trial.bindings)
        found.append(dataclasses.replace(result(height), trial=trial))
    for one in optima(found):
        assert not one.edge and one.compared == 1 and "try a grid around it" in one.sure
        assert 0.2 < float(one.best) / centre[one.name] < 5


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
    assert best_point(found) == (("LR", "1e-3"),)
    assert best_point([result(math.nan, LR="1"), result(9.0, LR="2")]) == (("LR", "2"),)
    lost = [result(math.nan, LR="1"), result(math.inf, LR="2")]
    assert best_point(lost) is None and optima(lost) == []
    text = sweep_report.table(lost)
    assert text.count("diverged") == 3 and "d_model 64: every point diverged: lower the learning rate" in text
    assert "best" not in text and "nan" not in text


def test_points_for_the_fit() -> None:
    found = [
        result(3 + float(rate), seed, width=width, LR=rate)
        for width in (64, 128)
        for rate in ("1e-3", "2e-3")
        for seed in (0, 1)
    ]
    rows = [f"{width},1e-05,3.001,{seed}" for width in (64, 128) for seed in (0, 1)]
    assert sweep_report.to_csv(found).splitlines() == ["width,params_millions,loss,seed", *rows]


@pytest.mark.parametrize("random", [False, True])
def test_figure(tmp_path: Path, random: bool) -> None:
    """Three variations, on a grid or at random: three curves and three maps a width; one of them has names."""
    texts = ("a=1,2,3", "b=1e-3..1e-1" if random else "b=1e-3,1e-2", "c=@x,@y")
    variations = [Variation.parse(text) for text in texts]
    wanted = at_random([64], variations, [0], 9) if random else grid([64], variations, [0])
    found = [dataclasses.replace(result(float(n)), trial=trial) for n, trial in enumerate(wanted)]
    sweep_figure.draw(found, str(tmp_path / "new" / "x.png"))
    assert (tmp_path / "new" / "x.png").read_bytes().startswith(b"\x89PNG")


def test_table_names_the_best_and_how_sure_it_is() -> None:
    found = [result(3 + abs(k) / 10, seed, LR=f"{2e-3 * 2**k:g}") for k in (-1, 0, 1) for seed in (0, 1)]
    text = sweep_report.table(found)
    assert text.count("best\n") == 1
    assert "d_model 64: LR best at 0.002, interpolated 0.002 (0.002 to 0.002 over seeds)" in text
    assert np.isclose(sweep_report.to_json(found)["optima"][0]["interpolated"], 2e-3)
