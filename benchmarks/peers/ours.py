"""flm_jax's step as the trainer runs it, or without one of the things that make it fast on CPUs (`WITHOUT`)."""

import functools
import sys
from collections.abc import Callable

from flm_jax import allocator

WITHOUT = sys.argv[1].partition("-without-")[2]  # of the peer's name: `ours-without-allocator`

if WITHOUT != "allocator":
    allocator.keep_freed_memory()  # as `flm train` does, before jax is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from flm_jax import LanguageModel, ModelConfig, network, optimizer, partitioning  # noqa: E402
from flm_jax.layers import chunked_loss, dense, linear, mlp, norm, remat  # noqa: E402
from flm_jax.layers import product as products  # noqa: E402
from flm_jax.partitioning import MeshShape  # noqa: E402
from flm_jax.training.state import create_state  # noqa: E402
from flm_jax.training.step import skipping_non_finite, train_step  # noqa: E402


def _differentiate_matmuls() -> None:
    """By JAX, in place of their own backward passes."""
    linear._affine = linear._multiplied
    dense._mix = lambda *arguments: dense._mix_forward(*arguments)[0]


def _multiply_bfloat16() -> None:
    """As it is, nowhere cast to float32 before."""

    def product(equation, one, other):
        return jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)

    for module in (chunked_loss, dense, linear):
        module.product = product


def _multiply_float32() -> None:
    """Everywhere, whatever the CPU has for bfloat16."""
    products.cpu_multiplies_bfloat16 = lambda: False


def _look_at_all_keys() -> None:
    dense.causal_blocks = lambda length: 1


def _stack_bfloat16() -> None:
    remat.kept_dtype = jnp.dtype


def _keep_elementwise() -> None:
    """What norms and activation functions make is kept for the backward pass, unless `remat` says otherwise."""
    norm._normalised = norm._normalised.__wrapped__
    mlp._gelu = mlp._gelu.__wrapped__


def _unroll() -> None:
    network.scan_with_axes = functools.partial(network.scan_with_axes, unroll=True)


# How each is taken away; two are further down.
_CHANGES: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "allocator": lambda: None,
    "matmuls": _differentiate_matmuls,
    "float32": _multiply_bfloat16,
    "bfloat16": _multiply_float32,
    "blocks": _look_at_all_keys,
    "stacks": _stack_bfloat16,
    "recomputation": _keep_elementwise,
    "scan": _unroll,
    "remat": lambda: None,
}


def make(shape, _: str) -> Callable[[], None]:
    """One step on random tokens."""
    _CHANGES[WITHOUT]()
    config = ModelConfig(
        vocab_size=shape.vocab, d_model=shape.d_model, num_layers=shape.num_layers, num_heads=shape.num_heads,
        head_dim=shape.head_dim, d_ff=4 * shape.d_model, max_length=shape.length, dtype=shape.dtype,
        remat="none" if WITHOUT == "remat" else "dots",
    )  # fmt: skip
    model, tx = LanguageModel(config), skipping_non_finite(optimizer.adamw(config, 1e-3))
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    rng = np.random.default_rng(0)
    rows = (shape.batch, shape.length)
    tokens = rng.integers(3, shape.vocab, rows).astype(np.int32)
    batch = {
        "decoder_input_tokens": np.roll(tokens, 1, axis=1),
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": np.ones(rows, np.int32),
        "decoder_segment_ids": np.ones(rows, np.int32),
        "decoder_positions": np.broadcast_to(np.arange(shape.length, dtype=np.int32), rows),
    }
    with jax.set_mesh(mesh), partitioning.axis_rules():
        state = create_state(model, tx, mesh, seed=0)
        placed = jax.device_put(batch, partitioning.batch_sharding(mesh))
        compiled = jax.jit(train_step(model, tx), donate_argnums=0).lower(state, placed).compile()
    holder = [state]

    def step() -> None:
        holder[0], metrics = compiled(holder[0], placed)
        jax.device_get(metrics)

    return step
