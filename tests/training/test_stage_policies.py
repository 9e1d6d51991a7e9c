"""What a stage may say of its growth besides the method: moments, multipliers, and what is trained."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from flm_jax import optimizer
from flm_jax.grow.lineage import Lineage
from flm_jax.grow.schedule import Route
from flm_jax.tasks.history import History
from flm_jax.training.checkpoints import load_params
from flm_jax.training.leg import Leg
from flm_jax.training.metadata import CheckpointMismatchError
from flm_jax.training.trainer import Outcome, Trainer
from tests.grow.growths import largest_difference, old_entries
from tests.models import small_config
from tests.training import runs
from tests.training.test_growth import stage

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = small_config(vocab_size=512, d_model=16, num_heads=2, d_ff=24)
WIDE = dataclasses.replace(SMALL, d_model=32, num_heads=4, d_ff=48)
DEEP = dataclasses.replace(WIDE, num_layers=4)
STAGES = [
    stage(SMALL, steps=4),
    stage(
        WIDE,
        steps=4,
        method="sparkling",
        optimizer_state="asymmetric",
        rewarm_steps=3,
        multipliers="rederive",
    ),
    stage(DEEP, steps=4, method="llama_pro", trains="new"),
]


def trainer(model_dir: Path, prepared_dir: Path, stages: list = STAGES) -> Trainer:
    return dataclasses.replace(
        runs.trainer(model_dir, prepared_dir),
        stages=stages,
        checkpoint_period=100,
        schedule=optimizer.warmup_cosine,
    )


@pytest.fixture(scope="module")
def run(prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_dir = tmp_path_factory.mktemp("policies")
    assert trainer(model_dir, prepared_dir).run() is Outcome.FINISHED
    return model_dir


def test_only_what_is_new_is_trained(run: Path) -> None:
    before, after = (load_params(run, step)[1] for step in (8, 12))
    lineage = Lineage.from_json(load_params(run, 12)[0].growth_record)
    plan = lineage.records[-1].plan
    kept = old_entries(plan, after)
    assert largest_difference(kept, before) == 0
    wo = np.asarray(after["layers"]["mlp"]["wo_kernel"])
    # Zero when it was added; the layers between the old, at places 1 and 3.
    assert np.all(np.any(wo[[1, 3]] != 0, axis=(1, 2)))


def test_copies_part_under_asymmetric_moments(run: Path) -> None:
    params = load_params(run, 8)[1]
    wi = np.asarray(params["layers"]["mlp"]["wi_kernel"])
    assert np.max(np.abs(wi[..., :24] - wi[..., 24:])) > 1e-5


def test_multipliers_are_rederived(run: Path) -> None:
    metadata = load_params(run, 8)[0]
    lineage = Lineage.from_json(metadata.growth_record)
    assert lineage.records[0].multipliers == "rederive"
    fresh = optimizer.width_multipliers(metadata.config)
    found = lineage.multipliers(metadata.config)
    assert found.learning_rate["layers"] == fresh.learning_rate["layers"]
    assert found.weight_decay["layers"]["mlp"]["wi_kernel"] == pytest.approx(32 / 256)


def test_a_stage_with_other_multipliers_is_refused(run: Path, prepared_dir: Path) -> None:
    stages = [STAGES[0], dataclasses.replace(STAGES[1], multipliers="carry"), STAGES[2]]
    with pytest.raises(CheckpointMismatchError, match=r"Stage\.multipliers = 'rederive', found 'carry'"):
        trainer(run, prepared_dir, stages).run()


def test_a_stage_rewarms_what_is_new_and_nothing_else() -> None:
    """With the same gradient everywhere, the first update of the new is 1.3 / 3 of that of the old."""
    route = Route.of(STAGES, 64)
    lineage = route.grown(Lineage(), 4, 4, 32)
    made = {}

    def make(config: object, learning_rate: object, **settings: object) -> object:
        made.update(settings)
        return optimizer.adamw(config, learning_rate, **settings)  # type: ignore[arg-type]

    history = History.begin("en", 8)
    Leg(route, Lineage(), make, optimizer.warmup_cosine, history)  # type: ignore[arg-type]
    assert "rewarm_steps" not in made
    leg = Leg(route, lineage, make, optimizer.warmup_cosine, history)  # type: ignore[arg-type]
    assert made["rewarm_steps"] == 3 and made["rewarm_since"] == 4
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), leg.abstract_state.params)
    state = leg.optimizer.init(params)
    adam = state.inner_state[1]
    births = {axis: np.where(route.plans[0].maps[axis].is_new, 4, 0) if axis in route.plans[0].maps else born
              for axis, born in adam.births.items()}  # fmt: skip
    adam = adam._replace(count=np.int32(4), births=births)
    inner = (
        *state.inner_state[:1],
        adam,
        *state.inner_state[2:-1],
        state.inner_state[-1]._replace(count=np.int32(4)),
    )
    gradient = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e-3, leaf.dtype), params)
    updates, _ = leg.optimizer.update(gradient, state._replace(inner_state=inner), params)
    bias = np.asarray(updates["layers"]["mlp"]["wi_bias"])[0]
    correction = [(1 - b**5) / (1 - b) for b in (0.9, 0.95)]
    # Both have moments of one gradient; the old ones' are corrected as five updates old.
    old = (1 / correction[0]) / np.sqrt(1 / correction[1])
    assert bias[30] / bias[0] == pytest.approx(1.3 / 3 / old, rel=1e-3)
