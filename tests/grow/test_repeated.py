"""Four growths in a row by four methods: the function of the first model is that of the last.

With the constants, the moments and the ages that each growth hands on to the next.
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import LanguageModel, ModelConfig
from flm_jax.aged_adam import AgedAdamState
from flm_jax.grow.lineage import GrowthRecord, Lineage
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.optimizer import width_multipliers
from flm_jax.training.state import TrainState
from tests.grow.growths import assert_equal, config64, drawn_params, llama64, old_entries, over_rows, resized
from tests.models import random_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES: dict[str, Any] = {"vocab_size": 16, "d_model": 6, "d_ff": 5, "head_dim": 4, "num_layers": 1}
# The masked growth comes last: a mask of an earlier one is open by then, and the function another.
CHAINS: dict[str, tuple[ModelConfig, list[tuple[dict[str, int], Any]]]] = {
    "flm": (
        config64(**SIZES, num_heads=1),
        [
            ({"embed": 9, "heads": 2, "layers": 2}, "lemon"),
            ({"embed": 18, "mlp": 8}, "hypercloning"),
            ({"vocab": 20, "layers": 3, "mlp": 9}, "net2net"),
            ({"embed": 20, "heads": 3, "mlp": 10, "layers": 4}, "msg"),
        ],
    ),
    "llama": (
        llama64(**SIZES),
        [
            ({"embed": 8, "queries": 3, "layers": 2}, "pad"),
            ({"embed": 10, "heads": 3}, "composable"),
            ({"embed": 20, "mlp": 8}, "hypercloning"),
            ({"embed": 21, "queries": 4, "mlp": 9, "layers": 3}, "msg"),
        ],
    ),
}
UPDATES = 10  # between two growths


class Chain(NamedTuple):
    """The plans, and the state before the first growth and after each."""

    plans: list[GrowthPlan]
    states: list[TrainState]


def planned(name: str) -> list[GrowthPlan]:
    config, growths = CHAINS[name]
    plans = []
    for sizes, method in growths:
        plans.append(decide(config, resized(config, **sizes), method))
        config = plans[-1].target
    return plans


@pytest.fixture(scope="module", params=CHAINS)
def chain(request: pytest.FixtureRequest) -> Chain:
    with jax.enable_x64(True):
        plans = planned(request.param)
        source = plans[0].source
        axes = set(jax.tree.leaves(over_rows(lambda row: row.axes, source)))
        births = {axis: np.zeros(source.size(axis), np.int32) for axis in axes}
        adam = AgedAdamState(
            jnp.int32(0), drawn_params(source, 1), jax.tree.map(jnp.square, drawn_params(source, 2)), births
        )
        states = [TrainState(jnp.int32(0), drawn_params(source), adam)]
        for seed, plan in enumerate(plans):
            state = states[-1]
            later = state._replace(opt_state=state.opt_state._replace(count=jnp.int32(UPDATES * (seed + 1))))
            states.append(jax.jit(plan)(later, jax.random.key(seed, impl="rbg")))
        return Chain(plans, states)


def logits(config: ModelConfig, params: Any, batch: Any, mask: GrowthMask | None) -> np.ndarray:
    model = LanguageModel(config)
    return np.asarray(jax.jit(lambda params: model.logits(params, batch, mask))(params))


def test_the_function_is_that_of_the_first_model(chain: Chain) -> None:
    with jax.enable_x64(True):
        source = chain.plans[0].source
        batch = random_batch(source, 2, 12)
        before = logits(source, chain.states[0].params, batch, None)
        last, params = chain.plans[-1], chain.states[-1].params
        after = logits(last.target, params, batch, last.mask(0.0))[..., : source.vocab_size]
        difference = np.max(np.abs(after - before)) / np.max(np.abs(before))
        print(f"four growths: {difference:.2g}")
        assert difference <= 1e-12
        # The control: with the last growth's mask open it is another.
        opened = logits(last.target, params, batch, last.mask(1.0))[..., : source.vocab_size]
        assert np.max(np.abs(opened - before)) / np.max(np.abs(before)) > 1e-2


def test_moments_are_carried_through_all(chain: Chain) -> None:
    """An entry that was there from the start has its moment times the gradient weights of all growths."""
    first, last = (state.opt_state for state in (chain.states[0], chain.states[-1]))
    for name, degree in (("mu", 1), ("nu", 2)):
        moments = getattr(last, name)
        for plan in reversed(chain.plans):
            moments = over_rows(
                lambda row, value: np.asarray(value) / plan.gradient_weight(row) ** degree,  # noqa: B023
                plan.target,
                moments,
            )
            moments = old_entries(plan, moments)
        expected = getattr(first, name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), moments, expected)
    assert int(last.count) == UPDATES * len(chain.plans)


def test_births_say_which_growth_an_index_came_with(chain: Chain) -> None:
    """Copies whose moments are carried are as old as their source."""
    for number, plan in enumerate(chain.plans):
        before, after = (jax.tree.map(np.asarray, chain.states[number + i].opt_state.births) for i in (0, 1))
        for axis, axis_map in plan.maps.items():
            expected = before[axis][axis_map.source]
            if not plan.chosen[axis].carries_moments:
                expected = np.where(axis_map.is_new, UPDATES * (number + 1), expected)
            np.testing.assert_array_equal(after[axis], expected)
    found = chain.states[-1].opt_state.births
    wanted = {
        "flm": {"embed": 6 * [0] + 3 * [10] + 6 * [0] + 3 * [10] + 2 * [40], "mlp": 9 * [0] + [40]},
        "llama": {
            "embed": 2 * (6 * [0] + 2 * [10] + 2 * [20]) + [40],
            "queries": [0, 0, 10, 40],
            "heads": [0, 0, 20],
        },
    }["llama" if chain.plans[0].source.grouped else "flm"]
    for axis, births in wanted.items():
        np.testing.assert_array_equal(found[axis], births)


def test_the_record_gives_back_targets_and_multipliers(chain: Chain) -> None:
    """Through JSON: norm epsilon and denominator have been changed again and again, and multipliers are arrays."""
    policies = ["carry", "rederive", "carry", "carry"]
    lineage = Lineage(
        tuple(
            GrowthRecord(
                step=10 * number,
                updates=9 * number,
                sequences=80 * number,
                ramp_steps=5 if plan.masked else 0,
                source=plan.source,
                target=plan.target,
                operators=dict(plan.operators),
                multipliers=policy,
            )
            for number, (plan, policy) in enumerate(zip(chain.plans, policies, strict=True), 1)
        )
    )
    read = Lineage.from_json(json.loads(json.dumps(lineage.to_json())))
    assert read == lineage
    for record, plan in zip(read.records, chain.plans, strict=True):
        assert record.plan.target == plan.target
        assert record.plan.operators == plan.operators
        for axis, axis_map in plan.maps.items():
            np.testing.assert_array_equal(record.plan.maps[axis].source, axis_map.source)
    mults = width_multipliers(chain.plans[0].source)
    for plan, policy in zip(chain.plans, policies, strict=True):
        mults = plan.multipliers(mults, policy)
    assert_equal(read.multipliers(read.records[-1].target), mults)
    assert any(np.ndim(leaf) for leaf in jax.tree.leaves(mults))


def test_norm_constants_accumulate() -> None:
    flm, llama = (planned(name)[-1].target for name in ("flm", "llama"))
    # Only lemon's step scales epsilon: copies and masks leave the statistics.
    assert flm.norm_epsilon == pytest.approx(1e-5 * 6 / 9) and flm.norm_denominator is None
    # `pad` keeps the denominator 6, which everything after it widens with the model.
    assert llama.norm_denominator == pytest.approx(6 * (10 / 8) * (20 / 10) * (21 / 20))
    assert llama.norm_epsilon == pytest.approx(1e-5 * 8 / 10)
