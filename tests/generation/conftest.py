"""A checkpoint of a model that has learnt nothing, with its tokenizer."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optax
import pytest

from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import Checkpoints
from flm_jax.training.metadata import Metadata
from flm_jax.training.state import TrainState
from flm_jax.training.step import skipping_non_finite
from tests.models import random_params, small_config
from tests.prepared_data import VOCAB_SIZE, make_tokenizer, write_texts

MAX_LENGTH = 64


class Saved(NamedTuple):
    """A checkpoint and what reads its text."""

    model_dir: Path
    vocabulary: Vocabulary
    flags: list[str]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    directory = tmp_path_factory.mktemp("saved")
    vocabulary = make_tokenizer(directory, write_texts(directory / "texts", documents=100))
    config = small_config(vocab_size=VOCAB_SIZE, tied_readout=False, output_mult=0.2, max_length=MAX_LENGTH)
    params = random_params(config)
    state = TrainState(np.asarray(3, np.int32), params, skipping_non_finite(optax.sgd(0.1)).init(params))
    metadata = Metadata(config, 0, 8, "corpus", {"tokenizer": vocabulary.sha256})
    with contextlib.closing(Checkpoints(directory / "run")) as checkpoints:
        checkpoints.save(state, metadata)
    flags = [f"--model_dir={directory / 'run'}", f"--tokenizer={vocabulary.path}", "--max_new_tokens=6"]
    return Saved(directory / "run", vocabulary, flags)
