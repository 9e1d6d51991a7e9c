"""The central claim: a plan that says it is exact keeps the function, for any sizes, methods and constants."""

import dataclasses
from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax import ModelConfig, grow
from flm_jax.grow import GrowthPlan
from flm_jax.grow.operators import FIELDS, OPERATORS
from flm_jax.grow.verification import Difference
from tests.grow.growths import drawn_params
from tests.models import random_batch, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


@st.composite
def plans(draw: st.DrawFn, method: Any) -> GrowthPlan:
    """A plan in float32 of some of the axes, by one method or, "mixed", by an exact operator for each axis."""
    sizes = {
        "d_model": draw(st.integers(4, 24)),
        "num_heads": draw(st.integers(1, 4)),
        "d_ff": draw(st.integers(1, 24)),
        "num_layers": draw(st.integers(1, 3)),
    }
    source = small_config(
        **sizes,
        vocab_size=draw(st.sampled_from((16, 48))),
        head_dim=draw(st.sampled_from((2, 4, 8))),
        norm_epsilon=10.0 ** draw(st.floats(-8, -3)),
        parametrization=draw(st.sampled_from(("mup", "standard"))),
        input_mult=draw(st.sampled_from((0.1, 1.0, 3.0))),
        output_mult=draw(st.sampled_from((0.5, 2.0))),
        xpos_scale_base=draw(st.sampled_from((512.0, None))),
    )
    growing = draw(st.sets(st.sampled_from(sorted(FIELDS)), min_size=1))
    if method == "mixed":
        exact = {axis: sorted(n for n, op in OPERATORS[axis].items() if op.exact) for axis in sorted(growing)}
        method = {axis: draw(st.sampled_from(names)) for axis, names in exact.items()}
    larger: dict[str, Any] = {
        FIELDS[axis]: sizes[FIELDS[axis]] + draw(st.integers(1, 20)) for axis in sorted(growing)
    }
    larger["num_layers"] = min(larger.get("num_layers", sizes["num_layers"]), 8)
    return grow.plan(source, dataclasses.replace(source, **larger), method)


def in_precision(plan: GrowthPlan, dtype: str) -> GrowthPlan:
    def same(config: ModelConfig) -> ModelConfig:
        return dataclasses.replace(config, dtype=dtype, param_dtype=dtype)

    return dataclasses.replace(plan, source=same(plan.source), target=same(plan.target))


def measured(plan: GrowthPlan) -> Difference:
    """On packed batches; the draws' key is of a kind that compiles faster than the default."""
    batch = random_batch(plan.source, 2, 12)
    return grow.verify(plan, drawn_params(plan.source), jax.random.key(1, impl="rbg"), batch)


each_method = pytest.mark.parametrize("method", ["msg", "lemon", "mixed"])


@each_method
@settings(max_examples=7)
@given(st.data())
def test_float64_logits_are_kept(method: str, data: st.DataObject) -> None:
    plan = data.draw(plans(method))
    with jax.enable_x64(True):
        found = measured(in_precision(plan, "float64"))
        assert found.precision == "float64"
        assert found.logits <= 1e-12 and abs(found.gap) <= 1e-12 * max(1, found.largest_logit)
        assert found.largest_logit > 1e-3  # there is something to be kept


@each_method
@settings(max_examples=5)
@given(st.data())
def test_float32_logits_are_kept(method: str, data: st.DataObject) -> None:
    found = measured(data.draw(plans(method)))
    assert found.precision == "float32"
    assert found.logits <= 5e-6
