"""The gate: what it lets through, and that it stops every known way to get widening wrong."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest

from flm_jax import LanguageModel, grow
from flm_jax.grow import verification
from flm_jax.grow.errors import FunctionChangedError, GrowthError
from flm_jax.grow.planning import GrowthPlan
from flm_jax.layers import readout
from flm_jax.parameters import Parameter, Role
from tests.grow.growths import config64, drawn_params, grown_config, over_rows
from tests.models import LLAMA, random_batch, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = config64()
KEY = jax.random.key(3, impl="rbg")


def widened(method: str, d_model: int = 36) -> GrowthPlan:
    return grow.plan(SOURCE, dataclasses.replace(SOURCE, d_model=d_model), method)


def grown_by(plan: GrowthPlan, params: Any) -> Any:
    return jax.jit(plan.params)(params, KEY)


def passes(plan: GrowthPlan, params: Any, grown: Any) -> None:
    assert grow.verify(plan, params, batch=random_batch(SOURCE, 2, 12), grown=grown).logits <= 1e-12


def fails(plan: GrowthPlan, params: Any, grown: Any, by: float) -> None:
    """The gate raises, and what it found is a difference of at least `by`, relatively."""
    with pytest.raises(FunctionChangedError, match="growth should keep the function") as caught:
        grow.verify(plan, params, batch=random_batch(SOURCE, 2, 12), grown=grown)
    moved = re.search(r"moved by (\S+), expected at most 1e-12", str(caught.value))
    assert moved and float(moved[1]) > by, caught.value


def unmasked(plan: GrowthPlan) -> GrowthPlan:
    """The same sizes run without a mask, and claimed to be exact so."""
    claim = dataclasses.replace(plan, operators={**plan.operators, "embed": "average"})
    assert claim.exact and claim.mask(0.0) is None
    return claim


def padded(plan: GrowthPlan, params: Any) -> Any:
    """Grown by the mask's rule, but with new coordinates of the residual stream that hold 0."""

    def zero(row: Parameter, value: jax.Array) -> jax.Array:
        writes = row.role in (Role.EMBEDDING, Role.WRITE) or (
            row.role is Role.BIAS and row.axes[-1] == "embed"
        )
        return value.at[..., SOURCE.d_model :].set(0) if writes else value

    return over_rows(zero, plan.target, grown_by(plan, params))


def test_layer_norm_under_padding_needs_the_masked_statistics() -> None:
    """Zeros everywhere they can be: the plain mean and variance over more coordinates are still others."""
    with jax.enable_x64(True):
        plan, params = widened("msg"), drawn_params(SOURCE)
        grown = padded(plan, params)
        passes(plan, params, grown)
        fails(unmasked(plan), params, grown, by=1e-2)
        fails(unmasked(plan), params, grown_by(plan, params), by=1e-2)


def test_average_expansion_needs_its_epsilon() -> None:
    with jax.enable_x64(True):
        plan, params = widened("lemon"), drawn_params(SOURCE)
        unscaled = dataclasses.replace(plan.target, norm_epsilon=SOURCE.norm_epsilon)
        grown = grown_by(plan, params)
        passes(plan, params, grown)
        fails(dataclasses.replace(plan, target=unscaled), params, grown, by=1e-9)


@pytest.mark.parametrize("method", ["msg", "lemon"])
def test_the_fold_takes_the_bias_too(method: str) -> None:
    with jax.enable_x64(True):
        plan, params = widened(method), drawn_params(SOURCE)
        grown = grown_by(plan, params)
        fold = plan.target.d_model / SOURCE.d_model
        for name in ("scale", "bias"):
            unfolded = {**grown["final_norm"], name: grown["final_norm"][name] / fold}
            fails(plan, params, {**grown, "final_norm": unfolded}, by=1e-2)


def test_a_difference_that_is_not_a_number_fails() -> None:
    with jax.enable_x64(True):
        plan, params = widened("lemon"), drawn_params(SOURCE)
        broken = jax.tree.map(lambda value: value * np.nan, grown_by(plan, params))
        with pytest.raises(FunctionChangedError, match="moved by nan"):
            grow.verify(plan, params, batch=random_batch(SOURCE, 2, 12), grown=broken)


@pytest.mark.parametrize("method", ["gstack", "interpolation", "midas"])
def test_what_is_not_exact_says_so_and_is_measured_and_not_stopped(method: str) -> None:
    source = small_config(vocab_size=16)
    plan = grow.plan(source, grown_config(source, num_layers=4), method)
    assert not plan.exact and not plan.bitwise
    text = plan.explain()
    assert "; NOT exact" in text and "the function CHANGES" in text and "the function is kept" not in text
    found = grow.verify(plan, drawn_params(source), KEY)
    assert found.logits > 0.01 and found.gap != 0
    assert found.gap == found.own_precision_gap  # the model computes in float32 as the gate does


@pytest.mark.parametrize("name", ["mean", "draw"])
@pytest.mark.parametrize("block", [{}, LLAMA], ids=["tied", "untied"])
def test_more_tokens_keep_the_old_ones_logits_and_change_the_loss(name: str, block: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        source = config64(vocab_size=16, d_model=8, num_heads=2, d_ff=6, **block)
        plan = grow.plan(source, dataclasses.replace(source, vocab_size=40), {"vocab": name})
        assert "exact on the logits of the 16 old tokens" in plan.explain()
        assert "the loss changes" in plan.explain()
        # Small enough for every token to have a share of the probability.
        params = jax.tree.map(lambda value: 0.3 * value, drawn_params(source))
        found = grow.verify(plan, params, KEY)
        assert found.logits <= 1e-12 and found.gap > 1e-3
        # Only the old tokens' logits are looked at, but those are.
        grown = grown_by(plan, params)
        table = grown["token_embedding"]["embedding"]
        wrong = {**grown, "token_embedding": {"embedding": table.at[:8].set(table[8:16])}}
        with pytest.raises(FunctionChangedError, match="the largest logit"):
            grow.verify(plan, params, grown=wrong)


def test_bfloat16_is_compared_by_its_loss_and_by_float32_logits() -> None:
    """The logits compared are those of float32: bfloat16's differ by a thousand times the bound."""
    source = small_config(dtype="bfloat16", input_mult=1.0, output_mult=0.1)
    plan = grow.plan(source, grown_config(source), "msg")
    found = grow.verify(plan, jax.tree.map(lambda p: 0.3 * p, drawn_params(source)), KEY)
    assert found.precision == "float32" and found.logits <= 5e-6
    assert 0 < abs(found.own_precision_gap) <= 2e-3


def test_parameters_of_another_model_are_refused() -> None:
    plan = grow.plan(small_config(), grown_config(small_config()), "msg")
    other = drawn_params(small_config(d_ff=44))
    with pytest.raises(
        GrowthError, match=r"wi_bias'\]: the plan's model has shape \(2, 40\), found \(2, 44\)"
    ):
        plan.params(other, KEY)
    fewer = {name: value for name, value in drawn_params(small_config()).items() if name != "final_norm"}
    with pytest.raises(GrowthError, match=r"not those of the plan's model: .*final_norm.* on one side only"):
        plan.params(fewer, KEY)


def test_one_sequence_alone_is_read_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits of a batch would take more memory than a training step, which never has them."""
    read = []

    def logits(hidden: jax.Array, *rest: Any) -> jax.Array:
        read.append(hidden.shape)
        return readout.logits(hidden, *rest)

    monkeypatch.setattr(verification, "logits", logits)
    with jax.enable_x64(True):
        for tied in (True, False):
            config = dataclasses.replace(SOURCE, tied_readout=tied)
            plan = grow.plan(config, dataclasses.replace(config, d_model=36), "msg")
            params = drawn_params(config)
            found = grow.verify(plan, params, batch=random_batch(config, 3, 12))
            expected = LanguageModel(config).token_sums(params, random_batch(config, 3, 12))
            assert found.loss_before == pytest.approx(float(expected.nll / expected.weight), rel=1e-12)
            assert found.logits <= 1e-12
    assert read == [(1, 12, 24), (1, 12, 36)] * 2
