"""Which trials a sweep has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.scaling.together import groups
from flm_jax.scaling.trials import Trial, Variation, at_random, grid

RATES = Variation.parse("LEARNING_RATE=1e-3, 2e-3")


def test_grid() -> None:
    found = grid([64, 128], [RATES, Variation("init_std", ("0.01", "0.02", "0.02"))], range(2))
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2  # a value that is given twice is tried once
    assert found[0] == Trial(64, (("LEARNING_RATE", "1e-3"), ("init_std", "0.01")), 0)
    assert found[-1].name == "d_model=128 LEARNING_RATE=2e-3 init_std=0.02 seed=1"


def test_random_points_are_seeded_within_bounds_and_the_first_ones_stay() -> None:
    variations = [Variation.parse("LEARNING_RATE=1e-4..1e-2"), Variation.parse("SCHEDULE=a,b")]
    few, many = (at_random([None], variations, range(1), number) for number in (3, 40))
    assert many[:3] == few and len(many) == 40
    rates = [float(dict(trial.bindings)["LEARNING_RATE"]) for trial in many]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 10 < sum(rate < 1e-3 for rate in rates) < 30  # evenly in the logarithm: a half below the middle
    assert {dict(trial.bindings)["SCHEDULE"] for trial in many} == {"a", "b"}
    assert at_random([None], variations, range(1), 3, seed=1) != few


@pytest.mark.parametrize("text", ["LEARNING_RATE", "=1", "A=", "A=2..1", "A=0..1", "A=x..y", "A=1..inf"])
def test_what_is_no_variation(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected --vary NAME=VALUE,VALUE,... or NAME=LOW..HIGH"):
        Variation.parse(text)


def test_a_grid_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="give --random=POINTS"):
        grid([None], [Variation.parse("A=1..2")], [0])


@given(st.lists(st.sampled_from("abc").map(lambda x: (x,)), max_size=20), st.integers(1, 5))
def test_groups_hold_everything_once_and_are_alike(names: list[tuple[str]], most: int) -> None:
    found = groups(names, most)
    assert sorted(place for group in found for place in group) == list(range(len(names)))
    assert all(len(group) <= most and len({names[place] for place in group}) == 1 for group in found)
    assert len(found) == sum(-(-names.count(name) // most) for name in set(names))
