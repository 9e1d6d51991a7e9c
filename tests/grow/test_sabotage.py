"""Known ways to get duplication, zero-padding and grouped queries wrong: every one is stopped by the gate.

Each is shown beside the right growth, which passes, so that what stops it is the fault and nothing else.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import grow
from flm_jax.grow.errors import FunctionChangedError
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.parameters import Parameter
from tests.grow.growths import config64, drawn_params, llama64, over_rows, resized
from tests.models import random_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES: dict[str, Any] = {"vocab_size": 16, "d_model": 8, "d_ff": 6}
SOURCE = llama64(**SIZES)
KEY = jax.random.key(3, impl="rbg")


def growth(**named: str) -> GrowthPlan:
    """Of these axes of `SOURCE`, each by its operator."""
    sizes = {"embed": 16, "queries": 3, "mlp": 12}
    return decide(SOURCE, resized(SOURCE, **{axis: sizes[axis] for axis in named}), named)


def grown_by(plan: GrowthPlan) -> Any:
    return jax.jit(plan.params)(drawn_params(plan.source), KEY)


def passes(plan: GrowthPlan, grown: Any) -> None:
    batch = random_batch(plan.source, 2, 12)
    assert grow.verify(plan, drawn_params(plan.source), batch=batch, grown=grown).logits <= 1e-12


def fails(plan: GrowthPlan, grown: Any, by: float) -> None:
    """The gate raises, and what it found is a difference of at least `by`, relatively."""
    batch = random_batch(plan.source, 2, 12)
    with pytest.raises(FunctionChangedError, match="growth should keep the function") as caught:
        grow.verify(plan, drawn_params(plan.source), batch=batch, grown=grown)
    moved = re.search(r"moved by (\S+), expected at most 1e-12", str(caught.value))
    print(f"moved by {moved and moved[1]}")
    assert moved and float(moved[1]) > by, caught.value


def with_layer_part(params: Any, part: str, **changes: Any) -> Any:
    layers = params["layers"]
    return {**params, "layers": {**layers, part: {**layers[part], **changes}}}


def test_queries_must_be_added_inside_their_group() -> None:
    """Behind all others they shift what is there onto other keys (the fault of ml-hypercloning, issue 1)."""
    with jax.enable_x64(True):
        plan = growth(queries="zero")
        grown = grown_by(plan)
        passes(plan, grown)
        groups, old, new = (
            plan.source.size("heads"),
            plan.source.size("queries"),
            plan.target.size("queries"),
        )
        heads = np.arange(groups * new).reshape(groups, new)
        order = np.concatenate([heads[:, :old].ravel(), heads[:, old:].ravel()])
        assert old > 1 and not np.array_equal(order, np.arange(groups * new))

        def appended(value: jax.Array, dim: int) -> jax.Array:
            flat = value.reshape(*value.shape[:dim], groups * new, *value.shape[dim + 2 :])
            return jnp.take(flat, order, axis=dim).reshape(value.shape)

        attention = grown["layers"]["attention"]
        wrong = {
            "query_kernel": appended(attention["query_kernel"], 2),
            "out_kernel": appended(attention["out_kernel"], 1),
        }
        fails(plan, with_layer_part(grown, "attention", **wrong), by=1e-2)


def test_scaled_padding_needs_its_epsilon() -> None:
    with jax.enable_x64(True):
        plan = growth(embed="scaled_pad")
        grown = grown_by(plan)
        passes(plan, grown)
        unscaled = dataclasses.replace(plan.target, norm_epsilon=plan.source.norm_epsilon)
        fails(dataclasses.replace(plan, target=unscaled), grown, by=1e-9)


@pytest.mark.parametrize("norm", ["attention_norm", "mlp_norm", "final_norm"])
def test_scaled_padding_needs_every_gain(norm: str) -> None:
    with jax.enable_x64(True):
        plan = growth(embed="scaled_pad")
        grown, shrink = grown_by(plan), math.sqrt(plan.source.d_model / plan.target.d_model)
        if norm == "final_norm":
            wrong = {**grown, norm: {"scale": grown[norm]["scale"] / shrink}}
        else:
            wrong = with_layer_part(grown, norm, scale=grown["layers"][norm]["scale"] / shrink)
        fails(plan, wrong, by=1e-2)


def test_padding_needs_the_denominator_that_it_keeps() -> None:
    with jax.enable_x64(True):
        plan = growth(embed="pad")
        grown = grown_by(plan)
        assert plan.target.norm_denominator == SOURCE.d_model
        passes(plan, grown)
        fails(
            dataclasses.replace(plan, target=dataclasses.replace(plan.target, norm_denominator=None)),
            grown,
            by=1e-2,
        )


def test_padding_writes_zeros() -> None:
    with jax.enable_x64(True):
        plan = growth(embed="pad")
        grown = grown_by(plan)
        out = grown["layers"]["mlp"]["wo_kernel"].at[..., SOURCE.d_model :].set(0.01)
        fails(plan, with_layer_part(grown, "mlp", wo_kernel=out), by=1e-4)


def test_copies_must_share_their_output_weights() -> None:
    with jax.enable_x64(True):
        plan = growth(mlp="duplicate")
        grown = grown_by(plan)
        passes(plan, grown)
        unshared = 2 * grown["layers"]["mlp"]["wo_kernel"]
        fails(plan, with_layer_part(grown, "mlp", wo_kernel=unshared), by=1e-2)


def test_noise_must_cancel() -> None:
    """The noise that the growth itself has added cancels; the same on one of the copies does not."""
    with jax.enable_x64(True):
        quiet, noisy = growth(mlp="duplicate"), growth(mlp="duplicate_noise")
        grown, plain = grown_by(noisy), grown_by(quiet)
        passes(noisy, grown)
        noise = grown["layers"]["mlp"]["wo_kernel"] - plain["layers"]["mlp"]["wo_kernel"]
        one = noise.at[:, SOURCE.d_ff :].set(0)
        fails(
            noisy, with_layer_part(plain, "mlp", wo_kernel=plain["layers"]["mlp"]["wo_kernel"] + one), by=1e-6
        )


def tiled(plan: GrowthPlan) -> Any:
    """The residual stream twice side by side, by numpy; what sums over it takes a half of each."""

    def one(row: Parameter, value: jax.Array) -> jax.Array:
        times = [2 if axis == "embed" else 1 for axis in row.axes]
        return jnp.tile(value, times) / (2 if "embed" in row.fan_in else 1)

    return over_rows(one, plan.source, drawn_params(plan.source))


def test_duplication_is_exact_under_mup_without_the_fold() -> None:
    """Logits sum over twice the coordinates, and µP's multiplier is half: only without the multiplier they double."""
    with jax.enable_x64(True):
        source = config64(**SIZES, num_heads=2)
        plan = decide(source, resized(source, embed=16), {"embed": "duplicate"})
        grown = tiled(plan)
        jax.tree.map(np.testing.assert_array_equal, grown, grown_by(plan))
        passes(plan, grown)
        folded = jax.tree.map(lambda value: 2 * value, grown["final_norm"])
        fails(plan, {**grown, "final_norm": folded}, by=0.5)
        standard = dataclasses.replace(source, parametrization="standard")
        fails(decide(standard, resized(standard, embed=16), {"embed": "duplicate"}), grown, by=0.5)
