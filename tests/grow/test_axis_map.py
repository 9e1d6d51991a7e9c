from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.grow import axis_map
from flm_jax.grow.axis_map import AxisMap

pytestmark = pytest.mark.usefixtures("quick_compilation")

MAKERS = {
    "append": axis_map.append,
    "spread": axis_map.spread,
    "stack": axis_map.stack,
    "random": axis_map.random,
    "middle": axis_map.middle,
}
makers = st.sampled_from(sorted(set(MAKERS) - {"middle"}))  # to any size
SPLITS = {"even": axis_map.even_split, "uneven": axis_map.uneven_split}


@st.composite
def sizes(draw: st.DrawFn, count: int) -> list[int]:
    """Sizes of one axis through a row of growths."""
    found = [draw(st.integers(1, 12))]
    for _ in range(count - 1):
        found.append(found[-1] + draw(st.integers(0, 15)))
    return found


def same(one: AxisMap, other: AxisMap) -> bool:
    return np.array_equal(one.source, other.source) and np.array_equal(one.is_new, other.is_new)


@given(makers, sizes(2))
def test_every_old_entry_stands_once_and_in_order(name: str, sizes: list[int]) -> None:
    old, new = sizes
    found = MAKERS[name](old, new)
    assert found.source.shape == found.is_new.shape == (new,)
    assert np.all((found.source >= 0) & (found.source < old))
    np.testing.assert_array_equal(found.source[found.old_positions], np.arange(old))
    values = np.random.default_rng(0).standard_normal(old)
    np.testing.assert_array_equal(values[found.source][found.old_positions], values)


@given(st.integers(1, 12), st.data())
def test_the_middle_is_repeated_once_and_is_in_the_middle(old: int, data: st.DataObject) -> None:
    new = old + data.draw(st.integers(0, old))
    found = axis_map.middle(old, new)
    np.testing.assert_array_equal(found.source[found.old_positions], np.arange(old))
    repeated = found.source[found.is_new]
    assert len(repeated) == new - old
    np.testing.assert_array_equal(np.diff(repeated), 1)
    if len(repeated):
        # The copies follow their block at once, and as many old entries stand before the block as behind it.
        first, last = np.flatnonzero(found.is_new)[[0, -1]]
        np.testing.assert_array_equal(found.source[first - len(repeated) : first], repeated)
        assert abs((first - len(repeated)) - (new - 1 - last)) <= 1


@given(sizes(2))
def test_random_copies_are_at_the_end_and_the_same_every_time(sizes: list[int]) -> None:
    one, again = axis_map.random(*sizes), axis_map.random(*sizes)
    assert same(one, again) and one.appends


def test_random_copies_are_of_all_sources() -> None:
    counts = np.bincount(axis_map.random(4, 4004).source)
    assert np.all(np.abs(counts - 1001) < 150)


@given(makers, st.sampled_from(sorted(SPLITS)), sizes(2))
def test_splits_sum_to_one_over_the_copies_of_each_source(name: str, split: str, sizes: list[int]) -> None:
    found = MAKERS[name](*sizes)
    weights = SPLITS[split](found)
    np.testing.assert_allclose(np.bincount(found.source, weights), 1)
    assert np.all(weights > 0)
    np.testing.assert_array_equal(weights[found.copies == 1], 1)
    for source in range(sizes[0]):
        copies = weights[found.source == source]
        assert len(set(copies)) == (1 if split == "even" else len(copies))


def test_copies_are_counted() -> None:
    found = axis_map.stack(3, 5)
    np.testing.assert_array_equal(found.copies, [2, 2, 1, 2, 2])
    assert not found.is_even and axis_map.stack(3, 6).is_even


@given(sizes(2))
def test_append_is_padding_at_the_end(sizes: list[int]) -> None:
    assert axis_map.append(*sizes).appends
    assert axis_map.stack(*sizes).appends
    values = np.arange(1, sizes[0] + 1)
    found = axis_map.append(*sizes)
    padded = np.where(found.is_new, 0, values[found.source])
    np.testing.assert_array_equal(padded, np.pad(values, (0, sizes[1] - sizes[0])))


@given(sizes(2))
def test_spread_is_even_and_new_entries_stand_behind_their_source(sizes: list[int]) -> None:
    old, new = sizes
    found = axis_map.spread(old, new)
    assert np.all(np.diff(found.source) >= 0)
    assert set(np.bincount(found.source, minlength=old)) <= {new // old, -(-new // old)}
    new_positions = np.flatnonzero(found.is_new)
    np.testing.assert_array_equal(found.source[new_positions], found.source[new_positions - 1])


@given(sizes(2))
def test_stack_repeats_the_whole_axis(sizes: list[int]) -> None:
    np.testing.assert_array_equal(axis_map.stack(*sizes).source, np.arange(sizes[1]) % sizes[0])


@given(makers, makers, makers, sizes(4))
def test_growths_one_after_the_other_compose(first: str, second: str, third: str, sizes: list[int]) -> None:
    a, b, c = (MAKERS[name](*sizes[i : i + 2]) for i, name in enumerate((first, second, third)))
    both = a.then(b)
    values = np.random.default_rng(0).standard_normal(sizes[0])
    np.testing.assert_array_equal(values[a.source][b.source], values[both.source])
    # What was there at first is what was there before the first and before the second.
    np.testing.assert_array_equal(both.old_positions, b.old_positions[a.old_positions])
    assert same(both.then(c), a.then(b.then(c)))


@pytest.mark.parametrize("maker", [axis_map.append, axis_map.stack])
@given(sizes(3))
def test_two_steps_are_one(maker: Callable[[int, int], AxisMap], sizes: list[int]) -> None:
    """Stacking needs whole copies for that: 2 to 3 to 4 is (0, 1, 0, 0), not (0, 1, 0, 1)."""
    small, _, large = sizes
    middle = small * (sizes[1] // small) if maker is axis_map.stack else sizes[1]
    assert same(maker(small, middle).then(maker(middle, large)), maker(small, large))


def test_the_documented_examples() -> None:
    assert same(axis_map.append(2, 5), AxisMap(np.array([0, 1, 0, 0, 0]), np.array([0, 0, 1, 1, 1], bool)))
    assert same(
        axis_map.spread(4, 6), AxisMap(np.array([0, 0, 1, 2, 2, 3]), np.array([0, 1, 0, 0, 1, 0], bool))
    )
    assert same(axis_map.stack(2, 5), AxisMap(np.array([0, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 1], bool)))
    assert not axis_map.spread(4, 6).appends
    assert same(
        axis_map.middle(4, 6), AxisMap(np.array([0, 1, 2, 1, 2, 3]), np.array([0, 0, 0, 1, 1, 0], bool))
    )
    copied = AxisMap(np.array([0, 1, 0]), np.array([0, 0, 1], bool))
    np.testing.assert_array_equal(axis_map.even_split(copied), [1 / 2, 1, 1 / 2])
    np.testing.assert_allclose(axis_map.uneven_split(copied), [1 / 3, 1, 2 / 3])
