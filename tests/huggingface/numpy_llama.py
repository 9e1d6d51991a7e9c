"""Llama as transformers computes it, in plain numpy, float64, from the tensors' names and nothing of ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def logits(weights: Mapping[str, np.ndarray], fields: Mapping[str, Any], tokens: np.ndarray) -> np.ndarray:
    """`[L, V]` of one document `[L]`, from a folder's tensors and its `config.json`."""
    tensors = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    heads, groups = fields["num_attention_heads"], fields["num_key_value_heads"]
    size, epsilon = fields["head_dim"], fields["rms_norm_eps"]
    inverse = fields["rope_parameters"]["rope_theta"] ** -(np.arange(0, size, 2) / size)
    angles = np.concatenate([np.outer(np.arange(len(tokens)), inverse)] * 2, axis=-1)
    hidden = tensors["model.embed_tokens.weight"][tokens]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return tensors[f"{name}.weight"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)

    def turned(x: np.ndarray) -> np.ndarray:
        rotated = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
        return x * np.cos(angles) + rotated * np.sin(angles)

    for layer in range(fields["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        x = norm(hidden, f"{at}.input_layernorm")
        query, key, value = (
            linear(x, f"{at}.self_attn.{name}_proj").reshape(len(tokens), count, size).swapaxes(0, 1)
            for name, count in (("q", heads), ("k", groups), ("v", groups))
        )
        key, value = (np.repeat(part, heads // groups, axis=0) for part in (turned(key), value))
        scores = turned(query) @ key.swapaxes(1, 2) / np.sqrt(size)
        scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
        weights_ = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights_ / weights_.sum(-1, keepdims=True)) @ value
        hidden = hidden + linear(mixed.swapaxes(0, 1).reshape(len(tokens), -1), f"{at}.self_attn.o_proj")
        x = norm(hidden, f"{at}.post_attention_layernorm")
        gate = linear(x, f"{at}.mlp.gate_proj")
        up = linear(x, f"{at}.mlp.up_proj")
        hidden = hidden + linear(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down_proj")
    tied = fields["tie_word_embeddings"]
    readout = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
    return norm(hidden, "model.norm") @ readout.T
