import dataclasses

import gin
import jax
import jax.numpy as jnp
import pytest

from flm_jax import Decoder, ModelConfig, gin_setup, presets
from tests.models import small_config

PRESETS = ("flm_tiny", "flm_16b", "flm_51b", "flm_101b")


def counted(config: ModelConfig) -> int:
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("preset", PRESETS)
def test_num_params_is_what_the_module_makes(preset: str) -> None:
    config = getattr(presets, preset)()
    assert config.num_params == counted(config)


def test_num_params_when_heads_and_width_are_unrelated() -> None:
    assert small_config().num_params == counted(small_config())


def test_published_sizes() -> None:
    assert abs(counted(presets.flm_101b()) - 101.70e9) < 0.01e9
    assert abs(counted(presets.flm_51b()) / 51e9 - 1) < 0.035
    assert abs(counted(presets.flm_16b()) / 16e9 - 1) < 0.035


@pytest.mark.parametrize("preset", PRESETS)
def test_the_gin_file_says_what_python_says(preset: str) -> None:
    gin_setup.parse([f"gin_configs/models/{preset}.gin"], [])
    made = gin.get_configurable("ModelConfig")()
    assert made.to_json() == getattr(presets, preset)().to_json()


def test_multipliers_of_the_released_101b() -> None:
    config = presets.flm_101b()
    assert config.logit_scale == pytest.approx(0.05)  # output_mult 2.0 / mup_scale_factor 40.0
    assert config.width_mult("embed") == config.width_mult("heads", "kv") == config.width_mult("mlp") == 40


def test_standard_parametrisation_has_no_width_in_it() -> None:
    config = dataclasses.replace(presets.flm_101b(), parametrization="standard")
    assert config.logit_scale == 2.0
    assert config.width_mult("embed") == 1


def test_flops_follow_the_known_formulas() -> None:
    config = presets.flm_101b()
    # Narayanan et al. 2021, k = 72: 72 L d² (1 + s/(6d) + V/(12 L d)), attention as a whole square.
    layers, d, s, v = 80, 10_240, 2_048, config.vocab_size
    square = 72 * layers * d**2 * (1 + s / (6 * d) + v / (12 * layers * d))
    whole = dataclasses.replace(config, remat="none").hardware_flops_per_token(s)
    assert whole == pytest.approx(square, rel=1e-12)
    halved = 72 * layers * d**2 * (1 + (s + 1) / 2 / (6 * d) + v / (12 * layers * d))
    assert config.flops_per_token(s) == pytest.approx(halved, rel=1e-12)
    # Recomputing the blocks once is their forward pass: 24 of 72 parts.
    again = 24 * layers * d**2 * (1 + s / (6 * d))
    assert config.hardware_flops_per_token(s) == pytest.approx(square + again, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 7}, "head_dim must be even.*found 7.*ModelConfig.head_dim to 6 or 8"),
        ({"d_model": 0}, "ModelConfig.d_model must be a positive integer, found 0"),
        ({"num_layers": 2.0}, "ModelConfig.num_layers must be a positive integer, found 2.0"),
        ({"dtype": "float8"}, "ModelConfig.dtype must be one of bfloat16.*found 'float8'"),
        ({"remat": "some"}, "ModelConfig.remat must be one of none, full.*found 'some'"),
        ({"parametrization": "ntk"}, "ModelConfig.parametrization must be one of mup, standard"),
        ({"norm_epsilon": 0.0}, "ModelConfig.norm_epsilon must be positive"),
        (
            {"max_length": 2**17},
            "xPos would scale by e.160 .*Bind ModelConfig.xpos_scale_base to 2053 or more",
        ),
        ({"xpos_scale_base": -1.0}, "xpos_scale_base must be positive, or None"),
    ],
)
def test_bad_sizes_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)
