"""Models of others as they lie in folders, written down without our table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PUBLISHED = {  # the fields of FLM-101B's config.json, small
    "architectures": ["FLM"], "model_type": "flm", "vocab_size": 70, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_inner": 128, "n_positions": 64, "activation_function": "gelu_fast", "layer_norm_epsilon": 1e-5,
    "relative_encoding": "rotary", "rotary_theta": 10000, "rotary_use_xpos": True, "rotary_xpos_scale_base": 512,
    "use_mup": True, "input_mult": 1.5, "output_mult": 2.0, "mup_scale_factor": 0.125, "mup_base_width": 256,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": True, "torch_dtype": "bfloat16",
    "bos_token_id": 69, "eos_token_id": 69,
}  # fmt: skip
LLAMA_FIELDS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 50, "hidden_size": 24,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 4, "eos_token_id": [7, 8], "dtype": "float32",
}  # fmt: skip


def folder(path: Path, fields: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(fields))
    save_file(weights, path / "model.safetensors")
    return path


def published_weights() -> dict[str, np.ndarray]:
    """Shapes as GPT-2 has them, written down without our table."""
    rng, d, f = np.random.default_rng(0), 32, 128
    shapes = {
        "transformer.wte.weight": (70, d),
        "transformer.ln_f.weight": (d,),
        "transformer.ln_f.bias": (d,),
    }
    for layer in range(2):
        at = f"transformer.h.{layer}"
        shapes |= {f"{at}.{norm}.{kind}": (d,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"{at}.attn.c_attn.weight": (d, 3 * d), f"{at}.attn.c_attn.bias": (3 * d,)}
        shapes |= {f"{at}.attn.c_proj.weight": (d, d), f"{at}.attn.c_proj.bias": (d,)}
        shapes |= {f"{at}.mlp.c_fc.weight": (d, f), f"{at}.mlp.c_fc.bias": (f,)}
        shapes |= {f"{at}.mlp.c_proj.weight": (f, d), f"{at}.mlp.c_proj.bias": (d,)}
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def llama_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"model.embed_tokens.weight": (50, 24), "model.norm.weight": (24,), "lm_head.weight": (50, 24)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.input_layernorm.weight": (24,), f"{at}.post_attention_layernorm.weight": (24,)}
        shapes |= {f"{at}.self_attn.q_proj.weight": (24, 24), f"{at}.self_attn.o_proj.weight": (24, 24)}
        shapes |= {f"{at}.self_attn.k_proj.weight": (8, 24), f"{at}.self_attn.v_proj.weight": (8, 24)}
        shapes |= {f"{at}.mlp.gate_proj.weight": (40, 24), f"{at}.mlp.up_proj.weight": (40, 24)}
        shapes |= {f"{at}.mlp.down_proj.weight": (24, 40)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
