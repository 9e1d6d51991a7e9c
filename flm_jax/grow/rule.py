"""What an operator is: a map of one axis and, for every row of the parameter table that has it, a `Rule`."""

import dataclasses
import enum
from collections.abc import Callable

import numpy as np

from flm_jax.config import ModelConfig
from flm_jax.grow.axis_map import AxisMap
from flm_jax.parameters import Parameter, Role

# One number for all entries of an axis, or one for each, `[new]`.
Factor = float | np.ndarray


class Fill(enum.Enum):
    """What new entries hold."""

    INIT = "a draw of the initialisation"
    ZERO = "zero"
    MEAN = "the mean of the old entries"
    COPY = "a copy of their source"


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """What growing one axis does to one parameter.

    Attributes:
        fill: What the new entries hold.
        weight: Factor on the parameter's values along the axis, what is new included.
        gradient_weight: New gradient over old. 1 / weight by the chain rule, unless the axis is copied: then weight
            and gradient weight together sum to 1 over the copies of a source.
        rate: Factor on the learning rate, and 1 / rate on the weight decay. `weight` unless given: what has become w
            times as large moves w times as far.
        noise: Standard deviation of what is added to copies, as a share of the initialisation's; its sum over the
            copies of a source is zero.
    """

    fill: Fill
    weight: Factor = 1.0
    gradient_weight: Factor = dataclasses.field(default=None)  # type: ignore[assignment]
    rate: Factor = dataclasses.field(default=None)  # type: ignore[assignment]
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.gradient_weight is None:
            object.__setattr__(self, "gradient_weight", 1 / self.weight)
        if self.rate is None:
            object.__setattr__(self, "rate", self.weight)


@dataclasses.dataclass(frozen=True, eq=False)
class Growing:
    """One axis of a growth: what a rule may look at."""

    axis: str
    map: AxisMap
    source: ModelConfig
    target: ModelConfig

    @property
    def factor(self) -> float:
        """New size over old."""
        return self.target.size(self.axis) / self.source.size(self.axis)


def always(source: ModelConfig, target: ModelConfig) -> str | None:
    """No reason against it."""
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """One way to grow one axis.

    Attributes:
        make_map: From the old and the new size.
        rule: From a row of the table that has the axis.
        says: What it does, for `GrowthPlan.explain`.
        exact: Whether the function is kept (with the mask at 0, where there is one).
        bitwise: Whether it is kept to the last bit.
        masked: Whether a mask hides the new entries and is ramped.
        carries_moments: Whether new entries take their source's optimizer moments and age.
        symmetric: Whether copies compute the same, so that their updates never differ.
        epsilon: Factor on the norms' epsilon, from the two configs.
        keeps_denominator: Whether RMSNorm goes on to divide by the old width.
        unsuitable: Why it cannot be used between two configs, or None.
    """

    make_map: Callable[[int, int], AxisMap]
    rule: Callable[[Parameter, Growing], Rule]
    says: str
    exact: bool = True
    bitwise: bool = False
    masked: bool = False
    carries_moments: bool = False
    symmetric: bool = False
    epsilon: Callable[[ModelConfig, ModelConfig], float] = lambda source, target: 1.0
    keeps_denominator: bool = False
    unsuitable: Callable[[ModelConfig, ModelConfig], str | None] = always


def readout_fold(source: ModelConfig, target: ModelConfig) -> float:
    """What the final norm must make up for: µP's readout multiplier is output_mult / (d_model / base)."""
    return source.logit_scale / target.logit_scale


def is_folded(row: Parameter) -> bool:
    """Whether the row takes up the fold."""
    return row.role in (Role.READOUT_GAIN, Role.READOUT_BIAS)


def writes(row: Parameter) -> bool:
    """Whether it writes to the residual stream from within a block."""
    return row.role is Role.WRITE or (row.role is Role.BIAS and "embed" in row.axes)


def fill_all(fill: Fill) -> Callable[[Parameter, Growing], Rule]:
    """The same fill for every row."""
    return lambda row, growing: Rule(fill)
