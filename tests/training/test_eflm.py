"""eFLM's recipe: a trained model, grown or not, goes on with language and teacher signals in every batch."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from flm_jax import LanguageModel, gin_setup
from flm_jax.grow.schedule import Stage
from flm_jax.tasks.mixture import Alternating
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.teacher import Classification
from flm_jax.training.run_log import read_metrics
from tests.prepared_data import write_jsonl
from tests.training import runs
from tests.training.runs import trainer

pytestmark = pytest.mark.usefixtures("quick_compilation")

LARGE = dataclasses.replace(runs.CONFIG, num_layers=3)
BOTH = {"en": 40, "zh": 40, "signals": 20}


@pytest.fixture(scope="module")
def with_signals(prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared folder of other tests, with a task of teacher signals."""
    folder = tmp_path_factory.mktemp("signals")
    shutil.copytree(prepared_dir, folder / "prepared")
    words = ["ka", "lo", "mi", "tan"]
    records = [{"text": f"{words[n % 4]} {words[n % 3]} {n}", "label": n % 2} for n in range(200)]
    source = JsonLines(
        str(write_jsonl(folder / "x.jsonl", records)),
        fields=None,
        validation_every=10,  # type: ignore[arg-type]
    )
    task = Classification(name="signals", source=source, statements={0: "{text} even ", 1: "{text} odd "})
    vocabulary = PreparedTask(prepared_dir / "en").vocabulary
    prepare([task], vocabulary, 64, folder / "prepared", num_workers=1)
    return folder / "prepared"


def stage(config: object, steps: int = 4, **settings: object) -> Stage:
    model = LanguageModel(config)  # type: ignore[arg-type]
    return Stage(
        model=model, steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=2, ramp_steps=2,
        mesh=runs.FirstDevices(), **settings,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("grown", [False, True])
def test_it_goes_on_from_a_checkpoint_with_both_signals(
    tmp_path: Path, with_signals: Path, grown: bool
) -> None:
    base = [stage(runs.CONFIG), stage(LARGE)] if grown else [stage(runs.CONFIG)]
    end = 4 * len(base)
    trainer(tmp_path / "run", with_signals, stages=base).run()
    before = runs.stored(tmp_path / "run", end)
    eflm = stage(LARGE if grown else runs.CONFIG, steps=6, method="none", mixture=BOTH, policy="rewarmup")
    trainer(tmp_path / "run", with_signals, stages=[*base, eflm], eval_period=6).run()
    runs.assert_bitwise_equal(before, runs.stored(tmp_path / "run", end))  # what it began with is kept
    after = [record for record in read_metrics(tmp_path / "run") if record["step"] > end]
    steps = [record for record in after if "train/loss" in record]
    assert len(steps) == 6
    for record in steps:  # every batch has both
        assert 0 <= record["train/signals/accuracy"] <= 1 and record["train/en/loss"] > 0
    assert steps[0]["train/learning_rate"] < steps[2]["train/learning_rate"]  # it warms up again
    evaluated = [record for record in after if "eval/signals/accuracy" in record]
    assert evaluated[-1]["eval/signals/loss"] < evaluated[0]["eval/signals/loss"]
    # Told the whole plan at once, the run has the same bits.
    trainer(tmp_path / "once", with_signals, stages=[*base, eflm], eval_period=6).run()
    runs.assert_bitwise_equal(runs.stored(tmp_path / "run", end + 6), runs.stored(tmp_path / "once", end + 6))


def test_in_turns(tmp_path: Path, with_signals: Path) -> None:
    """FreeLM's original form: batches of language, then a batch of teacher signals."""
    turns = Alternating({"language": {"en": 1, "zh": 1}, "teacher": "signals"}, (2, 1))
    trainer(tmp_path, with_signals, stages=[stage(runs.CONFIG, steps=6)], mixture=turns).run()
    steps = [record for record in read_metrics(tmp_path) if "train/loss" in record]
    assert ["train/signals/loss" in record for record in steps] == [False, False, True] * 2
    assert ["train/en/loss" in record for record in steps] == [True, True, False] * 2


def test_the_recipe_is_one_stage_more() -> None:
    files = ["models/flm_tiny", "data/bilingual", "runs/pretrain", "runs/eflm"]
    bindings = ["MODEL_DIR=x", "TRAIN_STEPS=10", "EFLM_STEPS=5"]
    gin_setup.parse([f"gin_configs/{file}.gin" for file in files], bindings)
    import gin

    from flm_jax.training.trainer import Trainer

    made = gin.get_configurable(Trainer)()
    base, eflm = made.stages
    assert (base.steps, eflm.steps, eflm.method, eflm.policy) == (10, 5, "none", "rewarmup")
    assert base.mixture is None and "nli" in eflm.mixture and eflm.model.config == base.model.config
