"""Where a sweep's loss is lowest, and how sure that is."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from flm_jax.scaling.sweep import Result


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best value of one variation at one width, the others at their best.

    Attributes:
        width: d_model.
        name: Of the binding.
        best: The value tried that has the lowest mean loss over seeds.
        loss: This loss.
        interpolated: Lowest point of the parabola through the best value and its neighbours, in the value's logarithm;
            None at an edge, or where there are no neighbours on a scale.
        of_seeds: The same of each seed alone, where it has one.
        edge: Whether the best value is the smallest or largest tried: the optimum may lie beyond.
        margin: By how much the next best value is worse, nats; None where there is no other.
        spread: Standard deviation of the best value's losses over seeds; None of one seed.
    """

    width: int | None
    name: str
    best: str
    loss: float
    interpolated: float | None
    of_seeds: tuple[float, ...]
    edge: bool
    margin: float | None
    spread: float | None

    @property
    def sure(self) -> str:
        """In words."""
        if self.edge:
            return "at the edge: try further"
        if self.margin is not None and self.spread is not None and self.margin < self.spread:
            return "interior, the next value within the seeds' spread"
        return "interior"


def best_point(results: Sequence[Result]) -> tuple[tuple[str, str], ...]:
    """The bindings whose mean loss over seeds is lowest; a trial that diverged makes its point the worst."""
    return min(mean_losses(results).items(), key=lambda item: item[1])[0]


def mean_losses(results: Sequence[Result]) -> dict[tuple[tuple[str, str], ...], float]:
    """Over seeds, of each point that was tried with as many of them as any."""
    losses: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for result in results:
        losses.setdefault(result.trial.bindings, []).append(
            result.loss if math.isfinite(result.loss) else math.inf
        )
    most = max(map(len, losses.values()))
    return {point: float(np.mean(found)) for point, found in losses.items() if len(found) == most}


def optima(results: Sequence[Result]) -> list[Optimum]:
    """Of every width and every variation, from results of a grid."""
    found = []
    for width in dict.fromkeys(result.trial.width for result in results):
        here = [result for result in results if result.trial.width == width]
        best = dict(best_point(here))
        for name in best:
            if len({dict(result.trial.bindings)[name] for result in here}) > 1:
                found.append(_optimum(width, name, best, here))
    return found


def _optimum(width: int | None, name: str, best: dict[str, str], results: Sequence[Result]) -> Optimum:
    line = [
        result
        for result in results
        if all(value == best[other] for other, value in result.trial.bindings if other != name)
    ]
    losses = {dict(point)[name]: loss for point, loss in mean_losses(line).items()}
    others = sorted(loss for value, loss in losses.items() if value != best[name])
    at_best = [result.loss for result in line if dict(result.trial.bindings)[name] == best[name]]
    seeds = sorted({result.trial.seed for result in line})
    each = [
        lowest({dict(r.trial.bindings)[name]: r.loss for r in line if r.trial.seed == seed}) for seed in seeds
    ]
    return Optimum(
        width,
        name,
        best[name],
        losses[best[name]],
        lowest(losses),
        tuple(value for value in each if value is not None),
        _is_edge(losses, best[name]),
        others[0] - losses[best[name]] if others else None,
        float(np.std(at_best, ddof=1)) if len(at_best) > 1 else None,
    )


def lowest(losses: dict[str, float]) -> float | None:
    """Lowest point of a parabola through the least loss and its neighbours, over log value.

    With losses 3.1, 3.0, 3.1 at 1e-3, 2e-3, 4e-3 it is 2e-3; with 3.1, 3.0, 3.05 it is 2.2e-3.
    """
    scale = _scale(losses)
    if scale is None:
        return None
    values = sorted(scale)
    place = min(range(len(values)), key=lambda i: scale[values[i]])
    if place in (0, len(values) - 1) or not math.isfinite(
        scale[values[place + 1]] + scale[values[place - 1]]
    ):
        return None
    x = np.log(values[place - 1 : place + 2])
    a, b, _ = np.polyfit(x - x[1], [scale[value] for value in values[place - 1 : place + 2]], 2)
    return float(np.exp(x[1] - b / (2 * a))) if a > 0 else None


def _scale(losses: dict[str, float]) -> dict[float, float] | None:
    """Losses by positive number; None where values are no such numbers."""
    try:
        scale = {float(value): loss for value, loss in losses.items()}
    except ValueError:
        return None
    return scale if all(value > 0 for value in scale) else None


def _is_edge(losses: dict[str, float], best: str) -> bool:
    scale = _scale(losses)
    return scale is not None and float(best) in (min(scale), max(scale))
