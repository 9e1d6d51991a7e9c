"""Stages: their lengths, their learning rates, and what is refused."""

import dataclasses
from typing import Any

import pytest

from flm_jax import LanguageModel, gin_setup, optimizer, presets
from flm_jax.grow.errors import GrowthError, ShrinkingError, UnknownMethodError
from flm_jax.grow.lineage import Lineage
from flm_jax.grow.schedule import Route, Stage
from flm_jax.tasks.history import History
from tests.models import small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = small_config()
LARGE = dataclasses.replace(SMALL, d_model=32, num_layers=3)


def stage(config: Any = SMALL, **changes: Any) -> Stage:
    settings = {"model": LanguageModel(config), "steps": 100, "batch_size": 8, "learning_rate": 1e-2,
                "warmup_steps": 10, "ramp_steps": 20}  # fmt: skip
    return Stage(**{**settings, **changes})


def rates(second: Stage, updates: list[int], schedule: Any = optimizer.warmup_cosine) -> list[float]:
    """The rates of the second stage after these many updates of its own."""
    route = Route.of([stage(), second], 64)
    rate = route.learning_rate(1, 100, 100, schedule)
    return [float(rate(100 + count)) for count in updates]


def test_tokens_are_rounded_up_to_steps() -> None:
    assert stage(steps=None, tokens=8 * 64 * 3).num_steps(64) == 3
    assert stage(steps=None, tokens=8 * 64 * 3 + 1).num_steps(64) == 4


def test_keep_goes_on_as_if_nothing_had_happened() -> None:
    whole = optimizer.warmup_cosine(1e-2, 150, 10)
    expected = [float(whole(100 + count)) for count in (0, 25, 49)]
    assert rates(stage(LARGE, steps=50), [0, 25, 49]) == pytest.approx(expected)


def test_keep_under_wsd_is_wsd_continuation() -> None:
    def wsd(peak: float, total_steps: int, warmup_steps: int) -> Any:
        return optimizer.warmup_stable_decay(peak, total_steps, 20, warmup_steps)

    found = rates(stage(LARGE, steps=50, learning_rate=5e-3), [0, 29, 40, 50], wsd)
    assert found == pytest.approx([5e-3, 5e-3, 2.5e-3, 0], abs=1e-9)


def test_rewarmup_begins_the_schedule_anew() -> None:
    found = rates(
        stage(LARGE, steps=50, policy="rewarmup", warmup_steps=5, learning_rate=4e-3), [0, 1, 5, 50]
    )
    assert found == pytest.approx([0, 0.8e-3, 4e-3, 0], abs=1e-9)


def test_rewind_puts_the_clock_back() -> None:
    """To the end of the first warmup unless told otherwise; it still ends at the end of the run."""
    assert rates(stage(LARGE, steps=50, policy="rewind"), [0, 50]) == pytest.approx([1e-2, 0], abs=1e-9)
    later = optimizer.warmup_cosine(1e-2, 40 + 50, 10)
    found = rates(stage(LARGE, steps=50, policy="rewind", rewind_to=40), [0, 20])
    assert found == pytest.approx([float(later(40)), float(later(60))])


def test_skipped_updates_do_not_move_the_clock() -> None:
    route = Route.of([stage(), stage(LARGE, policy="rewarmup", warmup_steps=5)], 64)
    rate = route.learning_rate(1, 100, 93, optimizer.warmup_cosine)  # 7 of the 100 batches were skipped
    assert float(rate(93)) == 0 and float(rate(98)) == pytest.approx(1e-2)


def test_positions_and_costs_follow_the_batch_sizes() -> None:
    route = Route.of([stage(), stage(LARGE, batch_size=4)], 64)
    history = History.begin("en", 8).changed(100, 4, "en")
    assert history.sequences(100) == 800 and history.sequences(103) == 812
    lineage = route.grown(Lineage(), 100, 98, history.sequences(100))
    expected = 64 * (800 * SMALL.flops_per_token(64) + 12 * LARGE.flops_per_token(64))
    assert lineage.flops(812, 64, route.config(1)) == pytest.approx(expected)
    assert (lineage.step, lineage.updates, lineage.ramp_end) == (100, 98, 120)


def test_the_plan_is_shown_with_parameters_tokens_and_flops() -> None:
    shown = Route.of([stage(), stage(LARGE, batch_size=4, slope=-0.1)], 64).describe()
    tokens, flops = 100 * 8 * 64, 100 * 4 * 64 * LARGE.flops_per_token(64)
    for expected in (f"{SMALL.num_params:,}", f"{LARGE.num_params:,}", f"{tokens:,}", f"{flops:.3g}", "<= 100",
                     "msg, ramp 20", "stage 1 -> 2"):  # fmt: skip
        assert expected in shown, shown


def test_the_papers_run_has_the_papers_tokens() -> None:
    """245.37, 39.64 and 26.54 billion tokens (table 1 of the paper), with its three models."""
    import gin

    from flm_jax.training import trainer

    files = ["models/flm_101b", "data/corpus", "runs/pretrain", "growth/flm_101b"]
    gin_setup.parse([f"gin_configs/{name}.gin" for name in files], ["MODEL_DIR=x"])
    route = Route.of(gin.get_configurable(trainer.Trainer)().stages, 2048)
    tokens = [route.stages[i].num_steps(2048) * route.stages[i].batch_size * 2048 for i in range(3)]
    assert [round(count / 1e9, 2) for count in tokens] == [245.37, 39.64, 26.54]
    wanted = [presets.flm_16b(), presets.flm_51b(), presets.flm_101b()]
    assert [route.config(i) for i in range(3)] == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"steps": None},
            r"either Stage.steps \(TRAIN_STEPS\) or Stage.tokens for stage 1, found steps=None",
        ),
        ({"tokens": 5}, "found steps=100 and tokens=5"),
        ({"batch_size": 0}, "Stage.batch_size of stage 1 must be a whole number of at least 1, found 0"),
        ({"steps": 1e3}, "Stage.steps of stage 1 must be a whole number of at least 1, found 1000.0"),
        ({"learning_rate": 0.0}, "Stage.learning_rate of stage 1 must be a positive number"),
        ({"slope": 0.1}, "Stage.slope of stage 1 must be negative"),
        ({"slope": "x"}, "Stage.slope of stage 1 must be negative"),
        (
            {"slope_window": 200},
            "Stage.slope_window of stage 1 must be a share of the tokens between 0 and 1",
        ),
        ({"learning_rate": None}, "Stage.learning_rate of stage 1 must be a positive number, found None"),
        ({"mesh": 1}, "Stage.mesh of stage 1 must be a MeshShape, found 1"),
        ({"model": SMALL}, "Stage.model of stage 1 must be a LanguageModel, found ModelConfig"),
        ({"policy": "cosine"}, "Stage.policy of stage 1 must be one of keep, rewind, rewarmup"),
        (
            {"optimizer_state": "copy"},
            "Stage.optimizer_state of stage 1 must be one of carry, age, asymmetric, reset",
        ),
        ({"multipliers": "mup"}, "Stage.multipliers of stage 1 must be one of carry, rederive"),
        ({"trains": "old"}, "Stage.trains of stage 1 must be one of all, new, found 'old'"),
        ({"rewarm_steps": 0}, "Stage.rewarm_steps of stage 1 must be a whole number of at least 1, found 0"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Route.of([stage(**changes)], 64)


def test_a_stage_that_cannot_be_grown_is_named() -> None:
    with pytest.raises(ShrinkingError, match=r"stage 3: .* d_model smaller"):
        Route.of([stage(), stage(LARGE), stage(SMALL)], 64)
    with pytest.raises(UnknownMethodError, match="stage 2: unknown growth method 'lotus'"):
        Route.of([stage(), stage(LARGE, method="lotus")], 64)
    for method in (None, ["mask"], {"embed": ["mask"]}, {"d_model": "mask"}):
        with pytest.raises(UnknownMethodError, match=r"stage 2: .*Stage\.method"):
            Route.of([stage(), stage(LARGE, method=method)], 64)
    with pytest.raises(ValueError, match=r"Trainer.stages must be a list of at least one Stage"):
        Route.of(stage(), 64)  # type: ignore[arg-type]
    with pytest.raises(GrowthError, match=r"stage 2: .*Stage.ramp_steps to between 1 .* found 0"):
        Route.of([stage(), stage(LARGE, ramp_steps=0)], 64)
    Route.of([stage(), stage(LARGE, ramp_steps=0, method="lemon")], 64)
