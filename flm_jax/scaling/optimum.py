"""Where a sweep's loss is lowest, and how sure that is."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax.scaling.trials import Result

Point = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best value of one variation at one width.

    Attributes:
        width: d_model.
        name: Of the binding.
        best: Its value at the point of the lowest mean loss over seeds.
        loss: This loss.
        compared: How many values were tried with the other variations at their best, this one included.
        interpolated: Lowest point of the parabola through the best of these and its neighbours, in the value's
            logarithm; None at an edge, or where there are no neighbours on a scale.
        of_seeds: The same of each seed alone.
        edge: Whether the best value is the smallest or largest of all that were tried: the optimum may lie beyond.
        margin: By how much the next best of those compared is worse, nats; None where there is no other.
        error: Standard error of `margin` over seeds, which all values share; None of one seed.
    """

    width: int | None
    name: str
    best: str
    loss: float
    compared: int
    interpolated: float | None
    of_seeds: tuple[float | None, ...]
    edge: bool
    margin: float | None
    error: float | None

    @property
    def sure(self) -> str:
        """In words."""
        if self.edge:
            return "at the edge: try further"
        if self.compared < 3:
            return (
                "interior, but nothing beside it was tried with the others as they are: try a grid around it"
            )
        if self.margin is not None and self.error is not None and self.margin < 2 * self.error:
            return "interior, the next value is as good within the seeds' error"
        return "interior"


def mean_losses(results: Sequence[Result]) -> dict[Point, float]:
    """Over seeds, of each point that was tried with as many of them as any; infinite where a trial diverged."""
    losses: dict[Point, list[float]] = {}
    for result in results:
        losses.setdefault(result.trial.bindings, []).append(_finite(result.loss))
    most = max(map(len, losses.values()))
    return {point: float(np.mean(found)) for point, found in losses.items() if len(found) == most}


def best_point(results: Sequence[Result]) -> Point | None:
    """The bindings whose mean loss over seeds is lowest; None where all diverged."""
    point, loss = min(mean_losses(results).items(), key=lambda item: item[1])
    return point if math.isfinite(loss) else None


def optima(results: Sequence[Result]) -> list[Optimum]:
    """Of every width and every variation of several values; none of a width at which all diverged."""
    found = []
    for width in dict.fromkeys(result.trial.width for result in results):
        here = [result for result in results if result.trial.width == width]
        best = best_point(here)
        for name, _ in best or ():
            if len({dict(result.trial.bindings)[name] for result in here}) > 1:
                found.append(_optimum(width, name, dict(best or ()), here))
    return found


def on_line(results: Sequence[Result], name: str, best: Mapping[str, str]) -> list[Result]:
    """Those that differ from the best point in one variation at the most."""
    return [
        result
        for result in results
        if all(value == best[other] for other, value in result.trial.bindings if other != name)
    ]


def _optimum(width: int | None, name: str, best: dict[str, str], results: Sequence[Result]) -> Optimum:
    line = on_line(results, name, best)
    losses = {dict(point)[name]: loss for point, loss in mean_losses(line).items()}
    of_seed: dict[int, dict[str, float]] = {}
    for result in line:
        of_seed.setdefault(result.trial.seed, {})[dict(result.trial.bindings)[name]] = _finite(result.loss)
    margin = error = None
    if others := sorted((loss, value) for value, loss in losses.items() if value != best[name]):
        margin = others[0][0] - losses[best[name]]
        pairs = [seed[others[0][1]] - seed[best[name]] for seed in of_seed.values()]
        if len(pairs) > 1:
            error = float(np.std(pairs, ddof=1) / math.sqrt(len(pairs)))
    return Optimum(
        width,
        name,
        best[name],
        losses[best[name]],
        len(losses),
        lowest(losses),
        tuple(lowest(of_seed[seed]) for seed in sorted(of_seed)),
        _is_edge({dict(result.trial.bindings)[name] for result in results}, best[name]),
        margin,
        error,
    )


def lowest(losses: Mapping[str, float]) -> float | None:
    """Lowest point of a parabola through the least loss and its neighbours, over log value.

    With losses 3.1, 3.0, 3.1 at 1e-3, 2e-3, 4e-3 it is 2e-3; with 3.1, 3.0, 3.05 it is 2.24e-3.
    """
    scale = numbers(losses)
    if scale is None:
        return None
    values = sorted(scale)
    found = [losses[scale[value]] for value in values]
    place = int(np.argmin(found))
    if place in (0, len(values) - 1) or not math.isfinite(found[place + 1] + found[place - 1]):
        return None
    x = np.log(values[place - 1 : place + 2])
    a, b, _ = np.polyfit(x - x[1], found[place - 1 : place + 2], 2)
    return float(np.exp(x[1] - b / (2 * a))) if a > 0 else None


def numbers(values: Mapping[str, object] | set[str] | Sequence[str]) -> dict[float, str] | None:
    """Values by what they are on a logarithmic scale; None where they are no positive numbers."""
    try:
        scale = {float(value): value for value in values}
    except ValueError:
        return None
    return scale if all(value > 0 for value in scale) else None


def _is_edge(values: set[str], best: str) -> bool:
    scale = numbers(values)
    return scale is not None and float(best) in (min(scale), max(scale))


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
