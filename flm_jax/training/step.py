"""One update and one evaluation, as pure functions to be jitted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flm_jax import partitioning
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.model import TASK_NUMBERS, Batch, LanguageModel, PartSums, TokenSums
from flm_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def skipping_non_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer that leaves parameters and state alone when a gradient is not finite, and counts it.

    The trainer stops the run after some in a row; the limit here is never reached, because beyond it optax
    would apply the bad update.
    """
    return optax.apply_if_finite(optimizer, max_consecutive_errors=2**31 - 1)


def gradients(
    model: LanguageModel,
    params: Any,
    batch: Batch,
    num_microbatches: int = 1,
    growth: GrowthMask | None = None,
    num_tasks: int = 0,
    shardings: Any = None,
) -> tuple[Any, TokenSums]:
    """Gradient of the mean loss over the batch's tokens, in `num_microbatches` parts, and the batch's sums.

    `growth` hides what a growth has added while its mask ramps. With `num_tasks` the batch says which of them each row
    is of (`model.TASK_NUMBERS`), and `parts` of the sums are theirs, `[num_tasks]`.

    Every token weighs the same, however the tokens with loss fall into microbatches: the result equals that of
    the undivided batch up to rounding. `shardings`, in the shape of the parameters, says how the gradients lie,
    those of the parts and their sums too.
    """

    def mean(found: tuple[Any, TokenSums]) -> tuple[Any, TokenSums]:
        grads, sums = found
        normalizer = model.normalizer(sums.weight)
        return jax.tree.map(lambda grad: grad / normalizer.astype(grad.dtype), grads), sums

    # Pipeline stages divide the batch themselves, and need it whole to be busy.
    pipelined = partitioning.axis_size("stage") > 1

    def loss(params: Any, part: Batch) -> tuple[jax.Array, TokenSums]:
        sums = model.token_sums(params, part, growth, num_microbatches if pipelined else 1)
        if num_tasks:
            sums = sums._replace(parts=_of_each_task(sums.parts, part[TASK_NUMBERS], num_tasks))
        return sums.total, sums

    # Of the sum, and divided at the end: the loss in chunks can then give out its gradients as they are.
    whole = jax.grad(loss, has_aux=True)

    def one_part(params: Any, part: Batch) -> tuple[Any, TokenSums]:
        grads, sums = whole(params, part)
        return grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings), sums

    if num_microbatches == 1 or pipelined:
        return mean(one_part(params, batch))
    # Rows i, i + n, ... form part i, so that each part lies on all devices as the batch does.
    parts = jax.tree.map(lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, one_part(params, part)), None

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(one_part, params, jax.tree.map(lambda x: x[0], parts)),
    )
    return mean(jax.lax.scan(add, zeros, parts)[0])


def _of_each_task(rows: PartSums | None, numbers: jax.Array, num_tasks: int) -> PartSums:
    """Sums of each task, `[num_tasks]`, from those of each row, `[batch]`."""
    is_of = numbers[:, None] == jnp.arange(num_tasks, dtype=numbers.dtype)
    # A sum, which is split over devices as rows are; and by `where`, for a row that is not finite spoils its task only.
    return jax.tree.map(lambda values: jnp.sum(jnp.where(is_of, values[:, None], 0), axis=0), rows)


def train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    num_microbatches: int = 1,
    mask: Callable[[jax.Array], GrowthMask | None] = lambda step: None,
    num_tasks: int = 0,
    gradient_shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update `(state, batch) -> (state, metrics)` of one optimizer.

    Args:
        model: Its loss is minimised.
        optimizer: Wrapped by `skipping_non_finite`.
        num_microbatches: Parts into which the batch is divided, to save memory; divides the batch.
        mask: The growth mask of the step after `step` steps (`Lineage.mask`, while a mask ramps).
        num_tasks: Whose figures are wanted; 0 for none.
        gradient_shardings: Where the optimizer's state lies, in the shape of the parameters, so that a device gets the
            gradients of its part; None leaves it to the compiler.

    Returns:
        The function to jit. Its metrics are scalars: `loss` (nats per token), `z_loss`, `accuracy`, `grad_norm`
        (before clipping), `loss_tokens`, `tokens` (not padding), `skipped` (steps so far), `skipped_in_a_row`; and with
        `num_tasks` the sums of each task, `[num_tasks]`: `task_nll`, `task_correct`, `task_weight`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, sums = gradients(
            model, state.params, batch, num_microbatches, mask(state.step), num_tasks, gradient_shardings
        )
        norm = optax.global_norm(grads)
        # Finite gradients whose norm overflows would be clipped to zero and pass for a good step.
        grads = jax.tree.map(lambda grad: jnp.where(jnp.isfinite(norm), grad, jnp.nan), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        weight = jnp.maximum(sums.weight, 1)
        metrics = {
            "loss": sums.nll / weight,
            "z_loss": sums.z_loss / weight,
            "accuracy": sums.correct / weight,
            "grad_norm": norm,
            "loss_tokens": sums.weight,
            "tokens": jnp.sum(batch["decoder_segment_ids"] > 0),
            "skipped": opt_state.total_notfinite,
            "skipped_in_a_row": opt_state.notfinite_count,
        }
        if sums.parts is not None:
            metrics |= {f"task_{name}": values for name, values in sums.parts._asdict().items()}
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def eval_step(model: LanguageModel, num_microbatches: int = 1) -> Callable[..., Metrics]:
    """Sums over one held-out batch, `(params, batch, piece_bytes, growth) -> {"nll", "correct", "tokens", "bytes"}`.

    `piece_bytes` `[vocab]` are the UTF-8 bytes that each token stands for, so that bits per byte are exact. A token
    with loss counts once, whatever it weighs in training. Pipeline stages take the batch in `num_microbatches` parts.
    """

    def step(params: Any, batch: Batch, piece_bytes: jax.Array, growth: GrowthMask | None = None) -> Metrics:
        has_loss = batch["decoder_loss_weights"] > 0
        sums = model.token_sums(params, {**batch, "decoder_loss_weights": has_loss}, growth, num_microbatches)
        return {
            "nll": sums.nll,
            "correct": sums.correct,
            "tokens": sums.weight,
            "bytes": jnp.sum(jnp.where(has_loss, piece_bytes[batch["decoder_target_tokens"]], 0)),
        }

    return step
