"""The central claim: a plan that says it is exact keeps the function, for any block, sizes, methods and constants."""

import dataclasses
from collections.abc import Mapping

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax import ModelConfig, grow
from flm_jax.grow import GrowthPlan
from flm_jax.grow.errors import UnsuitableOperatorError
from flm_jax.grow.operators import AXES, METHODS, OPERATORS
from flm_jax.grow.planning import decide
from flm_jax.grow.verification import Difference
from tests.grow.growths import drawn_params, resized
from tests.models import LLAMA, random_batch, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Operators of `embed` that keep the function under one of the norms only.
ONLY = {"average": "layernorm", "pad": "rmsnorm", "scaled_pad": "rmsnorm"}
EXACT_METHODS = sorted(
    method
    for method, named in METHODS.items()
    if all(OPERATORS[axis][name].exact for axis, name in named.items())
)


def usable(axis: str, norm: str) -> list[str]:
    """The operators of an axis that keep the function under this norm."""
    return [
        name for name, operator in OPERATORS[axis].items() if operator.exact and ONLY.get(name, norm) == norm
    ]


@st.composite
def sources(draw: st.DrawFn, norm: str | None) -> ModelConfig:
    """Any block: multi-head, grouped-query or multi-query attention, FLM's, Llama's or a mixture."""
    heads, queries = draw(st.integers(1, 3)), draw(st.sampled_from((None, 1, 2)))
    return small_config(
        vocab_size=draw(st.sampled_from((16, 48))),
        d_model=draw(st.integers(4, 24)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads * (queries or 1),
        num_kv_heads=heads if queries else None,
        head_dim=draw(st.sampled_from((2, 4))),
        d_ff=draw(st.integers(1, 24)),
        norm=norm or draw(st.sampled_from(("layernorm", "rmsnorm"))),
        activation=draw(st.sampled_from(("gelu", "swiglu"))),
        use_bias=draw(st.booleans()),
        tied_readout=draw(st.booleans()),
        norm_epsilon=10.0 ** draw(st.floats(-8, -3)),
        parametrization=draw(st.sampled_from(("mup", "standard"))),
        input_mult=draw(st.sampled_from((0.1, 1.0, 3.0))),
        output_mult=draw(st.sampled_from((0.5, 2.0))),
        xpos_scale_base=draw(st.sampled_from((512.0, None))),
    )


@st.composite
def plans(draw: st.DrawFn, method: str) -> GrowthPlan:
    """A plan in float32 of some of the axes, by one method or, "mixed", by an exact operator for each axis."""
    source = draw(sources(ONLY.get(METHODS.get(method, {}).get("embed", ""))))
    if method == "mixed":
        named = {axis: draw(st.sampled_from(usable(axis, source.norm))) for axis in AXES}
    else:
        named = dict(METHODS[method])
    possible = [axis for axis in AXES if axis in named and (source.grouped or axis != "queries")]
    sizes = {}
    for axis in sorted(draw(st.sets(st.sampled_from(possible), min_size=1))):
        old = source.size(axis)
        if axis == "embed" and OPERATORS[axis][named[axis]].carries_moments:  # copies, of all as many
            sizes[axis] = old * draw(st.integers(2, 3))
        else:
            sizes[axis] = old + draw(st.integers(1, 2 if axis in ("heads", "queries") else 9))
    return decide(source, resized(source, **sizes), named if method == "mixed" else method)


def in_precision(plan: GrowthPlan, dtype: str) -> GrowthPlan:
    def same(config: ModelConfig) -> ModelConfig:
        return dataclasses.replace(config, dtype=dtype, param_dtype=dtype)

    return dataclasses.replace(plan, source=same(plan.source), target=same(plan.target))


def measured(plan: GrowthPlan) -> Difference:
    """On packed batches; the draws' key is of a kind that compiles faster than the default."""
    batch = random_batch(plan.source, 2, 12)
    return grow.verify(plan, drawn_params(plan.source), jax.random.key(1, impl="rbg"), batch)


def check_in_float64(plan: GrowthPlan) -> None:
    assert plan.exact
    with jax.enable_x64(True):
        found = measured(in_precision(plan, "float64"))
        assert found.precision == "float64"
        assert found.logits <= 1e-12
        if "vocab" not in plan.maps:
            assert abs(found.gap) <= 1e-12 * max(1, found.largest_logit)
        assert found.largest_logit > 1e-3  # there is something to be kept


@pytest.mark.parametrize("method", EXACT_METHODS)
@settings(max_examples=1)
@given(st.data())
def test_float64_logits_are_kept(method: str, data: st.DataObject) -> None:
    check_in_float64(data.draw(plans(method)))


@settings(max_examples=4)
@given(plans("mixed"))
def test_float64_logits_are_kept_by_mixtures(plan: GrowthPlan) -> None:
    check_in_float64(plan)


@pytest.mark.parametrize(("norm", "turn"), [("layernorm", 0), *(("rmsnorm", turn) for turn in range(6))])
def test_every_operator_keeps_the_function_beside_others(norm: str, turn: int) -> None:
    """All axes at once, each by another operator at every turn: none is left to what hypothesis happens to draw."""
    source = small_config(
        vocab_size=16, d_model=6, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=5, norm=norm, use_bias=False
    )
    named = {
        axis: usable(axis, norm)[(turn + shift) % len(usable(axis, norm))] for shift, axis in enumerate(AXES)
    }
    # Six turns are enough for every axis under RMSNorm, and one for what LayerNorm has besides.
    assert all(len(usable(axis, "rmsnorm")) <= 6 for axis in AXES)
    assert norm == "rmsnorm" or named["embed"] == "average"
    larger = resized(source, vocab=19, heads=3, queries=3, mlp=12, embed=12, layers=3)
    plan = decide(source, larger, named)
    assert set(plan.maps) == set(AXES)
    check_in_float64(plan)


@settings(max_examples=5)
@given(st.sampled_from([*EXACT_METHODS, "mixed"]).flatmap(plans))
def test_float32_logits_are_kept(plan: GrowthPlan) -> None:
    found = measured(plan)
    assert found.precision == "float32"
    assert found.logits <= 5e-6


@settings(max_examples=2)
@given(sources(None), st.sampled_from(("zero", "zero_copy")), st.integers(1, 4))
def test_added_layers_keep_every_bit(source: ModelConfig, name: str, more: int) -> None:
    """What new layers add to the residual stream is 0, and x + 0 is x."""
    plan = decide(source, resized(source, layers=source.num_layers + more), {"layers": name})
    assert plan.bitwise and "bitwise" in plan.explain()
    assert measured(plan).logits == 0


@pytest.mark.parametrize("axis", sorted(set(AXES) - {"layers"}))
def test_wider_matrices_are_not_claimed_to_keep_every_bit(axis: str) -> None:
    source = small_config(**LLAMA)
    for name in usable(axis, source.norm):
        plan = decide(source, resized(source, **{axis: 2 * source.size(axis)}), {axis: name})
        assert plan.exact and not plan.bitwise and "bitwise" not in plan.explain()


@pytest.mark.parametrize(
    ("changes", "sizes", "method", "reason"),
    [
        ({"norm": "rmsnorm"}, {"embed": 36}, {"embed": "average"}, "use pad, scaled_pad, mask or duplicate"),
        ({}, {"embed": 36}, {"embed": "pad"}, "use average, mask or duplicate"),
        ({}, {"embed": 36}, {"embed": "scaled_pad"}, "use average, mask or duplicate"),
        *(
            ({}, {"embed": 36}, {"embed": name}, r"36 is no multiple of 24; use average .*or mask")
            for name in ("duplicate", "duplicate_noise", "uneven")
        ),
        ({}, {"layers": 5}, {"layers": "middle"}, "up to 4 layers, not 5; grow in several stages"),
        ({"norm": "rmsnorm"}, {"embed": 36}, "lemon", "'embed': 'average' cannot grow d_model 24 to 36"),
        ({}, {"embed": 36}, "hypercloning", "is no multiple of 24"),
    ],
)
def test_operators_that_would_not_keep_it_name_others(
    changes: Mapping[str, str], sizes: Mapping[str, int], method: str | Mapping[str, str], reason: str
) -> None:
    source = small_config(**changes)
    with pytest.raises(UnsuitableOperatorError, match=reason):
        grow.plan(source, resized(source, **sizes), method)
