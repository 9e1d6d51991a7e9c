"""One number that an evaluation has found: what every suite gives out, and every report is made of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

HELD_OUT, IQ, BENCHMARKS = "held-out", "iq", "benchmarks"
CHANCE = "chance"  # the baseline of who guesses


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measure of one task.

    Attributes:
        suite: `held-out`, `iq` or `benchmarks`.
        task: Of the suite.
        metric: Such as `loss`, `exact` or `acc`; shares are from 0 to 1.
        value: What was found.
        low: Of its 95 % interval; None where none is known.
        high: Likewise.
        count: Questions, or tokens, that it is the mean of; None where that is not known.
        share: Whether it is a share of the questions.
        baselines: What those score that have learnt nothing, or everything: `chance`, `baseline`, `oracle`.
        setting: Without which it cannot be compared, such as `5-shot, version 1.0`; empty for none.
    """

    suite: str
    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None
    share: bool = False
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    setting: str = ""

    @property
    def name(self) -> str:
        """Of the measure, the same for every model: `iq/counting_en/exact`."""
        return f"{self.suite}/{self.task}/{self.metric}"

    @property
    def text(self) -> str:
        """The value for people: shares in per cent, with their interval."""
        if not self.share:
            return f"{self.value:,.4f}"
        if self.low is None or self.high is None:
            return f"{self.value:.1%}"
        return f"{self.value:.1%} ({100 * self.low:.0f}-{100 * self.high:.0f})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)
