"""Runs that grow, in this process: what is kept at a boundary, in a ramp, and by a stop at any step."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flm_jax import LanguageModel, generation, optimizer
from flm_jax.grow.errors import (
    FixedFieldError,
    FunctionChangedError,
    GrowthError,
    ShrinkingError,
    UnknownStateError,
)
from flm_jax.grow.lineage import Lineage
from flm_jax.grow.operators import METHODS
from flm_jax.grow.schedule import Route, Stage
from flm_jax.partitioning import MeshShape
from flm_jax.tasks.history import History
from flm_jax.tasks.reader import Reader
from flm_jax.training.checkpoints import load_params
from flm_jax.training.feed import Feed
from flm_jax.training.leg import Leg
from flm_jax.training.metadata import CheckpointMismatchError
from flm_jax.training.run import Run
from flm_jax.training.run_log import read_metrics
from flm_jax.training.step import skipping_non_finite, train_step
from flm_jax.training.trainer import Outcome, Trainer
from tests.models import small_config
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = small_config(vocab_size=512)
MEDIUM = dataclasses.replace(SMALL, d_model=32, d_ff=64, num_heads=5, num_layers=3)
LARGE = dataclasses.replace(MEDIUM, d_model=40, num_layers=5, num_heads=6)


def stage(config: Any, **changes: Any) -> Stage:
    settings = {"steps": 5, "batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 1, "ramp_steps": 3,
                "mesh": runs.FirstDevices()}  # fmt: skip
    return Stage(LanguageModel(config), **{**settings, **changes})


def growing(model_dir: Path, prepared_dir: Path, **changes: Any) -> Trainer:
    """Five steps small, five medium under a ramp of three, five large on half the batch without a mask."""
    stages = [stage(SMALL), stage(MEDIUM), stage(LARGE, method="lemon", batch_size=4, policy="rewarmup")]
    trainer = runs.trainer(model_dir, prepared_dir)
    settings = {"stages": stages, "checkpoint_period": 100, "schedule": optimizer.warmup_cosine}
    return dataclasses.replace(trainer, **{**settings, **changes})


@contextlib.contextmanager
def stopping_at(*steps: int) -> Iterator[None]:
    """Runs in this process get a SIGTERM behind these steps."""
    one_step = Run._one_step

    def stopping(self: Run, batch: Any) -> None:
        one_step(self, batch)
        if self.last_step in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_one_step", stopping)
        yield


def growths(model_dir: Path) -> list[dict[str, float]]:
    return [record for record in read_metrics(model_dir) if "growth/gap" in record]


@pytest.fixture(scope="module")
def uninterrupted(prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_dir = tmp_path_factory.mktemp("uninterrupted")
    assert growing(model_dir, prepared_dir, eval_period=6).run() is Outcome.FINISHED
    return model_dir


def test_nothing_is_lost_at_a_boundary(uninterrupted: Path) -> None:
    found = growths(uninterrupted)
    assert [(record["step"], record["growth/stage"]) for record in found] == [(5, 2), (10, 3)]
    for record in found:
        assert abs(record["growth/gap"]) <= 1e-5 and record["growth/logits"] <= 5e-6
        assert 4 < record["growth/loss_before"] < 7


def test_each_stage_is_evaluated_before_it_grows(uninterrupted: Path) -> None:
    steps = [record["step"] for record in read_metrics(uninterrupted) if "eval/en/loss" in record]
    assert steps == [0, 5, 6, 10, 12, 15]


def test_the_ends_of_stages_are_kept(uninterrupted: Path) -> None:
    kept = sorted(int(path.name.split("_")[1]) for path in uninterrupted.glob("checkpoint_*"))
    assert kept == [5, 10, 15]
    assert [load_params(uninterrupted, step)[0].config.d_model for step in kept] == [24, 32, 40]


def test_the_record_tells_the_whole_story(uninterrupted: Path) -> None:
    metadata, params, _ = load_params(uninterrupted)
    lineage = Lineage.from_json(metadata.growth_record)
    assert [(r.step, r.updates, r.sequences, r.ramp_steps) for r in lineage.records] == [
        (5, 5, 40, 3),
        (10, 10, 80, 0),
    ]
    assert metadata.config.norm_epsilon == SMALL.norm_epsilon * (32 / 40)  # of the maskless width growth
    assert metadata.config == lineage.records[-1].target
    assert params["final_norm"]["scale"].shape == (40,)
    last = [record for record in read_metrics(uninterrupted) if "train/tokens" in record][-1]
    assert last["train/tokens"] == (40 + 40 + 20) * 64
    expected = sum(
        sequences * 64 * config.flops_per_token(64)
        for sequences, config in ((40, SMALL), (40, MEDIUM), (20, LARGE))
    )
    assert last["train/flops"] == pytest.approx(expected)


def test_the_data_goes_on_where_it_stood(
    prepared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    take = Feed.take

    def taken(feed: Feed) -> Any:
        batch = take(feed)
        seen.append(np.asarray(batch["decoder_target_tokens"]))
        return batch

    monkeypatch.setattr(Feed, "take", taken)
    growing(tmp_path, prepared_dir).run()
    reader = Reader(prepared_dir, runs.MIXTURE, {"targets": 64}, seed=0)
    np.testing.assert_array_equal(np.concatenate(seen), reader.batch(0, 100)["decoder_target_tokens"])


@pytest.mark.parametrize("stop_at", [[3], [5], [6, 7], [8, 10, 11]], ids=str)
def test_a_stop_at_any_step_loses_nothing(
    stop_at: list[int], uninterrupted: Path, prepared_dir: Path, tmp_path: Path
) -> None:
    """In a stage, at its end, just behind a boundary, in a ramp, at the ramp's end."""
    with stopping_at(*stop_at):
        for step in stop_at:
            assert growing(tmp_path, prepared_dir, eval_period=6).run() is Outcome.STOPPED
            assert load_params(tmp_path)[2] == step
    assert growing(tmp_path, prepared_dir, eval_period=6).run() is Outcome.FINISHED
    runs.assert_bitwise_equal(runs.stored(tmp_path, 15), runs.stored(uninterrupted, 15))
    assert {5, 10, 15} <= {int(path.name.split("_")[1]) for path in tmp_path.glob("checkpoint_*")}

    def story(directory: Path) -> list[dict[str, float]]:
        records = read_metrics(directory)
        return [{k: v for k, v in record.items() if not k.startswith("speed/")} for record in records]

    assert sorted(story(tmp_path), key=str) == sorted(story(uninterrupted), key=str)


def test_a_kill_between_boundary_and_growth_grows_the_same(
    uninterrupted: Path, prepared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_grow", dies)
        growing(tmp_path, prepared_dir, eval_period=6).run()
    assert load_params(tmp_path)[2] == 5 and not growths(tmp_path)
    growing(tmp_path, prepared_dir, eval_period=6).run()
    runs.assert_bitwise_equal(runs.stored(tmp_path, 15), runs.stored(uninterrupted, 15))


def test_after_the_ramp_the_compiled_step_has_no_mask_in_it() -> None:
    route = Route.of([stage(SMALL), stage(MEDIUM)], 64)
    lineage, history = route.grown(Lineage(), 5, 5, 40), History.begin("en", 8)
    leg = Leg(route, lineage, optimizer.adamw, optimizer.warmup_cosine, history)
    with leg.context():
        masked, plain = (leg.trace(masked).lower().as_text() for masked in (True, False))
        never_grown = jax.jit(
            train_step(LanguageModel(leg.config), leg.optimizer, gradient_shardings=leg.gradient_shardings),
            donate_argnums=0,
            out_shardings=(leg.shardings, NamedSharding(leg.mesh, PartitionSpec())),
        )
        batch = {name: jax.ShapeDtypeStruct((8, 64), np.int32, sharding=leg.batch_sharding) for name in
                 ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights", "decoder_segment_ids",
                  "decoder_positions")}  # fmt: skip
        assert plain == never_grown.lower(leg.abstract_state, batch).as_text()
    assert masked != plain


def test_the_mask_is_a_function_of_the_step() -> None:
    route = Route.of([stage(SMALL), stage(MEDIUM, steps=9, ramp_steps=4)], 64)
    lineage = route.grown(Lineage(), 5, 5, 40)
    values = [float(lineage.mask(step).embed[-1]) for step in range(5, 10)]  # type: ignore[union-attr, index]
    assert values == [0, 0.25, 0.5, 0.75, 1]
    assert [lineage.mask_at(step) is None for step in (7, 8, 9, 10)] == [False, False, True, True]
    assert Lineage().mask(3) is None and Lineage.from_json(lineage.to_json()) == lineage


def test_a_growth_that_changes_the_function_stops_the_run(
    prepared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # The readout's multiplier is not made up for.
        patch.setattr("flm_jax.grow.families.masked.readout_fold", lambda source, target: 1.0)
        with pytest.raises(
            FunctionChangedError, match=r"(?s)at step 5, growing to stage 2.*step 5.* is intact"
        ):
            growing(tmp_path, prepared_dir).run()
    assert load_params(tmp_path)[2] == 5 and load_params(tmp_path)[0].config == SMALL
    assert growing(tmp_path, prepared_dir).run() is Outcome.FINISHED


def test_bfloat16_runs_are_gated_in_float32(prepared_dir: Path, tmp_path: Path) -> None:
    low = [dataclasses.replace(config, dtype="bfloat16") for config in (SMALL, MEDIUM)]
    stages = [stage(low[0], steps=3), stage(low[1], steps=2, method="lemon")]
    growing(tmp_path, prepared_dir, stages=stages).run()
    (found,) = growths(tmp_path)
    assert abs(found["growth/gap"]) <= 1e-5
    assert abs(found["growth/own_precision_gap"]) <= 2e-3


def test_stacking_jumps_and_says_so(
    prepared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    deep = dataclasses.replace(SMALL, num_layers=4)
    growing(tmp_path, prepared_dir, stages=[stage(SMALL), stage(deep, steps=1, method="gstack")]).run()
    assert abs(growths(tmp_path)[0]["growth/gap"]) > 1e-5
    assert "NOT exact" in capsys.readouterr().out


def test_another_mesh_behind_the_boundary(prepared_dir: Path, tmp_path: Path) -> None:
    wide = dataclasses.replace(SMALL, d_model=32, num_heads=6)
    # At 3e-3 the rounding of other sums grows to 1.3e-5 behind the growth on one kind of CPU; here it is 1.4e-6.
    stages = [
        stage(SMALL, mesh=runs.FirstDevices(1, 1, 2), steps=3, learning_rate=1e-3),
        stage(wide, mesh=runs.FirstDevices(1, 2, 1), steps=3, learning_rate=1e-3, method="lemon"),
    ]
    growing(tmp_path / "meshes", prepared_dir, stages=stages).run()
    one = [dataclasses.replace(each, mesh=runs.FirstDevices()) for each in stages]
    growing(tmp_path / "one", prepared_dir, stages=one).run()
    curves = [
        [record["train/loss"] for record in read_metrics(tmp_path / name) if "train/loss" in record]
        for name in ("meshes", "one")
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_a_flat_loss_ends_a_stage(
    prepared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that is stopped inside the window fires at the same step."""
    stages = [stage(SMALL, steps=50, slope=-0.25, slope_window=0.5), stage(MEDIUM, steps=1, method="lemon")]
    growing(tmp_path / "whole", prepared_dir, stages=stages).run()
    boundary = growths(tmp_path / "whole")[0]["step"]
    slopes = {
        r["step"]: r.get("train/loss_slope") for r in read_metrics(tmp_path / "whole") if "train/loss" in r
    }
    # Counted from the end of the warmup at step 1: the window of half the tokens has its ten steps at step 19.
    assert 19 < boundary < 50 and slopes[boundary] >= -0.25
    assert all(slopes[step] is None for step in range(1, 19))
    assert all(slopes[step] < -0.25 for step in range(19, int(boundary)))

    with stopping_at(int(boundary) - 1):
        assert growing(tmp_path / "parts", prepared_dir, stages=stages).run() is Outcome.STOPPED
    growing(tmp_path / "parts", prepared_dir, stages=stages).run()
    end = int(boundary) + 1
    runs.assert_bitwise_equal(runs.stored(tmp_path / "whole", end), runs.stored(tmp_path / "parts", end))


def test_generation_in_mid_ramp_is_masked(prepared_dir: Path, tmp_path: Path) -> None:
    stages = [stage(SMALL), stage(MEDIUM, ramp_steps=5)]
    growing(tmp_path, prepared_dir, stages=stages, checkpoint_period=7).run()
    metadata, params, step = load_params(tmp_path, 7)
    mask = Lineage.from_json(metadata.growth_record).mask_at(step)
    assert mask is not None and float(mask.heads[-1]) == pytest.approx(0.4)  # type: ignore[index]
    model = LanguageModel(metadata.config)
    prompts = np.array([[0, 5, 6, 7]], np.int32)
    found = generation.generate(
        model.module,
        params,
        prompts,
        np.array([4]),
        3,
        jax.random.key(0),
        generation.Sampling(0.0),
        growth=mask,
    )
    tokens = np.concatenate([prompts, found.tokens], axis=1)
    logits = model.module.apply({"params": params}, tokens, growth=mask)
    np.testing.assert_array_equal(np.argmax(logits[0, 3:-1], axis=-1), found.tokens[0])


def novograd(config: Any, learning_rate: Any, multipliers: Any) -> optax.GradientTransformation:
    return optax.novograd(learning_rate)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: {"stages": [stage(MEDIUM), stage(SMALL)]}, ShrinkingError, "stage 2: .*ModelConfig.d_model"),
        (
            lambda t: {"stages": [stage(SMALL), stage(dataclasses.replace(MEDIUM, head_dim=16))]},
            FixedFieldError,
            "stage 2: growth cannot change head_dim",
        ),
        (lambda t: {"optimizer": novograd}, UnknownStateError, "ScaleByNovogradState .*Trainer.optimizer"),
        (
            lambda t: {"stages": [stage(SMALL), stage(MEDIUM, ramp_steps=9)]},
            GrowthError,
            "Stage.ramp_steps to between 1 and the stage's 5 steps; found 9",
        ),
        (
            lambda t: {"stages": [stage(SMALL), stage(MEDIUM, policy="rewarmup", warmup_steps=7)]},
            ValueError,
            "no room for 7 steps of warmup",
        ),
        (
            lambda t: {"stages": [stage(SMALL), stage(MEDIUM, mesh=MeshShape(1, 1, 8))]},
            ValueError,
            "cannot be split over mesh axis 'tensor'",
        ),
    ],
    ids=["shrinking", "head_dim", "optimizer", "ramp", "warmup", "mesh"],
)  # fmt: skip
def test_bad_schedules_are_refused_before_anything_is_written(
    tmp_path: Path, prepared_dir: Path, change: Callable, error: type[Exception], message: str
) -> None:
    trainer = growing(tmp_path / "run", prepared_dir)
    with pytest.raises(error, match=message):
        dataclasses.replace(trainer, **change(trainer)).run()
    assert not (tmp_path / "run").exists()


def test_a_stage_may_not_be_cut_short_in_its_ramp(prepared_dir: Path, tmp_path: Path) -> None:
    """It would end, or grow again, as a function that the next model does not have; nor may its method change."""
    first = [stage(SMALL), stage(MEDIUM, steps=5, ramp_steps=5)]
    with stopping_at(6):
        assert growing(tmp_path, prepared_dir, stages=first).run() is Outcome.STOPPED
    short = [stage(SMALL), stage(MEDIUM, steps=3, ramp_steps=3), stage(LARGE)]
    with pytest.raises(
        CheckpointMismatchError, match=r"end at step 8, while the mask .* Stage.steps .* to 5 or more"
    ):
        growing(tmp_path, prepared_dir, stages=short).run()
    other = [stage(SMALL), stage(MEDIUM, ramp_steps=5, method={**METHODS["msg"], "heads": "zero"})]
    with pytest.raises(CheckpointMismatchError, match=r"grown into stage 2 by .* but Stage.method of that"):
        growing(tmp_path, prepared_dir, stages=other).run()


def test_an_early_end_that_leaves_a_schedule_no_room_is_refused_at_once(
    prepared_dir: Path, tmp_path: Path
) -> None:
    def wsd(peak: float, total_steps: int, warmup_steps: int) -> Any:
        return optimizer.warmup_stable_decay(peak, total_steps, 60, warmup_steps)

    stages = [stage(SMALL, steps=100, slope=-0.1, slope_window=0.5), stage(MEDIUM, steps=40)]
    with pytest.raises(ValueError, match=r"a schedule of 5. steps has no room for 61 steps"):
        growing(tmp_path / "run", prepared_dir, stages=stages, schedule=wsd).run()
    stages = [stage(SMALL, steps=100, slope=-0.1, slope_window=0.5, warmup_steps=60), stage(MEDIUM)]
    with pytest.raises(
        ValueError, match=r"stage 1: .* step 60 .* is full at step 120, but the stage ends at 100"
    ):
        growing(tmp_path / "run", prepared_dir, stages=stages).run()
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_wants_all_stages_and_their_sizes(uninterrupted: Path, prepared_dir: Path) -> None:
    with pytest.raises(
        CheckpointMismatchError, match=r"has grown 2 times: expected at least 3 in Trainer\.stages, found 1"
    ):
        growing(uninterrupted, prepared_dir, stages=[stage(LARGE)]).run()
    other = dataclasses.replace(LARGE, d_model=48)
    stages = [stage(SMALL), stage(MEDIUM), stage(other, method="lemon", batch_size=4)]
    with pytest.raises(CheckpointMismatchError, match=r"d_model \(expected 48"):
        growing(uninterrupted, prepared_dir, stages=stages).run()


def test_the_optimizer_takes_what_growth_asks_for() -> None:
    """The folded final norm learns D/d times as fast, and matrices keep the rate of their first width."""
    route = Route.of([stage(SMALL), stage(MEDIUM)], 64)
    lineage = route.grown(Lineage(), 5, 5, 40)
    mults = lineage.multipliers(route.config(1))
    assert mults.learning_rate["final_norm"]["scale"] == pytest.approx(32 / 24)
    assert mults.epsilon["final_norm"]["bias"] == pytest.approx(24 / 32)
    assert mults.learning_rate["layers"]["mlp"]["wi_kernel"] == pytest.approx(256 / 24)
    skipping_non_finite(optimizer.adamw(route.config(1), 1e-3, multipliers=mults))
