"""AdamW with µP's multipliers by (axes, role), and learning-rate schedules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flm_jax import parameters
from flm_jax.aged_adam import scale_by_aged_adam
from flm_jax.config import ModelConfig


class Multipliers(NamedTuple):
    """Factors of each parameter, as numbers in the shape of the parameter tree."""

    learning_rate: Any
    weight_decay: Any
    epsilon: Any  # on Adam's eps


def width_multipliers(config: ModelConfig) -> Multipliers:
    """What (axes, role) give at the config's width: µP's, or 1 in standard parametrisation."""

    def each(multiplier: Callable[[parameters.Parameter, ModelConfig], float]) -> Any:
        rows = parameters.table(config)
        return jax.tree.map(lambda row: multiplier(row, config), rows, is_leaf=parameters.is_parameter)

    return Multipliers(
        each(parameters.Parameter.learning_rate_mult),
        each(parameters.Parameter.weight_decay_mult),
        each(lambda row, config: 1.0),
    )


def adamw(
    config: ModelConfig,
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    multipliers: Multipliers | None = None,
) -> optax.GradientTransformation:
    """AdamW as FLM-101B's (section 2.4 of the paper): clipping by the global norm, decoupled weight decay.

    For a parameter p with multipliers l, w and e the update is -lr · l · (adam(g, e · eps) + weight_decay · w · p).
    Under µP l = 1/m and w = m for a matrix, so lr · decay is the same at every width; norms and biases are not
    decayed; e is 1. Adam's bias correction knows the age of what growth has added (`aged_adam.py`).

    Args:
        config: The model that is trained.
        learning_rate: Of the base width: a number, or a function of the number of updates made.
        b1: Decay of the mean of gradients.
        b2: Decay of the mean of squared gradients.
        eps: Added to the root of the second moment.
        weight_decay: Per update, times the learning rate.
        clip_norm: Largest global norm of the gradients.
        multipliers: Of each parameter; None is `width_multipliers(config)`. A grown model goes on with
            `GrowthPlan.multipliers`, which keep the dynamics of what was there.
    """
    mults = width_multipliers(config) if multipliers is None else multipliers

    def decay_and_scale(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        return jax.tree.map(
            lambda update, param, rate, decay: rate * (update + weight_decay * decay * param),
            updates,
            params,
            mults.learning_rate,
            mults.weight_decay,
        )

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        scale_by_aged_adam(config, b1, b2, jax.tree.map(lambda mult: eps * mult, mults.epsilon)),
        optax.stateless(decay_and_scale),
        optax.scale_by_learning_rate(learning_rate),
    )


def warmup_cosine(peak: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine down to `final` at `total_steps`.

    A function of the updates made before: with a warmup the first update, at count 0, has learning rate 0.

    Raises:
        ValueError: the steps do not fit.
    """
    _check(total_steps, warmup_steps)
    return _in_full_precision(
        optax.warmup_cosine_decay_schedule(
            init_value=0.0 if warmup_steps else peak,
            peak_value=peak,
            warmup_steps=warmup_steps,
            decay_steps=total_steps,
            end_value=final,
        )
    )


def warmup_stable_decay(
    peak: float, total_steps: int, decay_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
    """WSD: linear warmup, `peak` for as long as it lasts, linear down to `final` over the last `decay_steps`.

    Raises:
        ValueError: the steps do not fit, or nothing decays.
    """
    if decay_steps < 1:
        raise ValueError(
            f"WSD decays over its last steps: expected DECAY_STEPS of at least 1, found {decay_steps}"
        )
    _check(total_steps, warmup_steps + decay_steps)
    return _in_full_precision(
        optax.join_schedules(
            [
                optax.linear_schedule(0.0 if warmup_steps else peak, peak, max(warmup_steps, 1)),
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, final, decay_steps),
            ],
            boundaries=[warmup_steps, total_steps - decay_steps],
        )
    )


def _in_full_precision(schedule: optax.Schedule) -> optax.Schedule:
    """From an integer count optax's schedules are float32, also where everything else is float64."""
    return lambda count: schedule(jnp.asarray(count, float))


def _check(total_steps: int, ramps: int) -> None:
    if not 0 <= ramps < total_steps:
        raise ValueError(
            f"a schedule of {total_steps} steps has no room for {ramps} steps of warmup and decay; "
            "lower WARMUP_STEPS (and DECAY_STEPS), or raise TRAIN_STEPS; with stages, warmup_steps and steps under the "
            "stage's scope of schedule.Stage"
        )
