"""Copies that nothing tells apart stay equal for ever; every way out of that makes them differ."""

import warnings
from typing import Any

import jax
import numpy as np
import pytest

from flm_jax import ModelConfig, grow
from flm_jax.grow import SymmetryWarning
from flm_jax.grow.operators import OPERATORS
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.optimizer import width_multipliers
from flm_jax.parameters import Parameter
from tests.grow.growths import config64, drawn_params, over_rows, resized
from tests.grow.trajectories import BEFORE, batches, go_on, grown_run, started, updater
from tests.models import small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SOURCE = config64(vocab_size=32, d_model=8, num_heads=2, d_ff=6, head_dim=4)
DOUBLED = {"heads": 4, "mlp": 12, "embed": 16}
KEY = jax.random.key(1, impl="rbg")


def doubled(names: dict[str, str], source: ModelConfig = SOURCE) -> GrowthPlan:
    return decide(source, resized(source, **{axis: DOUBLED[axis] for axis in names}), names)


def everywhere(name: str) -> GrowthPlan:
    return doubled(dict.fromkeys(DOUBLED, name))


def test_planning_copies_that_nothing_tells_apart_warns() -> None:
    source = small_config(d_model=8)
    target = resized(source, embed=16, mlp=80)
    with pytest.warns(SymmetryWarning, match=r"copies on mlp, embed compute the same.*use duplicate_noise"):
        plan = grow.plan(source, target, "sparkling")
    assert plan.symmetric == ("mlp", "embed") and "WARNING: the copies on mlp, embed" in plan.explain()
    with pytest.warns(SymmetryWarning, match="copies on mlp compute"):
        grow.plan(source, target, {"mlp": "duplicate", "embed": "uneven"})


@pytest.mark.parametrize("axis", OPERATORS)
def test_no_other_operator_warns(axis: str) -> None:
    for norm in ("layernorm", "rmsnorm"):
        source = small_config(d_model=8, num_kv_heads=2, norm=norm)
        target = resized(source, **{axis: 2 * source.size(axis)})
        for name in set(OPERATORS[axis]) - {"duplicate"}:
            if OPERATORS[axis][name].unsuitable(source, target) is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    assert grow.plan(source, target, {axis: name}).symmetric == ()


def test_a_growth_that_was_planned_before_does_not_warn_again() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert everywhere("duplicate").symmetric == ("heads", "mlp", "embed")


def apart(plan: GrowthPlan, params: Any) -> dict[str, float]:
    """For each axis how far its copies are from each other, over the largest entry of that parameter.

    In what has no axis that is split, to which noise is added: biases, norms and tables begin as exact copies.
    """
    found = dict.fromkeys(plan.maps, 0.0)

    def look(row: Parameter, value: Any) -> None:
        value = np.asarray(value)
        for dim, axis in enumerate(row.axes):
            if axis in plan.maps and not set(row.fan_in) & set(plan.maps):
                source = plan.maps[axis].source
                first = np.array([np.flatnonzero(source == s)[0] for s in source])
                difference = np.abs(value - np.take(value, first, axis=dim))
                found[axis] = max(found[axis], float(np.max(difference) / np.max(np.abs(value))))

    over_rows(look, plan.target, params)
    return found


def trained(plan: GrowthPlan, count: int, policy: str = "carry", rewarm_steps: int = 0) -> dict[str, float]:
    """How far copies are apart after so many updates."""
    run = grown_run(plan, started(plan.source), policy)
    before = apart(plan, run.params)
    assert max(before.values()) == 0
    multipliers = plan.multipliers(width_multipliers(plan.source))
    update = updater(plan.target, rewarm_steps=rewarm_steps)
    found = apart(plan, go_on(update, run, batches(plan.source, count, BEFORE), multipliers).params)
    print(plan.operators, policy, found)
    return found


def test_copies_stay_equal() -> None:
    with jax.enable_x64(True):
        assert max(trained(everywhere("duplicate"), 60).values()) <= 1e-12


@pytest.mark.parametrize("name", ["duplicate_noise", "uneven"])
def test_copies_that_are_told_apart_part(name: str) -> None:
    with jax.enable_x64(True):
        assert min(trained(everywhere(name), 60).values()) > 1e-4


def test_copies_of_units_drawn_at_random_part() -> None:
    with jax.enable_x64(True):
        assert min(trained(doubled({"heads": "net2net", "mlp": "net2net"}), 20).values()) > 1e-4


@pytest.mark.parametrize(("policy", "rewarm_steps"), [("age", 0), ("asymmetric", 10)])
def test_an_optimizer_that_treats_copies_differently_parts_them(policy: str, rewarm_steps: int) -> None:
    with jax.enable_x64(True):
        assert min(trained(everywhere("duplicate"), 20, policy, rewarm_steps).values()) > 1e-4


def test_the_noise_is_a_tenth_of_the_initialisation_and_cancels() -> None:
    """On what is split, and on nothing else."""
    with jax.enable_x64(True):
        source = config64(vocab_size=16, d_model=32, num_heads=2, d_ff=48)
        plans = [
            decide(source, resized(source, mlp=96, embed=64), dict.fromkeys(("mlp", "embed"), name))
            for name in ("duplicate", "duplicate_noise")
        ]
        plain, noisy = (jax.jit(plan.params)(drawn_params(source), KEY) for plan in plans)

        def check(row: Parameter, one: jax.Array, other: jax.Array) -> None:
            noise = np.asarray(other - one)
            split = [axis for axis in row.fan_in if axis in plans[0].maps]
            if not split:
                np.testing.assert_array_equal(noise, 0)
                return
            dim = row.axes.index(split[0])
            halves = np.split(noise, 2, axis=dim)
            np.testing.assert_allclose(halves[0], -halves[1], atol=1e-15)
            # Two draws less their mean have half the variance of one.
            wanted = 0.1 * row.init_std(plans[0].target) / np.sqrt(2)
            assert np.std(noise) == pytest.approx(wanted, rel=0.1)

        over_rows(check, plans[0].target, plain, noisy)
