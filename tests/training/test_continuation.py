"""Checkpoints of runs under t5x, which have their metadata in MODEL_DIR; t5x itself is not needed to read them."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from flm_jax.grow.errors import GrowthError
from flm_jax.optimizer import width_multipliers
from flm_jax.training import continuation
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from flm_jax.training.checkpoints import load_params
from flm_jax.training.metadata import RUN_METADATA, CheckpointMismatchError
from flm_jax.training.trainer import Outcome
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

LARGER = dataclasses.replace(runs.CONFIG, d_model=32, d_ff=64)


@pytest.fixture(scope="module")
def ours(prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 5, 10 and 12, all kept."""
    model_dir = tmp_path_factory.mktemp("ours")
    assert runs.trainer(model_dir, prepared_dir, checkpoints_to_keep=9).run() is Outcome.FINISHED
    return model_dir


@pytest.fixture
def as_t5x_leaves_it(ours: Path, tmp_path: Path) -> Path:
    """Checkpoints of steps 5 and 10 without metadata, which lie beside them."""
    model_dir = tmp_path / "t5x"
    for step in (5, 10):
        checkpoint = model_dir / f"checkpoint_{step}"
        shutil.copytree(ours / checkpoint.name, checkpoint)
        shutil.rmtree(checkpoint / "metadata")
    metadata = continuation.find(ours / "checkpoint_10").metadata
    (model_dir / RUN_METADATA).write_text(json.dumps(metadata.to_json()))
    return model_dir


def test_what_is_found(as_t5x_leaves_it: Path, ours: Path) -> None:
    for model_dir, of_t5x in ((as_t5x_leaves_it, True), (ours, False)):
        found = continuation.find(model_dir / "checkpoint_10")
        assert (found.step, found.of_t5x, found.directory.name) == (10, of_t5x, "checkpoint_10")
        assert found.metadata.config == runs.CONFIG
    assert continuation.find(as_t5x_leaves_it).step == 10  # the newest
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        continuation.find(as_t5x_leaves_it / "checkpoint_7")


def test_without_its_metadata_it_is_refused(as_t5x_leaves_it: Path) -> None:
    (as_t5x_leaves_it / RUN_METADATA).unlink()
    with pytest.raises(CheckpointMismatchError, match=r"no metadata.*summarize_config_fn"):
        continuation.find(as_t5x_leaves_it)


def test_our_trainer_goes_on_and_keeps_what_is_there(
    as_t5x_leaves_it: Path, ours: Path, prepared_dir: Path
) -> None:
    run = runs.trainer(as_t5x_leaves_it, prepared_dir, checkpoints_to_keep=1)
    assert run.run() is Outcome.FINISHED
    runs.assert_bitwise_equal(runs.stored(as_t5x_leaves_it, 12), runs.stored(ours, 12))
    names = {path.name for path in as_t5x_leaves_it.glob("checkpoint_*")}
    assert names == {"checkpoint_5", "checkpoint_10", "checkpoint_12"}
    assert not continuation.find(as_t5x_leaves_it / "checkpoint_12").of_t5x


def test_other_data_is_refused(as_t5x_leaves_it: Path, prepared_dir: Path) -> None:
    """Also where nothing is known of it but the tokenizer, as of a run that streamed its text."""
    path = as_t5x_leaves_it / RUN_METADATA
    values = json.loads(path.read_text())
    values["data"] = {"tokenizer": values["data"]["tokenizer"]}
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointMismatchError, match=r"length of the prepared data .* found None"):
        runs.trainer(as_t5x_leaves_it, prepared_dir).run()


def test_it_grows_by_methods_without_a_mask(as_t5x_leaves_it: Path, tmp_path: Path) -> None:
    """And takes what it needs to go on from the grown checkpoint: config, multipliers, place in the data."""
    with pytest.raises(GrowthError, match=r"does not know the step.*such as lemon, found 'msg'"):
        CheckpointGrowth(as_t5x_leaves_it, LARGER, Settings())
    growth = CheckpointGrowth(as_t5x_leaves_it, LARGER, Settings(method="lemon", batch_size=4))
    grown = growth.write(tmp_path / "grown")
    assert grown.name == "checkpoint_10"
    assert continuation.model_config(str(grown)) == growth.plan.target
    assert continuation.model_config(str(grown)).norm_epsilon != runs.CONFIG.norm_epsilon
    assert continuation.sequences(str(grown)) == 80
    before = continuation.find(as_t5x_leaves_it).metadata.data_history
    assert continuation.history(str(grown), 4, runs.MIXTURE, 80) == before.resized(10, 4)
    changed = continuation.history(str(grown), 4, "en", 80, 3)
    assert changed == before.changed(10, 4, "en", 3)
    assert (
        continuation.mixture(changed, "en", 80) == changed and continuation.mixture(changed, "en", 0) == "en"
    )
    anew = continuation.history(str(grown), 4, "en", 0)
    assert [segment.batch_size for segment in anew.segments] == [8, 4] and anew.tasks == ["en"]
    found = continuation.find(grown)
    assert found.metadata.batch_size == 4 and not found.of_t5x
    expected = growth.plan.multipliers(width_multipliers(runs.CONFIG))
    np.testing.assert_equal(continuation.multipliers(str(grown)), expected)


def test_its_parameters_alone(as_t5x_leaves_it: Path, ours: Path) -> None:
    metadata, params, step = load_params(as_t5x_leaves_it)
    _, expected, _ = load_params(ours, 10)
    assert step == 10 and metadata.config == runs.CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, expected)
