"""Checkpoints to export, made without a run."""

import contextlib
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax import Decoder, ModelConfig, parameters
from flm_jax.huggingface.fresh_state import fresh_state
from flm_jax.tasks.vocabulary import Vocabulary, train_tokenizer
from flm_jax.training.checkpoints import Checkpoints
from flm_jax.training.metadata import Metadata
from tests.models import random_tokens
from tests.prepared_data import english

DATA = {"length": 64, "tokenizer": "0f", "tasks": {"en": "1e"}}
LLAMA_CONSTANTS = {"parametrization": "standard", "input_mult": 1.0, "output_mult": 1.0}


def write(model_dir: Path, config: ModelConfig, params: Any, step: int = 7, **metadata: Any) -> Path:
    """`model_dir/checkpoint_<step>` of a run on prepared data; returns `model_dir`."""
    described = Metadata(config, **{"seed": 3, "batch_size": 4, "mixture": "en", "data": DATA, **metadata})
    with contextlib.closing(Checkpoints(model_dir)) as checkpoints:
        checkpoints.save(fresh_state(described, step, params), described)
    return model_dir


def tokenizer(path: Path) -> Vocabulary:
    """One of 400 pieces, in a new file."""
    draw = random.Random(4)
    return train_tokenizer([english(draw, 40) for _ in range(200)], path, 400)


def random_params(config: ModelConfig, seed: int = 0) -> Any:
    """Parameters of every kind away from zero and one, without compiling an initialisation."""
    rng = np.random.default_rng(seed)

    def draw(row: parameters.Parameter) -> jax.Array:
        gain = row.role in (parameters.Role.NORM_GAIN, parameters.Role.READOUT_GAIN)
        return jnp.asarray(gain + 0.2 * rng.standard_normal(row.shape(config)), config.param_dtype)

    return jax.tree.map(draw, parameters.table(config), is_leaf=parameters.is_parameter)


def trained(config: ModelConfig, params: Any, steps: int = 5) -> Any:
    """The parameters after a few steps of Adam on random text."""
    optimizer = optax.adam(1e-2)
    tokens = random_tokens(config, 4, 33)

    def loss(params: Any) -> jax.Array:
        logits = Decoder(config).apply({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(tokens[:, 1:])).mean()

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params
