"""Growth whose new entries add nothing to the function: zero output weights, a padded or averaged residual stream.

Exactly one side of every new connection is zero, the other is free: with both at zero nothing would ever learn.
"""

import math
from collections.abc import Callable

from flm_jax.config import ModelConfig
from flm_jax.grow import axis_map
from flm_jax.grow.rule import Fill, Growing, Operator, Rule, fill_all, readout_fold, writes
from flm_jax.parameters import Parameter, Role


def silent(rest: Fill) -> Callable[[Parameter, Growing], Rule]:
    """New entries write nothing to the residual stream: out-projections and, for layers, their biases are zero."""
    return lambda row, growing: Rule(Fill.ZERO if writes(row) else rest)


def _average(row: Parameter, growing: Growing) -> Rule:
    """LEMON (arXiv 2310.07999): the residual stream [x, mean(x)]; its new coordinates are 0 behind every norm.

    The mean stays, the variance shrinks to d/D of it, so with epsilon · d/D the normed x grows by sqrt(D/d), which
    the gains take back. Whatever writes to the stream, biases too, must write the mean; what reads it is free.
    """
    shrink, fold = _shrink(growing.source, growing.target), readout_fold(growing.source, growing.target)
    return {
        Role.EMBEDDING: Rule(Fill.MEAN),
        Role.WRITE: Rule(Fill.MEAN),
        Role.BIAS: Rule(Fill.MEAN),
        Role.READ: Rule(Fill.INIT),
        Role.READOUT: Rule(Fill.INIT),
        Role.NORM_GAIN: Rule(Fill.INIT, shrink),
        Role.NORM_BIAS: Rule(Fill.ZERO),
        Role.READOUT_GAIN: Rule(Fill.INIT, shrink * fold),
        Role.READOUT_BIAS: Rule(Fill.ZERO, fold),
    }[row.role]


def _padded(gain: Callable[[ModelConfig, ModelConfig], float]) -> Callable[[Parameter, Growing], Rule]:
    """The residual stream [x, 0], for RMSNorm (Gesmundo and Maile, arXiv 2308.06103, theorem 3.5)."""

    def rule(row: Parameter, growing: Growing) -> Rule:
        weight = gain(growing.source, growing.target)
        return {
            Role.EMBEDDING: Rule(Fill.ZERO),
            Role.WRITE: Rule(Fill.ZERO),
            Role.BIAS: Rule(Fill.ZERO),
            Role.READ: Rule(Fill.INIT),
            Role.READOUT: Rule(Fill.INIT),
            Role.NORM_GAIN: Rule(Fill.INIT, weight),
            Role.READOUT_GAIN: Rule(Fill.INIT, weight * readout_fold(growing.source, growing.target)),
        }[row.role]

    return rule


def _shrink(source: ModelConfig, target: ModelConfig) -> float:
    return math.sqrt(source.d_model / target.d_model)


def _epsilon(source: ModelConfig, target: ModelConfig) -> float:
    return source.d_model / target.d_model


def _needs_layernorm(source: ModelConfig, target: ModelConfig) -> str | None:
    if source.norm == "layernorm":
        return None
    return "RMSNorm does not subtract the mean that the new coordinates hold; use pad, scaled_pad, mask or duplicate"


def _needs_rmsnorm(source: ModelConfig, target: ModelConfig) -> str | None:
    if source.norm == "rmsnorm":
        return None
    return "LayerNorm's mean shrinks when zeros are added to the stream; use average, mask or duplicate"


AVERAGE = Operator(
    axis_map.append,
    _average,
    "new coordinates of the residual stream hold its mean (LEMON)",
    epsilon=_epsilon,
    unsuitable=_needs_layernorm,
)
PAD = Operator(
    axis_map.append,
    _padded(lambda source, target: 1.0),
    "new coordinates of the residual stream are 0, RMSNorm's denominator stays",
    keeps_denominator=True,
    unsuitable=_needs_rmsnorm,
)
SCALED_PAD = Operator(
    axis_map.append,
    _padded(_shrink),
    "new coordinates of the residual stream are 0, gains x sqrt(d/D)",
    epsilon=_epsilon,
    unsuitable=_needs_rmsnorm,
)
# Heads, queries inside their key-value head, and FFN units.
UNITS = Operator(axis_map.append, silent(Fill.INIT), "random inputs, zero output weights")
LAYERS = Operator(
    axis_map.spread, silent(Fill.INIT), "random layers between the old, zero output weights", bitwise=True
)
COPIED_LAYERS = Operator(
    axis_map.spread, silent(Fill.COPY), "copies of the layer below, zero output weights", bitwise=True
)
MEAN_ROWS = Operator(
    axis_map.append, fill_all(Fill.MEAN), "new rows hold the mean of the old; for old tokens"
)
DRAWN_ROWS = Operator(axis_map.append, fill_all(Fill.INIT), "new rows are drawn; for old tokens")
