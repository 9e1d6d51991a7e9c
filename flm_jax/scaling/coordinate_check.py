"""The coordinate check of µP: whether activations, and what a step changes in them, are as large at every width.

Tensor Programs V (arXiv 2203.03466), appendix D.1. A few steps at a small learning rate, the same tokens at every
width; the slope of log size over log width says how a quantity scales, and µP's are flat. A quantity that grows or
shrinks with width has a learning rate, or an initialisation, that has to be tuned at every width.

An initial draw adds to the logits what shrinks as 1/√width under µP, and says nothing of learning. So logits are
compared, for the tokens that occur, by what the draws of several seeds agree on: the mean of Δ_r · Δ_s over pairs of
seeds, whose root is the size of the change that they share. Activations have no coordinates in common between seeds,
and are measured one by one. Well below the base width the initial logits are so large that they hold learning back:
there nothing is flat.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax.layers.attention import Attention
from flm_jax.layers.block import Block
from flm_jax.layers.embedding import Embedding
from flm_jax.layers.mlp import Mlp
from flm_jax.model import Batch, LanguageModel
from flm_jax.scaling.widths import at_width

TOLERANCE = 0.05
LOGITS = "logits"
# The draw's part included, which shrinks with width and is shown, but not judged.
ALL_OF_LOGITS = "logits, with the draw"
# A module's output by the module; the blocks' are of all layers together.
_NAMES = {Embedding: "embedding", Attention: "attention", Mlp: "FFN", Block: "residual stream"}
# Against the initial standard deviation: small enough that no step leaves the neighbourhood of the draw.
_RATE = 0.01
_BATCH, _LENGTH, _KINDS = 8, 32, 500


@dataclasses.dataclass(frozen=True)
class Curve:
    """One quantity over the widths.

    Attributes:
        name: Of the activation.
        what: `size` after so many steps, or `change` since the first of them.
        step: After which it was measured.
        values: Root mean square at each width.
        slope: Of log value over log width.
    """

    name: str
    what: str
    step: int
    values: tuple[float, ...]
    slope: float

    @property
    def flat(self) -> bool:
        """Whether it is as large at every width."""
        return abs(self.slope) <= TOLERANCE

    @property
    def judged(self) -> bool:
        """Whether it should be."""
        return self.name != ALL_OF_LOGITS


@dataclasses.dataclass(frozen=True)
class CoordinateCheck:
    """What was measured.

    Attributes:
        parametrization: `mup` or `standard`.
        widths: d_model of each model.
        learning_rate: Of the base width.
        num_seeds: Draws that each value is averaged over.
        curves: All quantities after every step.
        losses: Mean loss before each step, `[widths][steps]`.
    """

    parametrization: str
    widths: tuple[int, ...]
    learning_rate: float
    num_seeds: int
    curves: tuple[Curve, ...]
    losses: tuple[tuple[float, ...], ...]

    @property
    def flat(self) -> bool:
        """Whether every quantity that should be is as large at every width."""
        return all(curve.flat for curve in self.curves if curve.judged)


def coordinate_check(
    model: LanguageModel,
    make_optimizer: Callable[..., optax.GradientTransformation],
    widths: Sequence[int] | None = None,
    num_steps: int = 4,
    num_seeds: int = 3,
    learning_rate: float | None = None,
) -> CoordinateCheck:
    """Trains the model at several widths for a few steps and measures its activations, in float32.

    Args:
        model: Any width; see `at_width`.
        make_optimizer: `make_optimizer(config, learning_rate)`.
        widths: Of the residual stream, two or more; a half, one, two and four times µP's base width unless given.
        num_steps: To take.
        num_seeds: Of the initial draw, two or more.
        learning_rate: Of the base width; a hundredth of `init_std` unless given.

    Raises:
        ValueError: too few widths, steps or seeds, or a width that is none of the model's.
    """
    if widths is None:
        widths = [model.config.mup_base_width * times // 2 for times in (1, 2, 4, 8)]
    if len(set(widths)) < 2 or num_steps < 1 or num_seeds < 2:
        raise ValueError(
            f"expected at least two --widths, one of --steps and two of --seeds, found {list(widths)}, {num_steps} and "
            f"{num_seeds}"
        )
    widths = sorted(set(widths))
    rate = _RATE * model.config.init_std if learning_rate is None else learning_rate
    config = dataclasses.replace(model.config, dtype="float32", param_dtype="float32", remat="none")
    batch = _text(config.vocab_size, min(_LENGTH, config.max_length))
    found = []
    for width in widths:
        wide = model.with_config(at_width(config, width))
        found.append(_measure(wide, make_optimizer(wide.config, rate), batch, num_seeds, num_steps))
    curves = []
    for name, what, step in found[0][0]:
        values = tuple(float(one[0][name, what, step]) for one in found)
        slope = float(np.polyfit(np.log(widths), np.log(values), 1)[0])
        curves.append(Curve(name, what, step, values, slope))
    losses = tuple(tuple(map(float, one[1])) for one in found)
    return CoordinateCheck(config.parametrization, tuple(widths), rate, num_seeds, tuple(curves), losses)


def _text(vocab_size: int, length: int) -> Batch:
    """Tokens `[batch, length]`, some frequent and some rare as words are; every other follows from the one before."""
    draw = np.random.default_rng(0)
    kinds = min(vocab_size - 1, _KINDS)
    chances = 1 / np.arange(1, kinds + 1)
    tokens = draw.choice(np.arange(1, kinds + 1), (_BATCH, length + 1), p=chances / chances.sum())
    tokens[:, 1::2] = (tokens[:, 0:-1:2] * 7) % kinds + 1
    return {
        "decoder_input_tokens": jnp.asarray(tokens[:, :-1], jnp.int32),
        "decoder_target_tokens": jnp.asarray(tokens[:, 1:], jnp.int32),
        "decoder_loss_weights": jnp.ones((_BATCH, length), jnp.int32),
    }


def _measure(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    num_seeds: int,
    num_steps: int,
) -> tuple[dict[tuple[str, str, int], jax.Array], list[jax.Array]]:
    """Root mean squares by (name, what, step), and the losses, of one width; seeds side by side."""

    def create(key: jax.Array) -> tuple[Any, Any]:
        params = model.get_initial_variables(key, {"decoder_input_tokens": (1, 1)})["params"]
        return params, optimizer.init(params)

    def update(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            sums = model.token_sums(params, batch)
            return sums.total / sums.weight, sums.nll / sums.weight

        grads, nll = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, nll

    look = jax.jit(jax.vmap(lambda params: _activations(model, params, batch)))
    take = jax.jit(jax.vmap(update))
    params, state = jax.jit(jax.vmap(create))(jax.random.split(jax.random.key(0), num_seeds))
    first, losses = look(params), []
    found = {(name, "size", 0): _size(x) for name, x in first.items() if name != LOGITS}
    for step in range(1, num_steps + 1):
        params, state, loss = take(params, state)
        losses.append(jnp.mean(loss))
        for name, x in look(params).items():
            if name == LOGITS:
                found[name, "change", step] = _shared(x - first[name])
                found[ALL_OF_LOGITS, "change", step] = _size(x - first[name])
            else:
                found[name, "size", step] = _size(x)
                found[name, "change", step] = _size(x - first[name])
    return found, losses


def _activations(model: LanguageModel, params: Any, batch: Batch) -> dict[str, jax.Array]:
    """Of the embedding `[B, L, D]`, of what all blocks give out `[layers, B, L, D]`, and logits `[B, L, tokens]`."""
    logits, seen = model.module.apply(
        {"params": params},
        batch["decoder_input_tokens"],
        capture_intermediates=lambda module, method: type(module) in _NAMES and method == "__call__",
        mutable=["intermediates"],
    )
    inner = seen["intermediates"]
    blocks = inner["layers"]
    return {
        "embedding": inner["token_embedding"]["__call__"][0],
        "attention": blocks["attention"]["__call__"][0],
        "FFN": blocks["mlp"]["__call__"][0],
        "residual stream": blocks["__call__"][0][0],
        LOGITS: logits[..., : _KINDS + 1],  # of the others none occurs
    }


def _size(x: jax.Array) -> jax.Array:
    """Root mean square of each seed's `[seeds, ...]`, averaged."""
    return jnp.mean(jnp.sqrt(jnp.mean(x**2, axis=tuple(range(1, x.ndim)))))


def _shared(x: jax.Array) -> jax.Array:
    """Root mean square of what the seeds `[seeds, ...]` have in common: √ of the mean of x_r · x_s over pairs."""
    count = x.shape[0]
    pairs = (jnp.sum(x, axis=0) ** 2 - jnp.sum(x**2, axis=0)) / (count * (count - 1))
    return jnp.sqrt(jnp.maximum(jnp.mean(pairs), 0))
