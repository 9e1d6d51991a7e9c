import json

import numpy as np
import pytest

from flm_jax.training.loss_slope import MIN_POINTS, LossSlope

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_straight_line_over_log_tokens_has_its_slope() -> None:
    """The window is the last fifth of the tokens: it is full when it reaches back to where counting began."""
    slope = LossSlope(window=0.2, start=40_000)
    for step in range(1, 200):
        slope.add(1000.0 * step, 9 - 0.3 * np.log(1000 * step))
        assert (slope.slope() is None) == (step < 50)
    assert slope.slope() == pytest.approx(-0.3)
    assert slope.points[0][0] == 160_000 and len(slope.points) == 40


def test_a_few_steps_are_not_enough() -> None:
    slope = LossSlope(window=0.5, start=0)
    for step in range(1, 2 * MIN_POINTS):
        slope.add(float(step), 5.0)
        assert (slope.slope() is None) == (len(slope.points) < MIN_POINTS)


@pytest.mark.parametrize("steps", [1_000, 4_000, 16_000])
def test_noise_is_smoothed_the_more_the_later(steps: int) -> None:
    """Losses of one batch each, off by 0.05 nats: early and late the slope is that of the curve beneath."""
    rng = np.random.default_rng(0)
    slope = LossSlope(window=0.2, start=0)
    for step in range(steps // 2, steps):
        slope.add(512.0 * step, 9 - 0.6 * np.log(512 * step) + 0.05 * rng.standard_normal())
    assert slope.slope() == pytest.approx(-0.6, abs=4 * 0.05 / (0.064 * (0.2 * steps) ** 0.5))
    again = LossSlope(0.2, 0, json.loads(json.dumps(slope.points)))
    assert again.slope() == slope.slope()
