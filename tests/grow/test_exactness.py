"""The central claim: a plan that says it is exact keeps the function, for any block, sizes, methods and constants."""

import dataclasses
import random
from collections.abc import Mapping, Sequence

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
from tests.models import COVERING_BLOCKS, LLAMA, random_batch, small_config

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


def source(rng: random.Random, norm: str | None = None) -> ModelConfig:
    """Any block: multi-head, grouped-query or multi-query attention, FLM's, Llama's or a mixture."""
    heads, queries = rng.randint(1, 3), rng.choice((None, 1, 2))
    return small_config(
        vocab_size=rng.choice((16, 48)),
        d_model=rng.randint(4, 24),
        num_layers=rng.randint(1, 3),
        num_heads=heads * (queries or 1),
        num_kv_heads=heads if queries else None,
        head_dim=rng.choice((2, 4)),
        d_ff=rng.randint(1, 24),
        norm=norm or rng.choice(("layernorm", "rmsnorm")),
        activation=rng.choice(("gelu", "swiglu")),
        use_bias=rng.random() < 0.5,
        tied_readout=rng.random() < 0.5,
        norm_epsilon=10.0 ** rng.uniform(-8, -3),
        parametrization=rng.choice(("mup", "standard")),
        input_mult=rng.choice((0.1, 1.0, 3.0)),
        output_mult=rng.choice((0.5, 2.0)),
        xpos_scale_base=rng.choice((512.0, None)),
    )


def larger(
    rng: random.Random, source: ModelConfig, named: Mapping[str, str], axes: Sequence[str]
) -> GrowthPlan:
    """A plan in float32 that grows these axes."""
    sizes = {}
    for axis in axes:
        old = source.size(axis)
        if axis == "embed" and OPERATORS[axis][named[axis]].carries_moments:  # copies, of all as many
            sizes[axis] = old * rng.randint(2, 3)
        else:
            sizes[axis] = old + rng.randint(1, 2 if axis in ("heads", "queries") else 9)
    plan = decide(source, resized(source, **sizes), named)
    assert set(plan.maps) == set(axes)
    return plan


def growable(source: ModelConfig, named: Mapping[str, str]) -> list[str]:
    return [axis for axis in AXES if axis in named and (source.grouped or axis != "queries")]


# Not by hypothesis's own strategies: its first example is the simplest, of all sizes 1 and one axis, and compiling
# leaves time for few others.
SEEDS = st.integers(0, 2**32 - 1)


def mixture(seed: int) -> GrowthPlan:
    """Some of the axes of any block, each by any operator that keeps the function."""
    rng = random.Random(seed)
    old = source(rng)
    named = {axis: rng.choice(usable(axis, old.norm)) for axis in AXES}
    axes = growable(old, named)
    return larger(rng, old, named, rng.sample(axes, rng.randint(1, len(axes))))


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


@pytest.mark.parametrize(("index", "method"), list(enumerate(EXACT_METHODS)))
def test_float64_logits_are_kept(index: int, method: str) -> None:
    """Every method, all the axes that it grows at once, each on another block."""
    rng, named = random.Random(index), METHODS[method]
    norm = ONLY.get(named.get("embed", ""))
    blocks = [block for block in COVERING_BLOCKS if norm in (None, block["norm"])]
    block = blocks[index % len(blocks)]
    old = small_config(
        **block,
        vocab_size=16,
        d_model=10,
        d_ff=7,
        head_dim=4,
        parametrization=("mup", "standard")[index // 2 % 2],
        xpos_scale_base=(512.0, None)[index % 2],
    )
    check_in_float64(larger(rng, old, named, growable(old, named)))


@settings(max_examples=8)
@given(SEEDS)
def test_float64_logits_are_kept_by_mixtures(seed: int) -> None:
    check_in_float64(mixture(seed))


@pytest.mark.parametrize(("norm", "turn"), [("layernorm", 0), *(("rmsnorm", turn) for turn in range(6))])
def test_every_operator_keeps_the_function_beside_others(norm: str, turn: int) -> None:
    """All axes at once, each by another operator at every turn: none is left to what hypothesis happens to draw."""
    old = small_config(
        vocab_size=16, d_model=6, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=5, norm=norm, use_bias=False
    )
    named = {
        axis: usable(axis, norm)[(turn + shift) % len(usable(axis, norm))] for shift, axis in enumerate(AXES)
    }
    # Six turns are enough for every axis under RMSNorm, and one for what LayerNorm has besides.
    assert all(len(usable(axis, "rmsnorm")) <= 6 for axis in AXES)
    assert norm == "rmsnorm" or named["embed"] == "average"
    plan = decide(old, resized(old, vocab=19, heads=3, queries=3, mlp=12, embed=12, layers=3), named)
    assert set(plan.maps) == set(AXES)
    check_in_float64(plan)


@settings(max_examples=4)
@given(SEEDS)
def test_float32_logits_are_kept(seed: int) -> None:
    found = measured(mixture(seed))
    assert found.precision == "float32"
    assert found.logits <= 5e-6


@pytest.mark.parametrize("name", ["zero", "zero_copy"])
@settings(max_examples=2)
@given(SEEDS)
def test_added_layers_keep_every_bit(name: str, seed: int) -> None:
    """What new layers add to the residual stream is 0, and x + 0 is x."""
    rng = random.Random(seed)
    plan = larger(rng, source(rng), {"layers": name}, ["layers"])
    assert plan.bitwise and "bitwise" in plan.explain()
    assert measured(plan).logits == 0


def test_another_precision_or_centre_of_xpos_is_not_claimed_to_keep_every_bit() -> None:
    old = small_config()
    for changes in ({"dtype": "bfloat16"}, {"max_length": 48}):
        assert not decide(old, dataclasses.replace(old, num_layers=4, **changes), "llama_pro").bitwise


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
