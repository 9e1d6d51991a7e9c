"""Growth of every known optimizer's state: its shapes, its numbers, and what is refused."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax import grow, optimizer, parameters
from flm_jax.aged_adam import AgedAdamState
from flm_jax.grow import Part
from flm_jax.grow.errors import GrowthError, UnknownStateError
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.training.step import skipping_non_finite
from tests.grow.growths import assert_equal, drawn_params, is_new, of_old, old_entries, over_rows, resized
from tests.models import small_config

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::flm_jax.grow.MomentsWarning"),
]

SOURCE = small_config(vocab_size=8, d_model=6, num_heads=2, head_dim=2, d_ff=4)
# Under µP the final norm's gradients fall to 2/3 as the width grows to 3/2.
MASKED = decide(SOURCE, resized(SOURCE, embed=9, heads=3, mlp=5, layers=3), "msg")
# Gradients of copies halve, but for those of half of the FFN units, which have none.
COPIED = decide(SOURCE, resized(SOURCE, embed=12, heads=4, mlp=6), "hypercloning")
PARAMS = drawn_params(SOURCE)


def of_layers(params: Any) -> Any:
    """True for the blocks' parameters, False for all else."""
    return {name: jax.tree.map(lambda _: name == "layers", part) for name, part in params.items()}  # noqa: B023


def labels(params: Any) -> Any:
    return jax.tree.map(lambda inside: "blocks" if inside else "rest", of_layers(params))


def never(*args: Any, **extra: Any) -> Any:
    return jnp.bool_(False)


class Case(NamedTuple):
    """An optimizer, and the power of the gradient that each of its moments averages."""

    tx: optax.GradientTransformation
    degrees: dict[str, int] = {}  # noqa: RUF012


adam, MOMENTS = optax.adam(1e-3), {"mu": 1, "nu": 2}
CASES = {
    "adamw of ours": Case(optimizer.adamw(SOURCE, optimizer.warmup_cosine(1e-3, 100)), MOMENTS),
    "skipping": Case(skipping_non_finite(optimizer.adamw(SOURCE, 1e-3)), MOMENTS),
    "adam": Case(adam, MOMENTS),
    "amsgrad": Case(optax.amsgrad(1e-3), {**MOMENTS, "nu_max": 2}),
    "belief": Case(optax.adabelief(1e-3), MOMENTS),
    "lion": Case(optax.lion(1e-3), {"mu": 1}),
    "momentum": Case(optax.sgd(1e-3, momentum=0.9), {"trace": 1}),
    "rmsprop": Case(optax.rmsprop(1e-3), {"nu": 2}),
    "centred rmsprop": Case(optax.rmsprop(1e-3, centered=True, momentum=0.9), {**MOMENTS, "trace": 1}),
    "average of updates": Case(optax.chain(adam, optax.ema(0.9)), {**MOMENTS, "ema": 0}),
    "adafactor": Case(optax.adafactor(1e-3, momentum=0.9), {"v": 2, "ema": 0}),  # too small to be factored
    "accumulating": Case(optax.MultiSteps(adam, 4).gradient_transformation(), {**MOMENTS, "acc_grads": 1}),
    "if finite": Case(optax.apply_if_finite(adam, 3), MOMENTS),
    "conditional": Case(optax.conditionally_transform(adam, never), MOMENTS),
    "conditionally masked": Case(optax.conditionally_mask(adam, never), MOMENTS),
    "injected": Case(
        optax.inject_hyperparams(optax.adam)(optax.linear_schedule(1e-3, 0, 10), eps=1e-6), MOMENTS
    ),
    "scheduled": Case(optax.chain(adam, optax.scale_by_schedule(optax.linear_schedule(1, 0, 10))), MOMENTS),
    "noisy": Case(optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), adam), MOMENTS),
    # What of each moment is elsewhere has holes; the parts of a partition come together below.
    "masked": Case(optax.masked(adam, of_layers)),
    "masked by branches": Case(optax.masked(adam, {name: name == "layers" for name in PARAMS})),
    "factored by branches": Case(
        optax.masked(
            optax.adafactor(1e-3, min_dim_size_to_factor=2), {name: name == "layers" for name in PARAMS}
        )
    ),
    "partition": Case(optax.partition({"blocks": adam, "rest": optax.sgd(1e-3, momentum=0.9)}, labels)),
    "factored": Case(optax.adafactor(1e-3, min_dim_size_to_factor=2, momentum=0.9)),
}
of_case = pytest.mark.parametrize("name", CASES)


def fields(state: Any) -> Iterator[tuple[str, Any]]:
    """Every field of every state in it, by name."""
    if hasattr(state, "_fields"):
        for name in state._fields:
            yield name, getattr(state, name)
            yield from fields(getattr(state, name))
    elif isinstance(state, tuple | list):
        for part in state:
            yield from fields(part)
    elif isinstance(state, dict):
        for part in state.values():
            yield from fields(part)


def filled(state: Any) -> Any:
    """The state as it may be in mid-run: counts at 7, moments of every size."""
    rng = np.random.default_rng(3)

    def fill(leaf: Any) -> Any:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if not leaf.ndim:
            return jnp.full_like(leaf, 7)
        if jnp.issubdtype(leaf.dtype, jnp.integer):  # births
            return jnp.asarray(rng.integers(0, 7, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.random(leaf.shape) + 0.1, leaf.dtype)

    return jax.tree.map(fill, state)


def init_of(name: str, plan: GrowthPlan) -> Any:
    """The state of the grown model's optimizer, as shapes."""
    tx = CASES[name].tx
    if name in ("adamw of ours", "skipping"):
        tx = optimizer.adamw(plan.target, optimizer.warmup_cosine(1e-3, 100) if name[0] == "a" else 1e-3)
        tx = skipping_non_finite(tx) if name == "skipping" else tx
    return jax.eval_shape(tx.init, drawn_params(plan.target))


@of_case
@pytest.mark.parametrize("policy", ["carry", "age", "asymmetric", "reset"])
def test_the_grown_state_is_the_grown_optimizers(name: str, policy: str) -> None:
    """Structure, shapes and dtypes, by shapes alone; what Adam corrects without ages is refused those policies."""
    for plan in (MASKED, COPIED):
        state, wanted = jax.eval_shape(CASES[name].tx.init, PARAMS), init_of(name, plan)

        def grow_it(state: Any, plan: GrowthPlan = plan, wanted: Any = wanted) -> Any:
            return plan.opt_state(state, policy, like=wanted)

        if policy in ("age", "asymmetric") and _corrects_without_ages(state):
            with pytest.raises(
                GrowthError, match=r"needs an optimizer that knows ages, but \w+ has one count"
            ):
                jax.eval_shape(grow_it, state)
            continue
        found = jax.eval_shape(grow_it, state)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(
            lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), found, wanted
        )


def _corrects_without_ages(state: Any) -> bool:
    kinds = (
        optax.ScaleByAdamState,
        optax.ScaleByAmsgradState,
        optax.ScaleByBeliefState,
        optax.FactoredState,
    )
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kinds))
    return any(isinstance(part, kinds) for part in parts)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.degrees])
def test_moments_grow_by_the_power_of_the_gradient_and_the_rest_is_kept(name: str) -> None:
    """Old entries times s or s squared, new ones 0 under a mask; copies have their source's, times its own s."""
    state = filled(CASES[name].tx.init(PARAMS))
    degrees = CASES[name].degrees
    # What wraps Adam or is a relative of it would show nothing in the second that it does not in the first.
    like_adam = "mu" in degrees and name not in ("adam", "adamw of ours")
    for plan in (MASKED,) if like_adam else (MASKED, COPIED):
        found = list(fields(jax.jit(plan.opt_state)(state)))
        seen = set()
        for (field, before), (other, after) in zip(fields(state), found, strict=True):
            assert field == other
            if field in degrees:
                check_moment(plan, before, after, degrees[field])
                seen.add(field)
            elif getattr(before, "ndim", None) == 0:
                assert before == after, field
        assert seen == set(degrees)


def check_moment(plan: GrowthPlan, before: Any, after: Any, degree: int) -> None:
    def one(row: parameters.Parameter, old: Any, new: Any) -> None:
        expected = np.asarray(old, np.float64)
        for dim, axis in enumerate(row.axes):
            if axis in plan.maps:
                expected = np.take(expected, plan.maps[axis].source, axis=dim)
                if plan is MASKED:
                    keep = ~plan.maps[axis].is_new
                    expected = expected * keep.reshape([-1 if i == dim else 1 for i in range(expected.ndim)])
        weight = np.asarray(plan.gradient_weight(row), np.float64)
        np.testing.assert_allclose(new, expected * weight**degree, rtol=1e-6)

    over_rows(one, SOURCE, before, after)


def test_the_gradient_weights_are_those_of_the_chain_rule() -> None:
    """By hand: the folded norm's 2/3; a half for what is copied as it is, all for what is split; arrays in part."""
    weights = over_rows(MASKED.gradient_weight, MASKED.target)
    assert weights["final_norm"] == {"scale": pytest.approx(2 / 3), "bias": pytest.approx(2 / 3)}
    assert set(jax.tree.leaves((weights["layers"], weights["token_embedding"]))) == {1.0}
    weights = over_rows(COPIED.gradient_weight, COPIED.target)
    assert weights["token_embedding"]["embedding"] == weights["final_norm"]["scale"] == 0.5
    attention, mlp = weights["layers"]["attention"], weights["layers"]["mlp"]
    assert (attention["query_kernel"], attention["out_kernel"], attention["out_bias"]) == (0.5, 0.5, 0.5)
    shares = np.array([1, 1, 2, 2, 1, 1]) / 2
    np.testing.assert_array_equal(np.ravel(mlp["wi_kernel"]), shares)
    np.testing.assert_array_equal(np.ravel(mlp["wi_bias"]), shares)
    assert mlp["wo_kernel"] == 0.5


def test_parts_of_a_partition_grow_each_as_its_own() -> None:
    state = filled(CASES["partition"].tx.init(PARAMS))
    found = jax.jit(COPIED.opt_state)(state)
    blocks, rest = (found.inner_states[name].inner_state[0] for name in ("blocks", "rest"))
    before, other = (state.inner_states[name].inner_state[0] for name in ("blocks", "rest"))
    wo = [part.mu["layers"]["mlp"]["wo_bias"] for part in (before, blocks)]
    np.testing.assert_allclose(wo[1], np.tile(wo[0], 2) / 2, rtol=1e-6)
    table = [part.trace["token_embedding"]["embedding"] for part in (other, rest)]
    np.testing.assert_allclose(table[1], np.tile(table[0], 2) / 2, rtol=1e-6)
    assert isinstance(rest.trace["layers"]["mlp"]["wo_bias"], optax.MaskedNode)


@pytest.mark.parametrize("name", ["accumulating", "injected", "noisy", "adamw of ours"])
def test_reset_begins_moments_anew_and_keeps_clocks(name: str) -> None:
    state = filled(CASES[name].tx.init(PARAMS))
    found = jax.jit(lambda state: MASKED.opt_state(state, "reset"))(state)
    for field, value in fields(found):
        if field in CASES[name].degrees:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(value))
    begun, kept = {
        "accumulating": lambda: ([found.mini_step, found.inner_opt_state[0].count], found.gradient_step),
        "injected": lambda: ([found.inner_state[0].count], found.count),
        "noisy": lambda: ([found[1][0].count], found[0].count),
        "adamw of ours": lambda: ([found[1].count], found[-1].count),
    }[name]()
    assert all(int(count) == 0 for count in begun) and int(kept) == 7


@pytest.mark.parametrize("policy", ["carry", "age", "asymmetric", "reset"])
def test_policies_decide_what_copies_have(policy: str) -> None:
    state = filled(CASES["adamw of ours"].tx.init(PARAMS))[1]
    found = jax.jit(lambda state: COPIED.opt_state(state, policy))(state)
    count, births = int(found.count), found.births["mlp"]
    source, is_copy = COPIED.maps["mlp"].source, COPIED.maps["mlp"].is_new
    if policy == "carry":
        np.testing.assert_array_equal(births, state.births["mlp"][source])
    elif policy == "reset":
        assert count == 0 and not np.any(births)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((found.mu, found.nu)))
        return
    else:
        np.testing.assert_array_equal(births, np.where(is_copy, 7, state.births["mlp"][source]))
        for moments in (found.mu, found.nu):
            for leaf, new in zip(jax.tree.leaves(moments), jax.tree.leaves(is_new(COPIED)), strict=True):
                assert not np.any(np.asarray(leaf)[new]) and np.all(np.asarray(leaf)[~new] != 0)
    assert count == 7
    for moments, before, degree in ((found.mu, state.mu, 1), (found.nu, state.nu, 2)):
        expected = over_rows(
            lambda row, old: np.asarray(old) * of_old(COPIED, row, COPIED.gradient_weight(row)) ** degree,  # noqa: B023
            COPIED.target,
            before,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), old_entries(COPIED, moments), expected
        )


class Momentum(NamedTuple):
    """Of an optimizer that the library has never seen."""

    velocity: Any
    clock: Any = 0


def test_a_state_that_is_not_known_is_refused() -> None:
    for state in (Momentum(PARAMS), (optax.EmptyState(), Momentum(PARAMS)), {"a": Momentum(PARAMS)}):
        with pytest.raises(
            UnknownStateError, match=r"type Momentum .*register_state\(Momentum, .*Trainer.opt"
        ):
            MASKED.opt_state(state)
    wrapped = optax.MaskedState(Momentum(PARAMS))
    with pytest.raises(UnknownStateError, match="type Momentum"):
        MASKED.opt_state(wrapped)
    lbfgs = jax.eval_shape(optax.scale_by_lbfgs(2).init, PARAMS)
    with pytest.raises(UnknownStateError, match="type ScaleByLBFGSState"):
        MASKED.opt_state(lbfgs)


def test_a_state_can_be_made_known() -> None:
    class Known(NamedTuple):
        velocity: Any
        clock: Any

    for wrong in ({"velocity": 1}, {"velocity": 1, "clock": Part.KEPT, "more": 1}):
        with pytest.raises(
            GrowthError, match=r"register_state\(Known\) must say of every field.*clock.*veloc"
        ):
            grow.register_state(Known, **wrong)  # type: ignore[arg-type]
    grow.register_state(Known, velocity=2, clock=Part.COUNT)
    found = jax.jit(MASKED.opt_state)(Known(PARAMS, jnp.int32(7)))
    check_moment(MASKED, PARAMS, found.velocity, 2)
    assert int(found.clock) == 7
    assert int(MASKED.opt_state(Known(None, jnp.int32(7)), "reset").clock) == 0


def test_the_state_of_another_optimizer_is_not_taken_for_the_targets() -> None:
    state = optax.adam(1e-3).init(PARAMS)
    target = drawn_params(MASKED.target)
    for tx, message in (
        (optax.lion(1e-3), "another structure .*both stages need the same optimizer"),
        (optax.adam(1e-3, mu_dtype=jnp.bfloat16), r"\.mu.* should be .* bfloat16, found .* float32"),
    ):
        with pytest.raises(GrowthError, match=message):
            jax.eval_shape(
                lambda state, tx=tx: MASKED.opt_state(state, like=jax.eval_shape(tx.init, target)), state
            )


@pytest.mark.parametrize("d_model", [3, 12])
def test_the_state_of_another_model_is_refused(d_model: int) -> None:
    """Smaller or larger: it must not come back padded with something."""
    other = resized(SOURCE, embed=d_model)
    state = optimizer.adamw(SOURCE, 1e-3).init(drawn_params(other))
    with pytest.raises(GrowthError, match=r"AgedAdamState.mu.*the plan's model has shape .* found"):
        MASKED.opt_state(state)
    state = optimizer.adamw(other, 1e-3).init(PARAMS)
    with pytest.raises(GrowthError, match=r"births\['embed'\]: the plan's source has 6 entries"):
        jax.eval_shape(MASKED.opt_state, state)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(
        GrowthError, match=r"'keep'.*expected one of carry, age, asymmetric, reset.*Stage.optimizer_state"
    ):
        MASKED.opt_state(optax.EmptyState(), "keep")


def test_adam_with_ages_is_told_from_optaxs() -> None:
    """The control of the refusal above: the same policy, with births."""
    state = jax.eval_shape(CASES["adamw of ours"].tx.init, PARAMS)
    assert isinstance(jax.eval_shape(lambda state: MASKED.opt_state(state, "age"), state)[1], AgedAdamState)
    assert_equal(jax.tree.map(jnp.shape, PARAMS), jax.tree.map(lambda leaf: leaf.shape, state[1].mu))
