"""FLM's block and its successors' in plain numpy, float64, a position and a head at a time.

Written from the formulas, not the code.
"""

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


def norm(x: np.ndarray, p: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """LayerNorm or RMSNorm of `[L, D]`, a position at a time."""
    out = np.empty_like(x)
    for n, row in enumerate(x):
        if config.norm == "rmsnorm":
            mean_square = (row @ row) / (config.norm_denominator or len(row))
            out[n] = row / math.sqrt(mean_square + config.norm_epsilon) * p["scale"]
        else:
            centred = row - row.sum() / len(row)
            variance = (centred @ centred) / len(row)
            out[n] = centred / math.sqrt(variance + config.norm_epsilon) * p["scale"] + p.get("bias", 0)
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh approximation, with the constants of FLM-101B's `gelu_fast`."""
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)))


def mlp(x: np.ndarray, p: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """GELU's or SwiGLU's feed-forward network of `[L, D]`."""
    hidden = x @ p["wi_kernel"] + p.get("wi_bias", 0)
    if config.activation == "swiglu":
        gate = x @ p["gate_kernel"] + p.get("gate_bias", 0)
        hidden = gate / (1 + np.exp(-gate)) * hidden
    else:
        hidden = gelu(hidden)
    return hidden @ p["wo_kernel"] + p.get("wo_bias", 0)


def attention(x: np.ndarray, p: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """Causal attention of one document `[L, D]`; the query heads of a key-value head follow each other."""
    length = len(x)
    out = np.tile(p.get("out_bias", np.zeros(config.d_model)), (length, 1))
    for h in range(config.num_heads):
        shared, which = divmod(h, config.num_heads // (config.num_kv_heads or config.num_heads))
        query = (shared, which) if config.num_kv_heads else (shared,)
        q, k, v = (
            x @ p[f"{name}_kernel"][:, *index] + (p[f"{name}_bias"][index] if config.use_bias else 0)
            for name, index in (("query", query), ("key", (shared,)), ("value", (shared,)))
        )
        q = np.stack([xpos(q[n], n, config, +1) for n in range(length)])
        k = np.stack([xpos(k[n], n, config, -1) for n in range(length)])
        for n in range(length):
            scores = k[: n + 1] @ q[n] / math.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            out[n] += (weights / weights.sum()) @ v[: n + 1] @ p["out_kernel"][query]
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
        x = x + attention(norm(x, block["attention_norm"], config), block["attention"], config)
        x = x + mlp(norm(x, block["mlp_norm"], config), block["mlp"], config)
    x = norm(x, params["final_norm"], config)
    readout = table if config.tied_readout else params["readout"]["kernel"]
    return x @ readout.T * (config.output_mult / (config.d_model / 256))
