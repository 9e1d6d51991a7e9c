"""The models that transformers' `LlamaForCausalLM` computes: which of ours are such, and what its config.json means.

Mistral's is the same function where it has no window, under another name.
"""

from collections.abc import Mapping
from typing import Any

from flm_jax.config import ModelConfig

MODEL_TYPES = ("llama", "mistral")


def is_llama(config: ModelConfig) -> bool:
    """Whether a model is one exactly: no code of ours is then needed to run it."""
    return (
        config.norm == "rmsnorm"
        and config.activation == "swiglu"
        and config.xpos_scale_base is None
        and config.input_mult == 1
        and config.logit_scale == 1
        and config.norm_denominator in (None, config.d_model)
        # LlamaConfig refuses another width, although it has head_dim.
        and config.d_model % config.num_heads == 0
    )


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json`, for transformers 4 and 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.size("heads"),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.xpos_theta,  # read by transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.xpos_theta},  # and by 5
        "attention_bias": config.use_bias,
        "mlp_bias": config.use_bias,
        "tie_word_embeddings": config.tied_readout,
    }


def from_json(fields: Mapping[str, Any]) -> ModelConfig:
    """The model that a `config.json` of the family describes, in standard parametrisation.

    Raises:
        ValueError: something in it changes the function in a way that `ModelConfig` cannot say; names the field.
    """
    _refuse(fields)
    heads = fields["num_attention_heads"]
    groups = fields.get("num_key_value_heads") or heads
    return ModelConfig(
        vocab_size=fields["vocab_size"],
        d_model=fields["hidden_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        d_ff=fields["intermediate_size"],
        max_length=fields.get("max_position_embeddings", 2048),
        num_kv_heads=None if groups == heads else groups,
        norm="rmsnorm",
        activation="swiglu",
        use_bias=bool(fields.get("attention_bias", False)),
        tied_readout=bool(fields.get("tie_word_embeddings", False)),
        norm_epsilon=fields.get("rms_norm_eps", 1e-6),
        xpos_theta=float(_theta(fields)),
        xpos_scale_base=None,
        parametrization="standard",
        init_std=fields.get("initializer_range", 0.02),
    )


def _theta(fields: Mapping[str, Any]) -> float:
    rope = fields.get("rope_parameters") or {}
    return rope.get("rope_theta", fields.get("rope_theta", 10_000.0))


def _refuse(fields: Mapping[str, Any]) -> None:
    ropes = [fields.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    kinds = [rope.get("rope_type", rope.get("type", "default")) for rope in ropes]
    kind = next((kind for kind in kinds if kind != "default"), "default")
    rotated = ropes[0].get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    # MistralConfig has a window unless the file says null.
    window = fields.get("sliding_window", 4096 if fields.get("model_type") == "mistral" else None)
    attention_bias, mlp_bias = bool(fields.get("attention_bias")), bool(fields.get("mlp_bias"))
    refusals = {
        "hidden_act": (fields.get("hidden_act", "silu"), ("silu", "swish"), "the gate is silu"),
        "rope_scaling (rope_parameters)": (
            kind,
            ("default",),
            "rotations are RoPE's own, by rope_theta alone",
        ),
        "sliding_window": (window, (None,), "attention sees all that came before"),
        "mlp_bias": (
            mlp_bias,
            (attention_bias,),  # the field names both
            "all matrices have a bias or none has, as attention_bias says,",
        ),
        "quantization_config": (fields.get("quantization_config"), (None,), "weights are not quantized"),
        "partial_rotary_factor": (rotated, (1.0, None), "whole heads are rotated"),
    }
    for field, (found, allowed, why) in refusals.items():
        if found not in allowed:
            raise ValueError(
                f"config.json has {field} = {found!r}, expected {' or '.join(map(repr, allowed))}: {why} in ModelConfig"
            )
