"""The FLM block in plain numpy, float64, a position and a head at a time: written from the formulas, not the code."""

import math
from typing import Any

import numpy as np

from flm_jax import ModelConfig


def xpos(vector: np.ndarray, position: int, config: ModelConfig, sign: int) -> np.ndarray:
    """Rotates and scales one head's `[K]` at `position`: sign +1 for a query, -1 for a key."""
    size = len(vector)
    turned = np.empty(size)
    for i in range(size // 2):
        angle = position * config.xpos_theta ** (-2 * i / size)
        a, b = vector[i], vector[i + size // 2]
        scale = 1.0
        if config.xpos_scale_base is not None:
            zeta = (2 * i / size + config.xpos_gamma) / (1 + config.xpos_gamma)
            scale = zeta ** (sign * position / config.xpos_scale_base)
        turned[i] = scale * (a * math.cos(angle) - b * math.sin(angle))
        turned[i + size // 2] = scale * (b * math.cos(angle) + a * math.sin(angle))
    return turned


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    """Over the last axis."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh approximation, with the constants of FLM-101B's `gelu_fast`."""
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)))


def attention(x: np.ndarray, p: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """Causal attention of one document `[L, D]`."""
    length = len(x)
    out = np.tile(p["out_bias"], (length, 1))
    for h in range(config.num_heads):
        q, k, v = (x @ p[f"{name}_kernel"][:, h] + p[f"{name}_bias"][h] for name in ("query", "key", "value"))
        q = np.stack([xpos(q[n], n, config, +1) for n in range(length)])
        k = np.stack([xpos(k[n], n, config, -1) for n in range(length)])
        for n in range(length):
            scores = k[: n + 1] @ q[n] / math.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            out[n] += (weights / weights.sum()) @ v[: n + 1] @ p["out_kernel"][h]
    return out


def logits(params: Any, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """`[L, V]` of one document's decoder inputs `[L]`; the multipliers are those of the paper's released config."""
    table = params["token_embedding"]["embedding"]
    x = table[tokens] * config.input_mult
    for index in range(config.num_layers):
        block = {
            sub: {name: value[index] for name, value in group.items()}
            for sub, group in params["layers"].items()
        }
        norm = block["attention_norm"]
        x = x + attention(
            layer_norm(x, norm["scale"], norm["bias"], config.norm_epsilon), block["attention"], config
        )
        norm, mlp = block["mlp_norm"], block["mlp"]
        hidden = gelu(
            layer_norm(x, norm["scale"], norm["bias"], config.norm_epsilon) @ mlp["wi_kernel"]
            + mlp["wi_bias"]
        )
        x = x + hidden @ mlp["wo_kernel"] + mlp["wo_bias"]
    norm = params["final_norm"]
    x = layer_norm(x, norm["scale"], norm["bias"], config.norm_epsilon)
    return x @ table.T * (config.output_mult / (config.d_model / 256))
