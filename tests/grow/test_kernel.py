from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.grow.axis_map import AxisMap, append, spread, stack
from flm_jax.grow.kernel import grow_array
from flm_jax.grow.operators import Fill

AXES = ("layers", "embed", "mlp")
OLD = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
FRESH = np.random.default_rng(1).standard_normal((3, 5, 6)).astype(np.float32)


def draw(shape: tuple[int, ...]) -> jax.Array:
    assert shape == FRESH.shape
    return jnp.asarray(FRESH)


def never_drawn(shape: tuple[int, ...]) -> jax.Array:
    raise AssertionError("nothing asks for a draw")


def grown(
    maps: dict[str, AxisMap], fills: dict[str, Fill], weight: float = 1.0, draw: Any = draw
) -> np.ndarray:
    return np.asarray(grow_array(jnp.asarray(OLD), AXES, maps, fills, weight, draw))


def test_the_documented_example() -> None:
    found = grow_array(
        jnp.array([1.0, 2.0]), ("embed",), {"embed": append(2, 4)}, {"embed": Fill.MEAN}, 2, never_drawn
    )
    np.testing.assert_array_equal(found, [2, 4, 3, 3])


@pytest.mark.parametrize("fill", Fill)
def test_fills_of_one_axis(fill: Fill) -> None:
    # The draw has the shape of the axes that grow, here only one.
    fresh = FRESH[:2, :, :4]
    found = grown({"embed": append(3, 5)}, {"embed": fill}, draw=lambda shape: jnp.asarray(fresh))
    expected = {
        Fill.INIT: fresh[:, 3:],
        Fill.ZERO: np.zeros((2, 2, 4)),
        Fill.MEAN: OLD.mean(axis=1, keepdims=True).repeat(2, axis=1),
        Fill.COPY: OLD[:, [0, 0]],  # appended entries have the first as their source
    }[fill]
    np.testing.assert_array_equal(found[:, :3], OLD)
    np.testing.assert_allclose(found[:, 3:], expected, rtol=1e-6)


def test_later_fills_lie_over_earlier_ones() -> None:
    """A mean over `embed` is of what the new FFN units hold, and what a new layer holds is decided last."""
    maps = {"mlp": append(4, 6), "embed": append(3, 5), "layers": spread(2, 3)}
    fills = {"mlp": Fill.INIT, "embed": Fill.MEAN, "layers": Fill.ZERO}
    found = grown(maps, fills)
    np.testing.assert_array_equal(found[1], 0)
    for new, old in ((0, 0), (2, 1)):
        np.testing.assert_array_equal(found[new, :3, :4], OLD[old])
        np.testing.assert_array_equal(found[new, :3, 4:], FRESH[new, :3, 4:])
        mean = found[new, :3].mean(axis=0, keepdims=True).repeat(2, axis=0)
        np.testing.assert_allclose(found[new, 3:], mean, rtol=1e-6, atol=1e-7)


def test_copies_of_layers_are_of_the_grown_layer() -> None:
    maps = {"embed": append(3, 5), "layers": stack(2, 3)}
    found = grown(maps, {"embed": Fill.ZERO, "layers": Fill.COPY}, weight=0.5, draw=never_drawn)
    np.testing.assert_array_equal(found[:2, :3], 0.5 * OLD)
    np.testing.assert_array_equal(found[2], found[0])


def test_axes_that_the_array_lacks_do_nothing() -> None:
    found = grown({"heads": append(2, 9)}, {"heads": Fill.INIT}, draw=never_drawn)
    np.testing.assert_array_equal(found, OLD)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_compiled_it_is_the_same_and_keeps_the_dtype(dtype: Any) -> None:
    maps = {"mlp": append(4, 6), "embed": append(3, 5), "layers": spread(2, 3)}
    fills = {"mlp": Fill.INIT, "embed": Fill.MEAN, "layers": Fill.COPY}

    def grow(old: jax.Array) -> jax.Array:
        return grow_array(old, AXES, maps, fills, 1.5, lambda shape: draw(shape).astype(dtype))

    old = jnp.asarray(OLD, dtype)
    plain, compiled = grow(old), jax.jit(grow)(old)
    assert plain.dtype == compiled.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 0.01
    np.testing.assert_allclose(
        np.asarray(plain, np.float32), np.asarray(compiled, np.float32), rtol=tolerance, atol=tolerance
    )
