"""The trials of a sweep: gin bindings, width and seed of each, and what came out."""

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Variation:
    """A gin binding and the values that it takes.

    Attributes:
        name: As in `--gin.NAME=value`.
        values: In gin's spelling; or
        bounds: between which values are drawn, evenly in their logarithm.
    """

    name: str
    values: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None

    @staticmethod
    def parse(text: str) -> "Variation":
        """From `LEARNING_RATE=1e-3,2e-3`, or `LEARNING_RATE=1e-4..1e-2` of a random search.

        Raises:
            ValueError: it is neither.
        """
        name, separator, values = text.partition("=")
        low, dots, high = values.partition("..")
        try:
            if not (separator and name.strip() and values.strip()):
                raise ValueError
            if not dots:
                return Variation(name.strip(), tuple(value.strip() for value in values.split(",")))
            bounds = float(low), float(high)
            if not 0 < bounds[0] < bounds[1] < math.inf:
                raise ValueError
            return Variation(name.strip(), bounds=bounds)
        except ValueError:
            raise ValueError(
                f"expected --vary NAME=VALUE,VALUE,... or NAME=LOW..HIGH with 0 < LOW < HIGH, found {text}"
            ) from None


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run of a sweep.

    Attributes:
        width: d_model; None is the model's own.
        bindings: (name, value) of each variation, in gin's spelling.
        seed: Of the initial parameters and of the data's order.
    """

    width: int | None
    bindings: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        """For people, and to find it again in a sweep that goes on."""
        width = [] if self.width is None else [f"d_model={self.width}"]
        return " ".join([*width, *(f"{name}={value}" for name, value in self.bindings), f"seed={self.seed}"])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"width": self.width, "bindings": dict(self.bindings), "seed": self.seed}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Trial":
        """The inverse of `to_json`."""
        return Trial(values["width"], tuple(values["bindings"].items()), values["seed"])


@dataclasses.dataclass(frozen=True)
class Result:
    """A trial that is over.

    Attributes:
        trial: What it tried.
        num_params: Of its model.
        tokens: It was trained on, padding included.
        train_loss: Mean of the last tenth of its steps, nats per token.
        held_out: Loss of each task with a validation split.
        loss: What trials are compared by: the mean of `held_out`, each task with its share of the mixture; without any
            held-out text `train_loss`.
        skipped: Steps whose gradients were not finite.
        curve: (step, mean training loss since the point before), up to a hundred.
    """

    trial: Trial
    num_params: int
    tokens: int
    train_loss: float
    held_out: dict[str, float]
    loss: float
    skipped: int
    curve: list[tuple[int, float]]

    def to_json(self) -> dict[str, Any]:
        """A line of `trials.jsonl`."""
        return dataclasses.asdict(self) | {"trial": self.trial.to_json()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Result":
        """The inverse of `to_json`."""
        curve = [tuple(point) for point in values["curve"]]
        return Result(**values | {"trial": Trial.from_json(values["trial"]), "curve": curve})


def grid(widths: Sequence[int | None], variations: Sequence[Variation], seeds: Sequence[int]) -> list[Trial]:
    """Every combination: of 2 widths, 3 values and 2 seeds 12 trials.

    Raises:
        ValueError: a variation has bounds in place of values.
    """
    for each in variations:
        if each.bounds:
            raise ValueError(f"--vary {each.name}=LOW..HIGH is for a random search: give --random=POINTS")
    points = itertools.product(*([(each.name, value) for value in each.values] for each in variations))
    return _trials(widths, list(points), seeds)


def at_random(
    widths: Sequence[int | None],
    variations: Sequence[Variation],
    seeds: Sequence[int],
    number: int,
    seed: int = 0,
) -> list[Trial]:
    """`number` points, each at every width and seed; the first ones stay as they are when there are to be more."""
    draw = random.Random(seed)
    points = [tuple((each.name, _drawn(each, draw)) for each in variations) for _ in range(number)]
    return _trials(widths, points, seeds)


def _drawn(variation: Variation, draw: random.Random) -> str:
    if variation.bounds is None:
        return draw.choice(variation.values)
    low, high = map(math.log, variation.bounds)
    return f"{math.exp(draw.uniform(low, high)):.4g}"


def _trials(
    widths: Sequence[int | None], points: Sequence[tuple[tuple[str, str], ...]], seeds: Sequence[int]
) -> list[Trial]:
    every = [Trial(width, point, seed) for width in widths for point in points for seed in seeds]
    return list(dict.fromkeys(every))  # a value that is given twice is tried once
