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
    """Factors of each parameter in their tree: numbers, or arrays that broadcast over the parameter."""

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
    rewarm_steps: int = 0,
    rewarm_peak: float = 1.3,
    rewarm_since: int = 1,
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
        rewarm_steps: Updates over which the learning rate of what growth has added, and of that alone, rises from 0 to
            `rewarm_peak` times the rate of the others; it comes down to theirs over as many again. 0 for not at all.
        rewarm_since: What was born before this update is not rewarmed: the last growth's, in a run.
        rewarm_peak: SPARKLING's ρ (arXiv 2602.02472, which rewarms over 250 steps); the way down is ours.
    """
    mults = width_multipliers(config) if multipliers is None else multipliers

    def scale(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(
            lambda update, rate: jnp.asarray(rate, update.dtype) * update, updates, mults.learning_rate
        )

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        scale_by_aged_adam(
            config,
            b1,
            b2,
            jax.tree.map(lambda mult: eps * mult, mults.epsilon),
            jax.tree.map(lambda mult: weight_decay * mult, mults.weight_decay),
            _rewarming(rewarm_steps, rewarm_peak) if rewarm_steps else None,
            rewarm_since,
        ),
        optax.stateless(scale),
        optax.scale_by_learning_rate(learning_rate),
    )


def _rewarming(steps: int, peak: float) -> Callable[[jax.Array], jax.Array]:
    """With 2 steps and peak 1.5, ages 1 to 5 have 0.75, 1.5, 1.25, 1, 1."""
    return lambda age: jnp.interp(age, jnp.array([0.0, steps, 2 * steps]), jnp.array([0.0, peak, 1.0]))


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
