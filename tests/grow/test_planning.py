import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flm_jax import Decoder, ModelConfig, grow, presets
from flm_jax.grow.errors import FixedFieldError, GrowthError, ShrinkingError, UnknownMethodError
from flm_jax.grow.operators import AXES, METHODS, OPERATORS, field
from flm_jax.grow.planning import decide
from flm_jax.optimizer import width_multipliers
from tests.grow.growths import grown_config, resized
from tests.models import LLAMA, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = small_config()
TARGET = grown_config(SOURCE)


@pytest.mark.parametrize("axis", AXES)
def test_shrinking_is_refused(axis: str) -> None:
    """Also while all other axes grow."""
    source = small_config(**LLAMA)
    sizes = {other: source.size(other) + 1 for other in AXES} | {axis: source.size(axis) - 1}
    named = field(axis, source)
    assert named == {"heads": "num_kv_heads", "queries": "num_heads"}.get(axis, named)
    per = " per key-value head" if axis == "queries" else ""
    with pytest.raises(
        ShrinkingError, match=rf"cannot make {named}{per} smaller.*bind ModelConfig\.{named} of this stage"
    ):
        grow.plan(source, resized(source, **sizes), {**METHODS["msg"], "vocab": "mean"})


def test_kv_heads_cannot_fall_while_heads_rise() -> None:
    """To 8 query heads of one group from 4 of two: that is more queries a group, and fewer groups."""
    source = small_config(**LLAMA)
    with pytest.raises(
        ShrinkingError, match="cannot make num_kv_heads smaller: the source has 2, the target 1"
    ):
        grow.plan(source, dataclasses.replace(source, num_heads=8, num_kv_heads=1))


@pytest.mark.parametrize(
    ("before", "after"), [({}, {"num_kv_heads": 4}), ({"num_kv_heads": 4}, {"num_kv_heads": None})]
)
def test_the_kind_of_attention_cannot_change(before: dict[str, Any], after: dict[str, Any]) -> None:
    source = small_config(**before)
    with pytest.raises(FixedFieldError, match=r"cannot change num_kv_heads: .*an axis of their own"):
        grow.plan(source, dataclasses.replace(source, d_ff=80, **after))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("head_dim", 10, "grow num_heads instead"),
        ("norm", "rmsnorm", "the function would be another"),
        ("activation", "swiglu", "the function would be another"),
        ("use_bias", False, "the function would be another"),
        ("tied_readout", False, "the function would be another"),
        ("parametrization", "standard", "the function would be another"),
        ("output_mult", 1.0, "the function would be another"),
        ("input_mult", 1.0, "the function would be another"),
        ("xpos_theta", 5e5, "the function would be another"),
        ("xpos_scale_base", None, "the function would be another"),
        ("param_dtype", "bfloat16", "the function would be another"),
    ],
)
def test_what_growth_cannot_change_is_refused(field: str, value: Any, reason: str) -> None:
    target = dataclasses.replace(TARGET, **{field: value})
    with pytest.raises(FixedFieldError, match=rf"cannot change {field}: .*{reason}.*ModelConfig\.{field} to"):
        grow.plan(SOURCE, target)


def test_what_does_not_touch_the_function_may_change() -> None:
    changes: dict[str, Any] = {
        "remat": "full",
        "max_length": SOURCE.max_length,
        "init_std": 0.02,
        "dtype": "bfloat16",
    }
    plan = grow.plan(SOURCE, dataclasses.replace(TARGET, **changes))
    assert {name: getattr(plan.target, name) for name in changes} == changes


def test_a_growth_of_nothing_is_refused() -> None:
    with pytest.raises(GrowthError, match=r"nothing grows.*ModelConfig\.vocab_size, d_model, num_heads"):
        grow.plan(SOURCE, SOURCE)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lotus", r"unknown growth method 'lotus': expected one of msg, lemon, pad, .*gstack.*Stage\.method"),
        ("gstack", r"the method 'gstack' says nothing of embed, heads, mlp, which the target grows"),
        ("net2net", r"the method 'net2net' says nothing of embed, .*'embed': 'mask', 'heads': 'net2net'"),
        (
            {"embed": "mask", "heads": "zero"},
            r"says nothing of mlp, layers, .*'mlp': 'mask', 'layers': 'mask'",
        ),
        ({"embed": "stack"}, r"unknown operator 'embed': 'stack' in Stage\.method; expected one of"),
        ({"vocab": "zero"}, r"unknown operator 'vocab': 'zero'"),
        ({"kv": "zero"}, r"unknown operator 'kv': 'zero'"),
    ],
)
def test_unknown_methods_are_refused(method: Any, message: str) -> None:
    with pytest.raises(UnknownMethodError, match=message):
        grow.plan(SOURCE, TARGET, method)


def test_every_error_is_a_growth_error_and_a_value_error() -> None:
    for kind in (UnknownMethodError, ShrinkingError, FixedFieldError):
        assert issubclass(kind, GrowthError) and issubclass(GrowthError, ValueError)


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_made_of_operators_that_exist(method: str) -> None:
    assert METHODS[method]
    assert all(name in OPERATORS[axis] for axis, name in METHODS[method].items())


def test_a_stage_may_grow_nothing_if_it_says_so() -> None:
    source = small_config()
    plan = grow.plan(source, source, "none")
    assert plan.target == source and not plan.operators and plan.exact and not plan.masked
    assert "nothing grows: the model stays as it is" in plan.explain()
    with pytest.raises(GrowthError, match="nothing grows: the target has the source's sizes"):
        grow.plan(source, source, "msg")
    with pytest.raises(UnknownMethodError, match="'none' says nothing of layers"):
        grow.plan(source, resized(source, layers=2 * source.num_layers), "none")


@pytest.mark.parametrize("axis", AXES)
def test_explain_names_every_operator_and_the_field_that_grows(axis: str) -> None:
    for norm in ("layernorm", "rmsnorm"):
        source = small_config(**{**LLAMA, "norm": norm})
        target = resized(source, **{axis: 2 * source.size(axis)})
        for name, operator in OPERATORS[axis].items():
            if operator.unsuitable(source, target) is None:
                plan = decide(source, target, {axis: name})
                old, text = source.size(axis), plan.explain()
                per = " / num_kv_heads" if axis == "queries" else ""
                assert f"{field(axis, source)}{per} {old} -> {2 * old}  {name}: {operator.says};" in text
                assert plan.exact == ("the function is kept" in text)


@pytest.mark.parametrize("method", ["msg", "lemon"])
def test_the_plan_sets_the_epsilon_that_must_run(method: str) -> None:
    """The requested one is not read: only the source's, scaled for average expansion, keeps the function."""
    asked = dataclasses.replace(TARGET, norm_epsilon=0.5)
    found = grow.plan(SOURCE, asked, method).target
    ratio = SOURCE.d_model / TARGET.d_model if method == "lemon" else 1
    assert found == dataclasses.replace(TARGET, norm_epsilon=SOURCE.norm_epsilon * ratio)
    # Growths in a row: the next plan starts from what has run.
    again = grow.plan(found, dataclasses.replace(found, d_model=54), method).target
    assert again.norm_epsilon == pytest.approx(
        SOURCE.norm_epsilon * (SOURCE.d_model / 54 if method == "lemon" else 1)
    )


def test_the_plan_sets_the_denominator_that_must_run() -> None:
    """Kept by `pad`, widened with the model by all that comes after; it is not read from the target."""
    source = small_config(**LLAMA)
    asked = dataclasses.replace(source, d_model=36, norm_denominator=5.0)
    assert grow.plan(source, asked, "pad").target.norm_denominator == 24
    padded = grow.plan(source, asked, "pad").target
    again = dataclasses.replace(padded, d_model=48)
    assert grow.plan(padded, again, "pad").target.norm_denominator == 24
    assert grow.plan(padded, again, "composable").target.norm_denominator == pytest.approx(32)
    assert grow.plan(padded, dataclasses.replace(padded, d_ff=80), "pad").target.norm_denominator == 24
    text = grow.plan(source, asked, "pad").explain()
    assert "norm_denominator d_model -> 24" in text
    assert "norm_denominator 24 -> 32" in grow.plan(padded, again, "composable").explain()


def test_multipliers_are_the_sources_with_the_fold() -> None:
    plan, before = grow.plan(SOURCE, TARGET, "msg"), width_multipliers(SOURCE)
    found, fold = plan.multipliers(before), TARGET.d_model / SOURCE.d_model
    assert found.learning_rate["layers"] == before.learning_rate["layers"]
    assert found.weight_decay["layers"] == before.weight_decay["layers"]
    assert found.learning_rate["layers"] != width_multipliers(plan.target).learning_rate["layers"]
    for name in ("scale", "bias"):
        assert found.learning_rate["final_norm"][name] == pytest.approx(fold)
        assert found.epsilon["final_norm"][name] == pytest.approx(1 / fold)
    assert set(jax.tree.leaves((found.epsilon["layers"], found.epsilon["token_embedding"]))) == {1.0}
    # What multiplies a parameter divides its decay, so that rate times decay stays.
    decayed = before._replace(weight_decay=jax.tree.map(lambda _: 0.5, before.weight_decay))
    assert plan.multipliers(decayed).weight_decay["final_norm"]["scale"] == pytest.approx(0.5 / fold)


def test_explain_says_what_is_kept_and_what_is_changed() -> None:
    target = dataclasses.replace(SOURCE, d_model=48, num_layers=4)
    msg, lemon = (grow.plan(SOURCE, target, method).explain() for method in ("msg", "lemon"))
    for text in (msg, lemon):
        assert "d_model 24 -> 48" in text and "num_layers 2 -> 4" in text
        assert "num_heads" not in text and "d_ff" not in text
        assert f"{SOURCE.num_params:,} -> {target.num_params:,} parameters" in text
        assert "final norm x 2, because the readout's multiplier changes" in text
        assert "the function is kept: logits to 1e-12 relative in float64, 5e-06 in float32" in text
        assert "NOT" not in text
    assert "exact at mask 0" in msg and "growth=plan.mask(value)" in msg and "norm_epsilon" not in msg
    assert "; exact\n" in lemon and "mask" not in lemon and "norm_epsilon 1e-05 -> 5e-06" in lemon
    assert (
        "at mask 0 the old weights train on as they did, if the learning rate goes on" in msg
        and "another from the first update" in lemon
    )


def test_explain_says_what_is_not_exact() -> None:
    text = grow.plan(SOURCE, dataclasses.replace(SOURCE, num_layers=4), "gstack").explain()
    assert "stack: the layers again on top of themselves (G_stack); NOT exact" in text
    assert "the function CHANGES" in text and "the function is kept" not in text
    assert "final norm" not in text


def test_no_fold_in_standard_parametrisation() -> None:
    source = dataclasses.replace(SOURCE, parametrization="standard")
    assert "final norm" not in grow.plan(source, grown_config(source), "msg").explain()


@pytest.mark.parametrize("method", ["msg", "lemon"])
def test_the_paper_growths_can_be_planned_without_allocating(method: str) -> None:
    """16B to 51B to 101B: the shapes are those of the models that the plans say must be run."""
    start = time.monotonic()
    source: ModelConfig = presets.flm_16b()
    for larger in (presets.flm_51b(), presets.flm_101b()):
        plan = grow.plan(source, larger, method)
        rng = jax.eval_shape(lambda: jax.random.key(0))
        old, new = (
            jax.eval_shape(Decoder(config).init, rng, jnp.ones((1, 1), jnp.int32))["params"]
            for config in (source, plan.target)
        )
        found = jax.eval_shape(plan.params, old, rng)
        assert jax.tree.structure(found) == jax.tree.structure(new)
        for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(new), strict=True):
            assert (ours.shape, ours.dtype) == (expected.shape, expected.dtype)
        assert sum(leaf.size for leaf in jax.tree.leaves(found)) == larger.num_params
        source = plan.target
    assert time.monotonic() - start < 10
