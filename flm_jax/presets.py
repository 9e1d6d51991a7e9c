"""The model sizes that come with the library; `gin_configs/models/` has the same as gin files.

Only the 101B shape is published (the released `config.json` of CofeAI/FLM-101B). The paper gives
parameter counts alone for the two smaller stages: the shapes of `flm_16b` and `flm_51b` are ours,
chosen with the published head_dim of 128 and an FFN of 4 d_model to come within 3.5 % of nominal.
"""

import dataclasses

from flm_jax.config import ModelConfig

FLM_VOCAB_SIZE = 100_352  # GPT-4's 100,256 tokens padded to a multiple of 512


def flm_tiny() -> ModelConfig:
    """5.3M parameters: for tests, the demo and a laptop."""
    return ModelConfig(
        vocab_size=8_192,
        d_model=256,
        num_layers=4,
        num_heads=4,
        head_dim=64,
        d_ff=1_024,
        max_length=512,
        dtype="float32",
        remat="dots",  # on CPUs a scan that keeps fewer intermediate values is faster
    )


def llama_tiny() -> ModelConfig:
    """7.1M parameters: `flm_tiny` with the block of the Llama family and Tele-FLM, two query heads to a key-value head.

    µP like the others: at its base width it is the standard parametrisation, and what grows from it keeps the
    hyperparameters.
    """
    return dataclasses.replace(
        flm_tiny(),
        num_kv_heads=2,
        norm="rmsnorm",
        activation="swiglu",
        d_ff=704,  # 8/3 d_model, to a multiple of 64
        xpos_scale_base=None,  # RoPE
        use_bias=False,
        tied_readout=False,
    )


def flm_16b() -> ModelConfig:
    """15.62B parameters. The shape is not published: 48 layers of 5,120 are ours."""
    return _flm(d_model=5_120, num_layers=48)


def flm_51b() -> ModelConfig:
    """52.37B parameters. The shape is not published: 64 layers of 8,192 are ours."""
    return _flm(d_model=8_192, num_layers=64)


def flm_101b() -> ModelConfig:
    """101.70B parameters, the published shape: 80 layers of 10,240 with 80 heads."""
    return _flm(d_model=10_240, num_layers=80)


def _flm(d_model: int, num_layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=FLM_VOCAB_SIZE,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=d_model // 128,
        head_dim=128,
        d_ff=4 * d_model,
        max_length=2_048,
        output_mult=2.0,  # the searched softmax temperature (section 3 of the paper)
        remat="full",
    )
