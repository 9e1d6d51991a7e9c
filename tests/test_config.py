import dataclasses
import math
from typing import Any

import gin
import jax
import jax.numpy as jnp
import pytest

from flm_jax import Decoder, ModelConfig, gin_setup, presets
from tests.models import ALL_BLOCKS, COVERING_BLOCKS, small_config

PRESETS = ("flm_tiny", "llama_tiny", "flm_16b", "flm_51b", "flm_101b")


def counted(config: ModelConfig) -> int:
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("preset", PRESETS)
def test_num_params_is_what_the_module_makes(preset: str) -> None:
    config = getattr(presets, preset)()
    assert config.num_params == counted(config)


@pytest.mark.parametrize("num_kv_heads", [None, 1, 2, 4])
def test_num_params_of_every_block(num_kv_heads: int | None) -> None:
    blocks = [block for block in ALL_BLOCKS if block["num_kv_heads"] == num_kv_heads]
    assert len(blocks) == 16
    for block in blocks:
        assert small_config(**block).num_params == counted(small_config(**block)), block


def multiply_adds(jaxpr: Any) -> int:
    """Of all matmuls, those in the body of a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[dim] for dim in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * summed
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        bodies = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        total += times * sum(multiply_adds(body) for body in bodies if hasattr(body, "eqns"))
    return total


@pytest.mark.parametrize("length", [12, 256])  # the longer one's attention is in blocks
@pytest.mark.parametrize("block", COVERING_BLOCKS, ids=str)
def test_hardware_flops_are_those_of_the_program(block: dict, length: int) -> None:
    config = small_config(**block, max_length=256)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    forward = jax.make_jaxpr(lambda p, t: Decoder(config).apply({"params": p}, t))(shapes, tokens)
    assert config.hardware_flops_per_token(length) * length == 3 * 2 * multiply_adds(forward.jaxpr)
    # Model FLOPs leave out the triangle above the diagonal, in both of attention's products.
    keys = (length if length == 12 else 5 / 8 * length) - (length + 1) / 2
    above = 3 * 2 * 2 * config.num_layers * config.num_heads * config.head_dim * keys
    assert config.flops_per_token(length) == config.hardware_flops_per_token(length) - above


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


def test_multipliers_of_grouped_heads_and_swiglu() -> None:
    config = small_config(num_heads=32, num_kv_heads=8, mup_base_width=384, activation="swiglu", d_ff=1024)
    assert (config.size("heads"), config.size("queries")) == (8, 4)
    assert config.width_mult("heads", "queries", "kv") == 32 * 8 / 384
    assert config.width_mult("mlp") == 1  # 8/3 of the base width, as large as GELU's 4
    assert (small_config().size("heads"), small_config().size("queries")) == (4, 1)


def test_flops_follow_the_known_formulas() -> None:
    config = presets.flm_101b()
    # Narayanan et al. 2021, k = 72: 72 L d² (1 + s/(6d) + V/(12 L d)) has attention as a whole square, of which dense
    # attention computes 5/8.
    layers, d, s, v = 80, 10_240, 2_048, config.vocab_size
    blocks = 72 * layers * d**2 * (1 + 5 / 8 * s / (6 * d) + v / (12 * layers * d))
    whole = dataclasses.replace(config, remat="none").hardware_flops_per_token(s)
    assert whole == pytest.approx(blocks, rel=1e-12)
    halved = 72 * layers * d**2 * (1 + (s + 1) / 2 / (6 * d) + v / (12 * layers * d))
    assert config.flops_per_token(s) == pytest.approx(halved, rel=1e-12)
    # Recomputing the blocks once is their forward pass, 24 of 72 parts, but for the FFN's second matrix.
    forward = 24 * layers * d**2 * (1 + 5 / 8 * s / (6 * d))
    again = forward - 8 * layers * d**2
    assert config.hardware_flops_per_token(s) == pytest.approx(blocks + again, rel=1e-12)
    twice = dataclasses.replace(config, remat="stage").hardware_flops_per_token(s)
    assert twice == pytest.approx(blocks + forward + again, rel=1e-12)


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
        (
            {"num_kv_heads": 3},
            "ModelConfig.num_kv_heads must be a divisor of ModelConfig.num_heads = 4.*found 3",
        ),
        ({"num_kv_heads": 0}, "ModelConfig.num_kv_heads must be a divisor.*found 0"),
        ({"num_kv_heads": 2.0}, "ModelConfig.num_kv_heads must be a divisor.*found 2.0"),
        ({"norm": "batchnorm"}, "ModelConfig.norm must be one of layernorm, rmsnorm; found 'batchnorm'"),
        ({"activation": "relu"}, "ModelConfig.activation must be one of gelu, swiglu; found 'relu'"),
        ({"use_bias": "False"}, "ModelConfig.use_bias must be one of True, False; found 'False'"),
        ({"tied_readout": None}, "ModelConfig.tied_readout must be one of True, False; found None"),
        ({"norm_denominator": 16.0}, "bind ModelConfig.norm_denominator to None; found 16.0"),
        (
            {"norm": "rmsnorm", "norm_denominator": -1.0},
            "ModelConfig.norm_denominator must be positive, or None.*found -1.0",
        ),
    ],
)
def test_bad_sizes_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)
