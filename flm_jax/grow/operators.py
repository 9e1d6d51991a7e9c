"""The operators: for each axis what its new entries hold, by role, and what keeps the function.

An operator is a map of the axis and, for every row of the parameter table that has the axis, a `Rule`. Nothing
here knows a parameter's name. `layers`, `heads` and `mlp` need no constants; widening the residual stream
(`embed`) does, because the norms divide by its width and µP's readout multiplier falls with it.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping

from flm_jax.config import ModelConfig
from flm_jax.grow import axis_map
from flm_jax.grow.axis_map import AxisMap
from flm_jax.grow.errors import UnknownMethodError
from flm_jax.parameters import Parameter, Role

# Axis -> the field of ModelConfig with its size, for the axes that can grow.
FIELDS = {"embed": "d_model", "heads": "num_heads", "mlp": "d_ff", "layers": "num_layers"}


class Fill(enum.Enum):
    """What new entries hold."""

    INIT = "a draw of the initialisation"
    ZERO = "zero"
    MEAN = "the mean of the old entries"
    COPY = "a copy of their source"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What growing one axis does to one parameter.

    Attributes:
        fill: What the new entries hold.
        weight: Factor on the whole parameter, the new entries included.
    """

    fill: Fill
    weight: float = 1.0

    @property
    def gradient_weight(self) -> float:
        """By the chain rule: where weight · old computes what old did, its gradient is 1/weight of the old one."""
        return 1 / self.weight


@dataclasses.dataclass(frozen=True)
class Operator:
    """One way to grow one axis.

    Attributes:
        make_map: From the old and the new size.
        rule: From a row of the table that has the axis and the two configs.
        exact: Whether the function is kept (with the mask at 0, where there is one).
        masked: Whether a mask hides the new entries and is ramped.
        carries_moments: Whether new entries take their source's optimizer moments and age.
        epsilon: Factor on the norms' epsilon, from the two configs.
        says: What it does, for `GrowthPlan.explain`.
    """

    make_map: Callable[[int, int], AxisMap]
    rule: Callable[[Parameter, ModelConfig, ModelConfig], Rule]
    says: str
    exact: bool = True
    masked: bool = False
    carries_moments: bool = False
    epsilon: Callable[[ModelConfig, ModelConfig], float] = lambda source, target: 1.0


def readout_fold(source: ModelConfig, target: ModelConfig) -> float:
    """What the final norm must make up for: µP's readout multiplier is output_mult / (d_model / base)."""
    return source.logit_scale / target.logit_scale


def _masked_width(row: Parameter, source: ModelConfig, target: ModelConfig) -> Rule:
    folded = row.role in (Role.READOUT_GAIN, Role.READOUT_BIAS)
    return Rule(Fill.INIT, readout_fold(source, target) if folded else 1.0)


def _average_width(row: Parameter, source: ModelConfig, target: ModelConfig) -> Rule:
    """LEMON (arXiv 2310.07999): the residual stream [x, mean(x)]; its new coordinates are 0 behind every norm.

    The mean stays, the variance shrinks to d/D of it, so with epsilon · d/D the normed x grows by sqrt(D/d), which
    the gains take back. Whatever writes to the stream, biases too, must write the mean; what reads it is free.
    """
    shrink = math.sqrt(source.d_model / target.d_model)
    fold = readout_fold(source, target)
    return {
        Role.EMBEDDING: Rule(Fill.MEAN),
        Role.WRITE: Rule(Fill.MEAN),
        Role.BIAS: Rule(Fill.MEAN),
        Role.READ: Rule(Fill.INIT),
        Role.NORM_GAIN: Rule(Fill.INIT, shrink),
        Role.NORM_BIAS: Rule(Fill.ZERO),
        Role.READOUT_GAIN: Rule(Fill.INIT, shrink * fold),
        Role.READOUT_BIAS: Rule(Fill.ZERO, fold),
    }[row.role]


def _all(fill: Fill) -> Callable[[Parameter, ModelConfig, ModelConfig], Rule]:
    return lambda row, source, target: Rule(fill)


def _silent(rest: Fill) -> Callable[[Parameter, ModelConfig, ModelConfig], Rule]:
    """New entries write nothing to the residual stream: out-projections and, for layers, their biases are zero."""

    def rule(row: Parameter, source: ModelConfig, target: ModelConfig) -> Rule:
        writes = row.role is Role.WRITE or (row.role is Role.BIAS and "embed" in row.axes)
        return Rule(Fill.ZERO if writes else rest)

    return rule


_HIDDEN = {
    "mask": Operator(axis_map.append, _all(Fill.INIT), "random weights, hidden by the mask", masked=True),
    "zero": Operator(axis_map.append, _silent(Fill.INIT), "random inputs, zero output weights"),
}
# Axis -> name -> operator. In the order in which fills are laid over each other: a mean over `embed` is taken of
# what the new heads and FFN units hold, and what a new layer holds is decided last.
OPERATORS: Mapping[str, Mapping[str, Operator]] = {
    "heads": _HIDDEN,
    "mlp": _HIDDEN,
    "embed": {
        "mask": Operator(
            axis_map.append,
            _masked_width,
            "random weights, hidden by the mask in the norms (MSG)",
            masked=True,
        ),
        "average": Operator(
            axis_map.append,
            _average_width,
            "new coordinates of the residual stream hold its mean (LEMON)",
            epsilon=lambda source, target: source.d_model / target.d_model,
        ),
    },
    "layers": {
        "mask": Operator(
            axis_map.spread, _all(Fill.INIT), "random layers between the old, hidden by the mask", masked=True
        ),
        "zero": Operator(
            axis_map.spread, _silent(Fill.INIT), "random layers between the old, zero output weights"
        ),
        "zero_copy": Operator(
            axis_map.spread, _silent(Fill.COPY), "copies of the layer below, zero output weights"
        ),
        "stack": Operator(
            axis_map.stack,
            _all(Fill.COPY),
            "the layers again on top of themselves",
            exact=False,
            carries_moments=True,
        ),
    },
}
# Method -> axis -> operator.
METHODS: Mapping[str, Mapping[str, str]] = {
    "msg": {"heads": "mask", "mlp": "mask", "embed": "mask", "layers": "mask"},
    "lemon": {"heads": "zero", "mlp": "zero", "embed": "average", "layers": "zero_copy"},
    "gstack": {"layers": "stack"},
}


def choose(method: str | Mapping[str, str], axes: tuple[str, ...]) -> dict[str, str]:
    """The operator's name for each axis that grows, in the order of `OPERATORS`.

    Args:
        method: A name in `METHODS`, or axis to operator; axes that do not grow may be named too.
        axes: Those that grow.

    Raises:
        UnknownMethodError: there is no such method or operator, or none is given for an axis that grows.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise UnknownMethodError(
                f"unknown growth method {method!r}: expected one of {', '.join(METHODS)}, or a dict from axis to "
                f"operator such as {dict(METHODS['lemon'])} (bind Stage.method)"
            )
        named, whose = METHODS[method], f"the method {method!r}"
    elif not isinstance(method, Mapping):
        raise UnknownMethodError(
            f"Stage.method must be one of {', '.join(METHODS)}, or a dict from axis to operator; found {method!r}"
        )
    else:
        named, whose = method, f"the method {dict(method)}"
    for axis, name in named.items():
        if axis not in OPERATORS or not isinstance(name, str) or name not in OPERATORS[axis]:
            known = {axis: list(operators) for axis, operators in OPERATORS.items()}
            raise UnknownMethodError(
                f"unknown operator {axis!r}: {name!r} in Stage.method; expected one of {known}, where the axes are "
                f"those of {FIELDS}"
            )
    missing = [axis for axis in axes if axis not in named]
    if missing:
        whole = {axis: named.get(axis, next(iter(OPERATORS[axis]))) for axis in axes}
        raise UnknownMethodError(
            f"{whose} says nothing of {', '.join(missing)}, which the target grows; give Stage.method an operator for "
            f"each axis that grows, such as {whole}"
        )
    return {axis: named[axis] for axis in OPERATORS if axis in axes}
