"""Growth by copies of what is there, whose consumers share the old weights among them (Net2Net, HyperCloning).

What sums over a copied axis splits its weights: over the copies of a source they sum to 1, so the sum is the old one.
What the axis only indexes is copied as it is, and gets that share of the old gradient.

One unit with input weight 3 and output weight 4 becomes two with (3, 3) and (2, 2), or unevenly (4/3, 8/3).
"""

from collections.abc import Callable

import numpy as np

from flm_jax.config import ModelConfig
from flm_jax.grow import axis_map
from flm_jax.grow.axis_map import AxisMap
from flm_jax.grow.rule import Factor, Fill, Growing, Operator, Rule, is_folded, readout_fold
from flm_jax.parameters import Parameter, Role

NOISE = 0.1  # of the initialisation's standard deviation
Split = Callable[[AxisMap], np.ndarray]


def _copied(split: Split = axis_map.even_split, noise: float = 0.0) -> Callable[[Parameter, Growing], Rule]:
    """See above; with `noise` on the split weights, none on what is copied as it is."""

    def rule(row: Parameter, growing: Growing) -> Rule:
        even = _one_number(axis_map.even_split(growing.map))
        shares = _one_number(split(growing.map))
        if growing.axis in row.fan_in:
            # At rates in proportion to their weights, uneven copies would stay in proportion for ever.
            return Rule(Fill.COPY, shares, gradient_weight=1.0, rate=even, noise=noise)
        if is_folded(row):
            # The readout sums over all copies; where µP's multiplier has fallen by as much, this weight is 1.
            fold = readout_fold(growing.source, growing.target)
            return Rule(Fill.COPY, fold / growing.factor, gradient_weight=1 / fold)
        if growing.axis == "embed" and row.role not in (Role.NORM_GAIN, Role.NORM_BIAS):
            # What writes to the stream gets its gradient through the norms, which mix the copies' shares: with uneven
            # ones this is their mean, and no number would be exact.
            return Rule(Fill.COPY, gradient_weight=even)
        return Rule(Fill.COPY, gradient_weight=shares)

    return rule


def _one_number(factors: np.ndarray) -> Factor:
    return float(factors[0]) if np.all(factors == factors[0]) else factors


def _needs_multiple(source: ModelConfig, target: ModelConfig) -> str | None:
    if target.d_model % source.d_model == 0:
        return None
    return (
        f"the norms keep their statistics only if every coordinate has as many copies: {target.d_model} is no "
        f"multiple of {source.d_model}; use average (LayerNorm), pad or scaled_pad (RMSNorm), or mask"
    )


def _operator(says: str, embed: bool = False, symmetric: bool = False, **rule: object) -> Operator:
    return Operator(
        axis_map.stack,
        _copied(**rule),  # type: ignore[arg-type]
        says,
        carries_moments=True,
        symmetric=symmetric,
        unsuitable=_needs_multiple if embed else lambda source, target: None,
    )


def family(embed: bool) -> dict[str, Operator]:
    """The operators of an axis of units, or of the residual stream."""
    named = {
        "duplicate": _operator("copies that share their output weights", embed, symmetric=True),
        "duplicate_noise": _operator(
            "copies that share their output weights, with noise that cancels (HyperCloning)",
            embed,
            noise=NOISE,
        ),
        "uneven": _operator(
            "copies that share their output weights unevenly (LEMON)", embed, split=axis_map.uneven_split
        ),
    }
    if not embed:
        named["net2net"] = Operator(
            axis_map.random,
            _copied(noise=NOISE),
            "copies of units drawn at random, with noise that cancels (Net2Net)",
            carries_moments=True,
        )
    return named
