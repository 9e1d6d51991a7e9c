from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.grow.axis_map import AxisMap, append, random, spread, stack
from flm_jax.grow.kernel import grow_array
from flm_jax.grow.rule import Fill, Rule

pytestmark = pytest.mark.usefixtures("quick_compilation")

AXES = ("embed", "mlp")
OLD = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
KEY = jax.random.key(0)


def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def grown(maps: dict[str, AxisMap], rules: dict[str, Rule], **draws: Any) -> np.ndarray:
    draws = {"key": KEY, "draw": draw, "noise": draw, **draws}
    return np.asarray(grow_array(jnp.asarray(OLD), AXES, maps, rules, **draws))


def test_the_documented_example() -> None:
    found = grow_array(
        jnp.array([1.0, 2.0]), ("embed",), {"embed": append(2, 4)}, {"embed": Rule(Fill.MEAN, 2.0)}
    )
    np.testing.assert_array_equal(found, [2, 4, 3, 3])


@pytest.mark.parametrize("axis_map", [append(3, 5), spread(3, 5)])
@pytest.mark.parametrize("fill", Fill)
def test_fills_of_one_axis(fill: Fill, axis_map: AxisMap) -> None:
    """At the end by padding and in between by gathering."""
    found = grown({"embed": axis_map}, {"embed": Rule(fill)})
    np.testing.assert_array_equal(found[axis_map.old_positions], OLD)
    new = found[axis_map.is_new]
    if fill is Fill.INIT:
        assert len(np.unique(new)) == new.size == 8
    else:
        expected = {
            Fill.ZERO: np.zeros((2, 4)),
            Fill.MEAN: OLD.mean(axis=0, keepdims=True).repeat(2, axis=0),
            Fill.COPY: OLD[axis_map.source[axis_map.is_new]],
        }[fill]
        np.testing.assert_allclose(new, expected, rtol=1e-6)


@pytest.mark.parametrize("axis_map", [append(3, 5), spread(3, 5)])
def test_only_what_is_new_is_drawn(axis_map: AxisMap) -> None:
    """A draw for all of a 100-billion-parameter model's old entries would be thrown away. It lands in its order."""
    asked = []

    def counted(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        asked.append(shape)
        return 100 + jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)

    maps = {"mlp": append(4, 6), "embed": axis_map}
    found = grown(maps, {"mlp": Rule(Fill.INIT), "embed": Rule(Fill.INIT)}, draw=counted)
    assert asked == [(3, 2), (2, 6)]
    np.testing.assert_array_equal(found[axis_map.old_positions, :4], OLD)
    np.testing.assert_array_equal(found[axis_map.old_positions, 4:], 100 + np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(found[axis_map.is_new], 100 + np.arange(12).reshape(2, 6))


def test_later_fills_lie_over_earlier_ones() -> None:
    """A mean over `embed` is of what the new FFN units hold; zeros over it leave nothing of them."""
    maps = {"mlp": append(4, 6), "embed": append(3, 5)}
    found = grown(maps, {"mlp": Rule(Fill.INIT), "embed": Rule(Fill.MEAN)})
    np.testing.assert_array_equal(found[:3, :4], OLD)
    assert np.all(found[:3, 4:] != 0)
    np.testing.assert_allclose(found[3:], found[:3].mean(axis=0, keepdims=True).repeat(2, 0), rtol=1e-5)
    found = grown(maps, {"mlp": Rule(Fill.INIT), "embed": Rule(Fill.ZERO)})
    assert not np.any(found[3:]) and np.all(found[:3, 4:] != 0)


def test_weights_are_of_new_entries_too_and_may_differ_along_the_axis() -> None:
    weight = np.array([0.5, 1, 2, 0.5])
    found = grown({"embed": stack(3, 4)}, {"embed": Rule(Fill.COPY, weight)})
    np.testing.assert_array_equal(found, OLD[[0, 1, 2, 0]] * weight[:, None].astype(np.float32))
    found = grown({"embed": append(3, 5)}, {"embed": Rule(Fill.MEAN, 3.0)})
    np.testing.assert_allclose(found[3], 3 * OLD.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("axis_map", [stack(3, 8), random(3, 8)])
def test_noise_sums_to_zero_over_the_copies_of_a_source(axis_map: AxisMap) -> None:
    """And what has no copy has none, to the bit; the noise is of the asked size."""
    found = grown({"embed": axis_map}, {"embed": Rule(Fill.COPY, noise=0.5)}) - OLD[axis_map.source]
    for source in range(3):
        copies = found[axis_map.source == source]
        if len(copies) == 1:
            np.testing.assert_array_equal(copies, 0)
        else:
            np.testing.assert_allclose(copies.sum(axis=0), 0, atol=1e-6)
            assert np.all(copies != 0)
    assert 0.1 < np.std(found) < 0.6


def test_an_entry_without_a_copy_has_no_noise() -> None:
    axis_map = stack(3, 4)
    found = grown({"embed": axis_map}, {"embed": Rule(Fill.COPY, noise=0.5)})
    np.testing.assert_array_equal(found[1:3], OLD[1:3])
    assert np.all(found[[0, 3]] != OLD[[0, 0]])


def test_every_axis_draws_by_itself() -> None:
    """The draw of an axis does not depend on which others grow, and no two axes have the same."""
    maps = {"mlp": append(4, 6), "embed": append(3, 5)}
    one = grown({"mlp": maps["mlp"]}, {"mlp": Rule(Fill.INIT)})
    both = grown(maps, {"mlp": Rule(Fill.INIT), "embed": Rule(Fill.INIT)})
    np.testing.assert_array_equal(both[:3], one)
    assert not np.intersect1d(both[3:], both[:3, 4:]).size
    other = grown({"mlp": maps["mlp"]}, {"mlp": Rule(Fill.INIT)}, key=jax.random.key(1))
    assert not np.any(other[:, 4:] == one[:, 4:])


def test_axes_that_the_array_lacks_do_nothing() -> None:
    np.testing.assert_array_equal(grown({"heads": append(2, 9)}, {}), OLD)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_compiled_it_is_the_same_and_keeps_the_dtype(dtype: Any) -> None:
    maps = {"mlp": stack(4, 6), "embed": append(3, 5)}
    split = 1 / maps["mlp"].copies  # float64, which must not promote
    rules = {"mlp": Rule(Fill.COPY, split, noise=0.1), "embed": Rule(Fill.MEAN, 1.5)}

    def grow(old: jax.Array) -> jax.Array:
        return grow_array(
            old, AXES, maps, rules, KEY, noise=lambda key, shape: draw(key, shape).astype(dtype)
        )

    old = jnp.asarray(OLD, dtype)
    plain, compiled = grow(old), jax.jit(grow)(old)
    assert plain.dtype == compiled.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 0.01
    np.testing.assert_allclose(
        np.asarray(plain, np.float32), np.asarray(compiled, np.float32), rtol=tolerance, atol=tolerance
    )
