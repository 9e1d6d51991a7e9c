"""A GPT in plain JAX as one writes it down first: layers unrolled, dense attention, optax's AdamW, one jit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax


def init(shape, rng):
    """Parameters as a dictionary."""
    d, draw = shape.d_model, lambda *size: jnp.asarray(rng.normal(0, 0.02, size), jnp.float32)
    zeros, ones = lambda *size: jnp.zeros(size), lambda *size: jnp.ones(size)
    layer = lambda: {  # noqa: E731
        "norm1": (ones(d), zeros(d)),
        "qkv": (draw(d, 3 * d), zeros(3 * d)),
        "out": (draw(d, d), zeros(d)),
        "norm2": (ones(d), zeros(d)),
        "up": (draw(d, 4 * d), zeros(4 * d)),
        "down": (draw(4 * d, d), zeros(d)),
    }
    return {
        "tokens": draw(shape.vocab, d),
        "positions": draw(shape.length, d),
        "layers": [layer() for _ in range(shape.num_layers)],
        "norm": (ones(d), zeros(d)),
    }


def norm(x, params):
    """LayerNorm in float32."""
    wide = x.astype(jnp.float32)
    mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(var + 1e-5) * params[0] + params[1]).astype(x.dtype)


def linear(x, params):
    """x W + b."""
    return x @ params[0].astype(x.dtype) + params[1].astype(x.dtype)


def attention(x, layer, heads):
    """Dense causal attention."""
    batch, length, d = x.shape
    q, k, v = (part.reshape(batch, length, heads, -1) for part in jnp.split(linear(x, layer["qkv"]), 3, -1))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(d // heads)
    mask = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores.astype(jnp.float32), -1e30), axis=-1).astype(x.dtype)
    return linear(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, d), layer["out"])


def make(shape, _: str) -> Callable[[], None]:
    """One step on random tokens."""
    rng = np.random.default_rng(0)
    params = init(shape, rng)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1))
    state = optimizer.init(params)
    targets = jnp.asarray(rng.integers(0, shape.vocab, (shape.batch, shape.length)))
    inputs = jnp.roll(targets, 1, axis=1)

    def loss(params):
        x = (params["tokens"][inputs] + params["positions"]).astype(shape.dtype)
        for layer in params["layers"]:
            x = x + attention(norm(x, layer["norm1"]), layer, shape.num_heads)
            x = x + linear(jax.nn.gelu(linear(norm(x, layer["norm2"]), layer["up"])), layer["down"])
        logits = norm(x, params["norm"]) @ params["tokens"].T.astype(x.dtype)
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets).mean()

    @jax.jit
    def update(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    holder = [params, state]

    def step() -> None:
        *holder[:], value = update(*holder)
        value.block_until_ready()

    return step
