import json

import numpy as np
import pytest

from flm_jax.training.loss_slope import LossSlope


def test_a_straight_line_over_log_tokens_has_its_slope() -> None:
    slope = LossSlope(window=50)
    for step in range(1, 200):
        assert (slope.slope() is None) == (step <= 50)
        slope.add(1000.0 * step, 9 - 0.3 * np.log(1000 * step))
    assert slope.slope() == pytest.approx(-0.3)


def test_noise_is_smoothed_and_a_window_survives_json() -> None:
    rng = np.random.default_rng(0)
    slope = LossSlope(window=400)
    for step in range(1, 1000):
        slope.add(512.0 * step, 9 - 0.3 * np.log(512 * step) + 0.05 * rng.standard_normal())
    assert slope.slope() == pytest.approx(-0.3, abs=0.05)
    again = LossSlope(400, json.loads(json.dumps(slope.points)))
    assert again.slope() == slope.slope()
