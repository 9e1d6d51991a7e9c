"""The config.json of FLM-101B's published layout, with what its successors' blocks add to it.

The fields are those of the released file (model_type "flm"); `head_dim`, `n_head_kv`, `norm`, `use_bias`,
`norm_denominator` and `rotary_xpos_gamma` are ours, and stand for FLM-101B's block where they are absent.
"""

from collections.abc import Mapping
from typing import Any

from flm_jax.config import ModelConfig

MODEL_TYPE = "flm"
_ACTIVATIONS = {"gelu": "gelu_fast", "swiglu": "swiglu"}
_GELU_TANH = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")  # one function under three names


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json`, for transformers and the code that is written beside it."""
    return {
        "architectures": ["FLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": "configuration_flm.FLMConfig",
            "AutoModelForCausalLM": "modeling_flm.FLM",
        },
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_head_kv": config.size("heads"),
        "head_dim": config.head_dim,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "activation_function": _ACTIVATIONS[config.activation],
        "norm": config.norm,
        "layer_norm_epsilon": config.norm_epsilon,
        "norm_denominator": config.norm_denominator,
        "use_bias": config.use_bias,
        "tie_word_embeddings": config.tied_readout,
        "relative_encoding": "rotary",
        "rotary_theta": config.xpos_theta,
        "rotary_use_xpos": config.xpos_scale_base is not None,
        "rotary_xpos_scale_base": config.xpos_scale_base,
        "rotary_xpos_gamma": config.xpos_gamma,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "use_mup": config.parametrization == "mup",
        "mup_base_width": config.mup_base_width,
        "mup_scale_factor": config.width_mult("embed"),
        "input_mult": config.input_mult,
        "output_mult": config.output_mult,
        "initializer_range": config.init_std,
    }


def from_json(fields: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
    """The model that a `config.json` of this layout describes, and what is to be said about it.

    `scale_attn_by_inverse_layer_idx`, true in the released file, is left out of account: Megatron, with which FLM-101B
    was trained, undoes it within the softmax (see docs/weights.md).

    Raises:
        ValueError: something in it changes the function in a way that `ModelConfig` cannot say; names the field.
    """
    _refuse(fields)
    width, heads = fields["n_embd"], fields["n_head"]
    groups = fields.get("n_head_kv") or heads
    mup = bool(fields.get("use_mup", "mup_scale_factor" in fields))
    base = fields.get("mup_base_width", 256)
    scale = fields.get("mup_scale_factor", width / base if mup else 1.0)
    own = width / base if mup else 1.0
    config = ModelConfig(
        vocab_size=fields["vocab_size"],
        d_model=width,
        num_layers=fields["n_layer"],
        num_heads=heads,
        head_dim=fields.get("head_dim") or width // heads,
        d_ff=fields.get("n_inner") or 4 * width,
        max_length=fields.get("n_positions", 2048),
        num_kv_heads=None if groups == heads else groups,
        norm=fields.get("norm", "layernorm"),
        activation="swiglu" if fields.get("activation_function") == "swiglu" else "gelu",
        use_bias=bool(fields.get("use_bias", True)),
        tied_readout=bool(fields.get("tie_word_embeddings", True)),
        norm_epsilon=fields.get("layer_norm_epsilon", 1e-5),
        norm_denominator=fields.get("norm_denominator"),
        xpos_theta=float(fields.get("rotary_theta", 10_000.0)),
        xpos_scale_base=_scale_base(fields),
        xpos_gamma=fields.get("rotary_xpos_gamma", 0.4),
        parametrization="mup" if mup else "standard",
        mup_base_width=base,
        init_std=fields.get("initializer_range", 0.02),
        input_mult=float(fields.get("input_mult", 1.0)),
        output_mult=float(fields.get("output_mult", 1.0)) * (own / scale),  # which is 1 in the released file
    )
    notices = []
    if own != scale:
        notices.append(
            f"mup_scale_factor is {scale}, not n_embd / mup_base_width = {own}: the difference went into "
            f"ModelConfig.output_mult, now {config.output_mult}"
        )
    if fields.get("scale_attn_by_inverse_layer_idx"):
        notices.append(
            "scale_attn_by_inverse_layer_idx is left out of account: Megatron undoes it within the softmax "
            "(docs/weights.md)"
        )
    return config, notices


def _scale_base(fields: Mapping[str, Any]) -> float | None:
    if not fields.get("rotary_use_xpos", True):
        return None
    return float(fields.get("rotary_xpos_scale_base") or 512.0)


def _refuse(fields: Mapping[str, Any]) -> None:
    allowed: dict[str, tuple[Any, ...]] = {
        "activation_function": (*_GELU_TANH, "swiglu"),
        "relative_encoding": ("rotary",),
        "scale_attn_weights": (True,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    }
    for field, values in allowed.items():
        if fields.get(field, values[0]) not in values:
            raise ValueError(
                f"config.json has {field} = {fields[field]!r}, expected {' or '.join(map(repr, values))}: nothing else "
                "can be said in ModelConfig"
            )
