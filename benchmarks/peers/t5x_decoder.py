"""t5x's decoder_only example: its network, model and loss; AdamW of optax, as for the others."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from t5x import models
from t5x.examples.decoder_only import network


def make(shape, _: str) -> Callable[[], None]:
    """One step on random tokens."""
    config = network.TransformerConfig(
        vocab_size=shape.vocab, dtype=shape.dtype, emb_dim=shape.d_model, num_heads=shape.num_heads,
        num_layers=shape.num_layers, head_dim=shape.head_dim, mlp_dim=4 * shape.d_model, dropout_rate=0.0,
        mlp_activations=("gelu",), logits_via_embedding=True,
    )  # fmt: skip
    model = models.DecoderOnlyModel(
        network.DecoderWrapper(config), vocabulary=None, optimizer_def=None, inputs_bidirectional_attention=False
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(3, shape.vocab, (shape.batch, shape.length)), jnp.int32)
    batch = {
        "decoder_input_tokens": jnp.roll(tokens, 1, axis=1),
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": jnp.ones_like(tokens),
    }
    params = model.module.init(jax.random.key(0), tokens, tokens, enable_dropout=False)["params"]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1))
    holder = [params, optimizer.init(params)]

    @jax.jit
    def update(params, state):
        (value, _), grads = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, None)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def step() -> None:
        *holder[:], value = update(*holder)
        value.block_until_ready()

    return step
