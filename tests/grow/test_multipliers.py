"""The optimizer's multipliers through growths: carried, derived anew, and different along an axis."""

from typing import Any

import jax
import numpy as np
import pytest

from flm_jax import grow
from flm_jax.grow import GrowthError
from flm_jax.grow.lineage import GrowthRecord, Lineage
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.optimizer import Multipliers, width_multipliers
from flm_jax.parameters import Parameter
from tests.grow.growths import over_rows, resized
from tests.models import LLAMA, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = small_config(d_ff=2)
GROUPED = small_config(**LLAMA)


def of_wo(mults: Multipliers) -> np.ndarray:
    """The learning rate of the FFN's output matrix `[layers, mlp, embed]`, over the source's."""
    old = width_multipliers(SOURCE).learning_rate["layers"]["mlp"]["wo_kernel"]
    return np.ravel(mults.learning_rate["layers"]["mlp"]["wo_kernel"]) / old


def through(*growths: tuple[int, str]) -> Multipliers:
    """The multipliers after these growths of `mlp`, from 2 on."""
    config, mults = SOURCE, width_multipliers(SOURCE)
    for size, name in growths:
        plan = decide(config, resized(config, mlp=size), {"mlp": name})
        config, mults = plan.target, plan.multipliers(mults)
    return mults


@pytest.mark.parametrize(
    ("growths", "expected"),
    [
        ([(3, "duplicate")], [1 / 2, 1, 1 / 2]),
        # What is new has the mean of what was there, copies their source's share.
        ([(3, "duplicate"), (5, "zero")], [1 / 2, 1, 1 / 2, 2 / 3, 2 / 3]),
        ([(3, "duplicate"), (4, "mask")], [1 / 2, 1, 1 / 2, 2 / 3]),
        ([(3, "duplicate"), (6, "uneven")], [1 / 4, 1 / 2, 1 / 4, 1 / 4, 1 / 2, 1 / 4]),
        ([(3, "duplicate"), (4, "duplicate")], [1 / 4, 1, 1 / 2, 1 / 4]),
        # Where all are the same again, one number says so.
        ([(3, "duplicate"), (4, "net2net")], None),
        ([(4, "duplicate")], [1 / 2]),
        ([(4, "zero")], [1]),
    ],
)
def test_factors_along_an_axis_are_extended_by_the_next_growth(
    growths: list[tuple[int, str]], expected: list[float] | None
) -> None:
    if expected is None:  # whatever was drawn, the shares of a first unit's copies sum to the unit's
        source = decide(SOURCE, resized(SOURCE, mlp=3), {"mlp": "duplicate"}).maps["mlp"]
        drawn = decide(resized(SOURCE, mlp=3), resized(SOURCE, mlp=4), {"mlp": "net2net"}).maps["mlp"]
        origin = source.then(drawn).source
        np.testing.assert_allclose(np.bincount(origin, of_wo(through(*growths))), 1)
    else:
        np.testing.assert_allclose(of_wo(through(*growths)), expected)


def test_factors_along_an_axis_stand_beside_the_growth_of_other_axes() -> None:
    """More layers and a wider stream leave them where they are; their own axes are broadcast."""
    plan = decide(SOURCE, resized(SOURCE, mlp=3), {"mlp": "duplicate"})
    later = decide(plan.target, resized(plan.target, layers=4, embed=36, heads=6), "lemon")
    mults = later.multipliers(plan.multipliers(width_multipliers(SOURCE)))
    np.testing.assert_allclose(of_wo(mults), [1 / 2, 1, 1 / 2])
    for tree in mults:
        over_rows(lambda row, mult: np.broadcast_to(mult, row.shape(later.target)), later.target, tree)


CASES: dict[str, tuple[Any, dict[str, int], Any]] = {
    "msg": (SOURCE, {"embed": 36, "heads": 6, "mlp": 7, "layers": 3}, "msg"),
    "hypercloning": (GROUPED, {"embed": 48, "heads": 4, "mlp": 80}, "hypercloning"),
    "net2net": (GROUPED, {"heads": 3, "queries": 3, "mlp": 50}, "net2net"),
    "composable": (GROUPED, {"embed": 30, "heads": 3, "mlp": 50}, "composable"),
}


def of_case(case: str) -> tuple[GrowthPlan, Multipliers]:
    source, sizes, method = CASES[case]
    return decide(source, resized(source, **sizes), method), width_multipliers(source)


@pytest.mark.parametrize("case", CASES)
def test_carried_rates_times_decay_stay(case: str) -> None:
    """By value w, gradient s: rate x w, decay / w, epsilon x s, entry by entry."""
    plan, before = of_case(case)
    after = plan.multipliers(before)

    def check(row: Parameter, old: Any, new: Any, factor: Any) -> None:
        shape = row.shape(plan.target)
        np.testing.assert_allclose(np.broadcast_to(new, shape), np.broadcast_to(old * factor, shape))

    rates = over_rows(plan.rate, plan.target)
    over_rows(
        lambda row, *both: check(row, *both, plan.rate(row)),
        plan.target,
        before.learning_rate,
        after.learning_rate,
    )
    over_rows(
        lambda row, *both: check(row, *both, 1 / plan.rate(row)),
        plan.target,
        before.weight_decay,
        after.weight_decay,
    )
    over_rows(
        lambda row, *both: check(row, *both, plan.gradient_weight(row)),
        plan.target,
        before.epsilon,
        after.epsilon,
    )
    assert any(np.any(np.asarray(rate) != 1) for rate in jax.tree.leaves(rates))


@pytest.mark.parametrize("case", CASES)
def test_derived_anew_matrices_have_what_mup_gives_their_width(case: str) -> None:
    """And all else what is carried: tables, norms, biases; and every epsilon, which follows the gradients."""
    plan, before = of_case(case)
    carried, derived = (plan.multipliers(before, policy) for policy in ("carry", "rederive"))
    fresh = width_multipliers(plan.target)

    def check(row: Parameter, found: Any, kept: Any, new: Any) -> bool:
        np.testing.assert_array_equal(found, new if row.fan_in else kept)
        return bool(row.fan_in) and bool(np.any(np.asarray(kept) != new))

    for name in ("learning_rate", "weight_decay"):
        trees = (getattr(tree, name) for tree in (derived, carried, fresh))
        differs = over_rows(check, plan.target, *trees)
        # The two policies differ, or there would be nothing to choose; copies of all alike are where they do not.
        assert any(jax.tree.leaves(differs)) == (case != "hypercloning")
    jax.tree.map(np.testing.assert_array_equal, derived.epsilon, carried.epsilon)


def test_the_policy_of_each_growth_is_in_its_record() -> None:
    """Of two growths the first derives anew and the second carries: what the record gives is that."""
    first, before = of_case("msg")
    second = decide(first.target, resized(first.target, mlp=9), {"mlp": "duplicate"})
    lineage = Lineage(
        (
            GrowthRecord(1, 1, 8, 0, first.source, first.target, dict(first.operators), "rederive"),
            GrowthRecord(2, 2, 16, 0, second.source, second.target, dict(second.operators), "carry"),
        )
    )
    expected = second.multipliers(first.multipliers(before, "rederive"), "carry")
    jax.tree.map(np.testing.assert_array_equal, lineage.multipliers(second.target), expected)
    # The function does not depend on the policy: nothing of the model that runs does.
    assert lineage.records[0].plan.target == first.target


def test_an_unknown_policy_is_refused() -> None:
    plan, before = of_case("msg")
    with pytest.raises(GrowthError, match=r"'derive'.*expected one of carry, rederive.*Stage\.multipliers"):
        plan.multipliers(before, "derive")
    assert issubclass(grow.GrowthError, ValueError)
