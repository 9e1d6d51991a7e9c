"""Small models and batches that several tests share."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import Decoder, ModelConfig, parameters


def small_config(**changes: Any) -> ModelConfig:
    """Two layers; heads times head_dim is not d_model, so that nothing relies on their being equal."""
    base = ModelConfig(
        vocab_size=96,
        d_model=24,
        num_layers=2,
        num_heads=4,
        head_dim=8,
        d_ff=40,
        max_length=64,
        dtype="float32",
        output_mult=2.0,
        input_mult=1.5,
    )
    return dataclasses.replace(base, **changes)


LLAMA = {
    "num_kv_heads": 2,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "use_bias": False,
    "tied_readout": False,
    "xpos_scale_base": None,
}
_CHOICES = ("num_kv_heads", "norm", "activation", "use_bias", "tied_readout")
# Every pair of choices occurs in one of these blocks; the first is FLM's.
COVERING_BLOCKS = [
    dict(zip(_CHOICES, block, strict=True))
    for block in (
        (None, "layernorm", "gelu", True, True),
        (None, "rmsnorm", "swiglu", False, False),
        (1, "layernorm", "gelu", False, False),
        (1, "rmsnorm", "swiglu", True, True),
        (2, "layernorm", "swiglu", True, False),
        (2, "rmsnorm", "gelu", False, True),
        (4, "layernorm", "swiglu", False, True),
        (4, "rmsnorm", "gelu", True, False),
    )
]
ALL_BLOCKS = [
    dict(zip(_CHOICES, block, strict=True))
    for block in itertools.product(
        (None, 1, 2, 4), ("layernorm", "rmsnorm"), ("gelu", "swiglu"), (True, False), (True, False)
    )
]


def random_params(config: ModelConfig, seed: int = 0) -> Any:
    """Parameters away from their initial values, norms and biases too, so that no test rests on zeros."""
    params = Decoder(config).init(jax.random.key(seed), jnp.ones((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(seed)

    def shake(row: parameters.Parameter, value: jax.Array) -> jax.Array:
        spread = 0.3 if "norm" in row.role.value or "readout" in row.role.value else 0.2
        return jnp.asarray(value + spread * rng.standard_normal(value.shape), config.param_dtype)

    return jax.tree.map(shake, parameters.table(config), params, is_leaf=parameters.is_parameter)


def random_tokens(config: ModelConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """`[batch, length]` decoder inputs: token 0, then text."""
    tokens = np.random.default_rng(seed).integers(3, config.vocab_size, (batch, length)).astype(np.int32)
    tokens[:, 0] = 0
    return tokens


def random_batch(config: ModelConfig, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A packed batch: two documents a row, a little padding at the end, some tokens without loss."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, config.vocab_size, (batch, length)).astype(np.int32)
    split, end = length // 3, length - 2
    segments = np.zeros((batch, length), np.int32)
    segments[:, :split], segments[:, split:end] = 1, 2
    targets = np.where(segments > 0, targets, 0)
    inputs = np.roll(targets, 1, axis=1)
    inputs[:, [0, split]] = 0
    inputs = np.where(segments > 0, inputs, 0)
    positions = np.concatenate([np.arange(split), np.arange(end - split), np.zeros(length - end, np.int32)])
    return {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": ((segments > 0) & (rng.random((batch, length)) < 0.8)).astype(np.int32),
        "decoder_segment_ids": segments,
        "decoder_positions": np.broadcast_to(positions, (batch, length)).astype(np.int32),
    }
