from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import LanguageModel, ModelConfig, grow
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.layers.growth_mask import GrowthMask
from tests.grow.growths import (
    config64,
    drawn_params,
    grown_config,
    llama64,
    old_entries,
    over_rows,
    resized,
)
from tests.models import LLAMA, random_batch, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def measured(plan: GrowthPlan) -> tuple[jax.Array, Callable[[float | None], jax.Array]]:
    """Logits of the source, and of the grown model as a function of the mask's value (None: run without one).

    All parameters of the grown model are moved away from what growth has given them, so that nothing is hidden
    because it happens to be zero; the source has the old ones of them.
    """
    batch, rng = random_batch(plan.source, 2, 12), np.random.default_rng(0)
    grown = jax.jit(plan.params)(drawn_params(plan.source), jax.random.key(3, impl="rbg"))
    grown = jax.tree.map(lambda value: value + 0.1 * rng.standard_normal(value.shape), grown)
    old = over_rows(lambda row, value: value / plan.weight(row), plan.source, old_entries(plan, grown))

    def logits(config: ModelConfig, params: Any, mask: GrowthMask | None) -> jax.Array:
        return LanguageModel(config).logits(params, batch, mask)

    masked = jax.jit(lambda value: logits(plan.target, grown, plan.mask(value)))
    plain = jax.jit(lambda: logits(plan.target, grown, None))
    return jax.jit(lambda: logits(plan.source, old, None))(), lambda v: plain() if v is None else masked(v)


def apart(one: jax.Array, other: jax.Array) -> float:
    """Largest difference of a logit, relatively."""
    return float(jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other)))


@pytest.mark.parametrize("block", ["flm", "llama"])
def test_the_mask_leads_from_the_old_function_to_the_new(block: str) -> None:
    with jax.enable_x64(True):
        source = config64() if block == "flm" else llama64()
        plan = decide(source, resized(source, embed=36, heads=5, mlp=56, layers=3), "msg")
        if source.grouped:
            plan = decide(source, resized(plan.target, queries=3), "msg")
        before, after = measured(plan)
        assert apart(after(0.0), before) <= 1e-12
        assert apart(after(1.0), after(None)) <= 1e-12
        assert apart(after(0.37), before) > 1e-2
        assert apart(after(0.37), after(None)) > 1e-2


def test_the_mask_is_continuous() -> None:
    """At both ends and between: a thousandth of a step is a thousandth of the way."""
    with jax.enable_x64(True):
        source = config64()
        _, after = measured(grow.plan(source, grown_config(source), "msg"))
        for value, step in ((0.0, 1e-6), (0.37, 1e-6), (1.0, -1e-6)):
            near, nearer = (
                apart(after(value + step), after(value)),
                apart(after(value + step / 1e3), after(value)),
            )
            assert 0 < near < 1e-3
            assert nearer == pytest.approx(near / 1e3, rel=0.01)


@pytest.mark.parametrize("axis", ["embed", "heads", "queries", "mlp", "layers"])
def test_the_mask_has_the_axes_that_grew_under_one(axis: str) -> None:
    source = small_config(**LLAMA)
    plan = grow.plan(source, resized(source, **{axis: source.size(axis) + 1}), "msg")
    mask = plan.mask(0.25)
    assert mask is not None
    assert {name for name, value in mask._asdict().items() if value is not None} == {axis}
    np.testing.assert_array_equal(getattr(mask, axis), np.where(plan.maps[axis].is_new, 0.25, 1))


def test_without_masked_axes_there_is_no_mask() -> None:
    source = small_config()
    target = grown_config(source)
    assert grow.plan(source, target, "lemon").mask(0.5) is None
    mixed = grow.plan(source, target, {"embed": "average", "heads": "zero", "mlp": "zero", "layers": "mask"})
    mask = mixed.mask(0.5)
    assert mask is not None and mask.layers is not None
    assert (mask.embed, mask.heads, mask.mlp) == (None, None, None)


def test_the_mask_is_as_precise_as_the_model() -> None:
    """Also for a value computed in float32 or by integers: 0.1 rounded to float32 is off by 1e-9."""
    source = small_config()
    plan = grow.plan(source, grown_config(source), "msg")
    for value in (0.1, 1, jnp.bfloat16(0.5)):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(plan.mask(value)))
    with jax.enable_x64(True):
        for value in (0.1, jnp.float32(0.5)):
            assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(plan.mask(value)))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_mask_is_between_closed_and_open(value: float) -> None:
    plan = grow.plan(small_config(), grown_config(small_config()), "msg")
    with pytest.raises(grow.GrowthError, match=f"from 0 to 1, found {value}"):
        plan.mask(value)
