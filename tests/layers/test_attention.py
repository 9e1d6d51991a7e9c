from typing import Any

import numpy as np
import pytest

from flm_jax import Decoder, ModelConfig
from flm_jax.layers.growth_mask import GrowthMask
from tests.models import random_params, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

GROUPED = {"num_kv_heads": 2}  # of four heads of 8


def changed(params: Any, **arrays: np.ndarray) -> Any:
    layers = params["layers"]
    return {**params, "layers": {**layers, "attention": {**layers["attention"], **arrays}}}


def logits(config: ModelConfig, params: Any, growth: GrowthMask | None = None) -> np.ndarray:
    return np.asarray(Decoder(config).apply({"params": params}, random_tokens(config, 2, 9), growth=growth))


def as_query_heads(params: Any, groups: int) -> dict[str, np.ndarray]:
    """Query and output parameters of four heads in the shapes of `groups` key-value heads."""
    attention = params["layers"]["attention"]
    return {
        "query_kernel": attention["query_kernel"].reshape(2, 24, groups, 4 // groups, 8),
        "query_bias": attention["query_bias"].reshape(2, groups, 4 // groups, 8),
        "out_kernel": attention["out_kernel"].reshape(2, groups, 4 // groups, 8, 24),
    }


def test_as_many_key_value_heads_as_heads_is_multi_head_attention() -> None:
    params = random_params(small_config())
    grouped = changed(params, **as_query_heads(params, 4))
    np.testing.assert_array_equal(
        logits(small_config(num_kv_heads=4), grouped), logits(small_config(), params)
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_multi_head_attention_with_copied_keys_and_values_is_grouped(groups: int) -> None:
    config = small_config(num_kv_heads=groups)
    params = random_params(config)
    attention = params["layers"]["attention"]
    copied = {
        f"{name}_{what}": np.repeat(attention[f"{name}_{what}"], 4 // groups, axis=-2)
        for name in ("key", "value")
        for what in ("kernel", "bias")
    }
    joined = {
        "query_kernel": attention["query_kernel"].reshape(2, 24, 4, 8),
        "query_bias": attention["query_bias"].reshape(2, 4, 8),
        "out_kernel": attention["out_kernel"].reshape(2, 4, 8, 24),
    }
    expected = logits(small_config(), changed(params, **copied, **joined))
    np.testing.assert_allclose(logits(config, params), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("which", ["heads", "queries", "both"])
def test_masks_multiply_what_a_query_head_writes(which: str) -> None:
    """Scaling a head's rows of the output matrix by its factor is the same function."""
    config = small_config(**GROUPED)
    params = random_params(config)
    heads = np.array([1.0, 0.25], np.float32) if which != "queries" else None
    queries = np.array([1.0, 0.5], np.float32) if which != "heads" else None
    factor = np.ones((2, 2))
    factor = factor if heads is None else factor * heads[:, None]
    factor = factor if queries is None else factor * queries[None, :]
    out = params["layers"]["attention"]["out_kernel"] * factor[None, :, :, None, None]
    expected = logits(config, changed(params, out_kernel=out))
    found = logits(config, params, GrowthMask(heads=heads, queries=queries))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - logits(config, params)).max() > 1e-2


def test_a_mask_of_heads_still_masks_heads_of_multi_head_attention() -> None:
    config = small_config()
    params = random_params(config)
    keep = np.array([1.0, 0.5, 0.0, 1.0], np.float32)
    out = params["layers"]["attention"]["out_kernel"] * keep[None, :, None, None]
    expected = logits(config, changed(params, out_kernel=out))
    np.testing.assert_allclose(
        logits(config, params, GrowthMask(heads=keep)), expected, atol=1e-5 * np.abs(expected).max()
    )
