"""An imported model in the runs that it is for: trained on, and grown between two runs, on the user's own data."""

import dataclasses
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from flm_jax import LanguageModel, cli
from flm_jax.grow.schedule import Stage
from flm_jax.huggingface.exporting import Export
from flm_jax.huggingface.importing import Import
from flm_jax.training import continuation
from flm_jax.training.checkpoints import load_params
from flm_jax.training.metadata import mismatches
from flm_jax.training.trainer import Outcome
from tests.huggingface import checkpoints
from tests.huggingface.checkpoints import random_params
from tests.huggingface.folders import LLAMA_FIELDS, folder, llama_weights
from tests.training import runs
from tests.training.conftest import no_measuring as no_measuring
from tests.training.conftest import prepared_dir as prepared_dir

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a row for each piece of the tests' tokenizer."""
    root = tmp_path_factory.mktemp("imported")
    weights = llama_weights()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.random.default_rng(2).normal(0, 0.1, (512, 24)).astype(np.float32)
    Import(folder(root / "in", {**LLAMA_FIELDS, "vocab_size": 512}, weights)).write(root / "run")
    return root / "run"


def test_training_begins_from_it(imported: Path, prepared_dir: Path, tmp_path: Path) -> None:
    """Any prepared data and any seed will do; the loss at the first step is that of the imported parameters."""
    shutil.copytree(imported, tmp_path / "run")  # where the run removes its older checkpoints
    config = load_params(imported)[0].config
    trainer = runs.trainer(
        tmp_path / "run", prepared_dir, config=config, train_steps=4, checkpoint_period=2, seed=11
    )
    assert trainer.run() is Outcome.FINISHED
    metadata, params, step = load_params(tmp_path / "run")
    assert step == 4 and metadata.data["tasks"] and metadata.data["length"] == 64
    assert metadata.seed == 11 and not metadata.has_read_nothing
    assert metadata.data_history.sequences(4) == 4 * metadata.batch_size
    assert metadata.data["tokenizer"] is not None
    before = load_params(imported)[1]
    moved = jax.tree.map(lambda new, old: float(abs(new - old).max()), params, before)
    assert all(0 < size < 0.1 for size in jax.tree.leaves(moved))


def test_what_a_run_from_it_may_choose(imported: Path) -> None:
    """Seed, batch size, mixture, data: nothing was read. The model, and its tokenizer where one was given, stay."""
    unknown = load_params(imported)[0]
    data = {"length": 64, "tokenizer": "0f", "tasks": {"en": "1e"}}
    wanted = dataclasses.replace(unknown, seed=7, batch_size=32, mixture="en", data=data)
    known = dataclasses.replace(unknown, data={**unknown.data, "tokenizer": "a1"})
    for data_is in ("same", "other", "new"):
        assert mismatches(unknown, wanted, data_is) == []
        assert "'0f' from PREPARED_DIR, found 'a1'" in "".join(mismatches(known, wanted, data_is))
        narrow = dataclasses.replace(wanted, config=dataclasses.replace(wanted.config, d_ff=8))
        assert "d_ff" in "".join(mismatches(unknown, narrow, data_is))
        assert "RANDOM_SEED" in "".join(mismatches(wanted, unknown, "same"))  # of a run, they stay
    # Under t5x sequences are counted by the run's batch size, not by the one that stands in the import.
    assert continuation.history(str(imported), 32, "en", first_sequence=0).sequences(10) == 320


def test_a_growth_of_it_is_trained_on(imported: Path, prepared_dir: Path, tmp_path: Path) -> None:
    target = {"d_model": 48, "d_ff": 80, "num_layers": 3}
    grow = ["grow", f"--checkpoint={imported}", f"--out={tmp_path / 'grown'}", "--method=composable"]
    assert (
        cli.main([*grow, *(f"--gin.config.ModelConfig.{name}={size}" for name, size in target.items())]) == 0
    )
    config = load_params(imported)[0].config
    first = runs.trainer(tmp_path / "grown", prepared_dir, config=config).stages[0]
    wider = LanguageModel(dataclasses.replace(config, **target))
    second = dataclasses.replace(first, model=wider, method="composable", steps=5)
    assert isinstance(second, Stage)
    trainer = runs.trainer(tmp_path / "grown", prepared_dir, stages=[first, second])
    assert trainer.run() is Outcome.FINISHED
    metadata, params, step = load_params(tmp_path / "grown")
    assert step == 5 and metadata.config.d_model == 48
    assert all(math.isfinite(float(abs(leaf).max())) for leaf in jax.tree.leaves(params))
    Export(tmp_path / "grown").write(tmp_path / "out")


def test_an_export_of_ours_goes_on_at_its_step(prepared_dir: Path, tmp_path: Path) -> None:
    """With fresh moments: counters say that the updates were made, and entries are born there."""
    trainer = runs.trainer(tmp_path / "run", prepared_dir, train_steps=4)
    assert trainer.run() is Outcome.FINISHED
    Export(tmp_path / "run").write(tmp_path / "out")
    Import(tmp_path / "out").write(tmp_path / "back")
    state = runs.stored(tmp_path / "back", 4)
    counts = {name: value for name, value in state.items() if name.endswith("['count']")}
    births = {name: value for name, value in state.items() if "births" in name}
    assert counts and births
    assert all((value == 4).all() for value in [*counts.values(), *births.values()])
    moments = [value for name, value in state.items() if "['mu']" in name or "['nu']" in name]
    assert moments and not any(value.any() for value in moments)
    assert runs.trainer(tmp_path / "back", prepared_dir, train_steps=6).run() is Outcome.FINISHED


def test_generating_needs_no_more_than_the_record(tmp_path: Path) -> None:
    """A checkpoint whose tokenizer is recorded refuses another after the way out and back, too."""
    config = runs.CONFIG
    Export(checkpoints.write(tmp_path / "run", config, random_params(config))).write(tmp_path / "out")
    Import(tmp_path / "out").write(tmp_path / "back")
    with pytest.raises(ValueError, match="expected the tokenizer with SHA-256 0f"):
        load_params(tmp_path / "back")[0].check_tokenizer("00", "x")
