"""The figure of a sweep: the loss over each variation, and over each pair of them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flm_jax import figure_file
from flm_jax.scaling.optimum import best_point, mean_losses, numbers, on_line
from flm_jax.scaling.trials import Result

_TICKS = 8  # values that an axis has room to name


def draw(results: Sequence[Result], path: str) -> None:
    """Writes a PNG: of each variation a curve for each width, the others at their best; of each pair a map."""
    plt = figure_file.pyplot()
    names = [name for name, _ in results[0].trial.bindings]
    names = [name for name in names if len({dict(result.trial.bindings)[name] for result in results}) > 1]
    widths = list(dict.fromkeys(result.trial.width for result in results))
    maps = list(itertools.product(itertools.combinations(names, 2), widths))
    count = max(1, len(names) + len(maps))
    drawing, axes = plt.subplots(1, count, figsize=(4.5 * count, 3.8), squeeze=False, layout="constrained")
    for name, ax in zip(names, axes[0], strict=False):
        for width in widths:
            _curve(ax, name, width, [result for result in results if result.trial.width == width])
        ax.set(xlabel=name, ylabel="loss, nats per token")
        ax.legend(fontsize=8)
    for (pair, width), ax in zip(maps, axes[0][len(names) :], strict=True):
        _map(drawing, ax, pair, [result for result in results if result.trial.width == width])
        ax.set(xlabel=pair[0], ylabel=pair[1], title="" if width is None else f"d_model {width}")
    figure_file.save(drawing, path)


def _curve(ax: Any, name: str, width: int | None, results: Sequence[Result]) -> None:
    """Mean and range over seeds."""
    best = best_point(results)
    if best is None:
        return
    losses: dict[str, list[float]] = {}
    for result in on_line(results, name, dict(best)):
        if math.isfinite(result.loss):
            losses.setdefault(dict(result.trial.bindings)[name], []).append(result.loss)
    values = _ordered(list(losses))
    places = _places(ax.set_xscale, ax.set_xticks, values)
    found = [losses[value] for value in values]
    label = "mean over seeds" if width is None else f"d_model {width}"
    ax.minorticks_off()
    ax.plot(places, [np.mean(each) for each in found], marker="o", label=label)
    ax.fill_between(places, [min(each) for each in found], [max(each) for each in found], alpha=0.2)


def _map(drawing: Any, ax: Any, pair: Sequence[str], results: Sequence[Result]) -> None:
    """Mean loss over seeds at every pair of values, other variations at their best."""
    points: dict[tuple[str, ...], list[float]] = {}
    for point, loss in mean_losses(results).items():
        points.setdefault(tuple(dict(point)[name] for name in pair), []).append(loss)
    columns, rows = (_ordered(list({point[side] for point in points})) for side in (0, 1))
    losses = {point: min(found) for point, found in points.items() if math.isfinite(min(found))}
    if len(points) == len(columns) * len(rows):
        cells = [[losses.get((column, row), math.nan) for column in columns] for row in rows]
        image = ax.imshow(cells, origin="lower", aspect="auto", cmap="viridis_r")
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
        for (column, row), loss in losses.items():
            ax.text(
                columns.index(column), rows.index(row), f"{loss:.3f}", ha="center", va="center", fontsize=8
            )
    else:  # drawn at random
        x = _places(ax.set_xscale, ax.set_xticks, [column for column, _ in losses])
        y = _places(ax.set_yscale, ax.set_yticks, [row for _, row in losses])
        image = ax.scatter(x, y, c=list(losses.values()), cmap="viridis_r")
    drawing.colorbar(image, ax=ax, label="nats per token")


def _ordered(values: list[str]) -> list[str]:
    return values if numbers(values) is None else sorted(values, key=float)


def _places(set_scale: Any, set_ticks: Any, values: list[str]) -> list[float]:
    """Where values go on an axis: logarithmic for positive numbers, one after the other for anything else."""
    names = list(dict.fromkeys(values))
    if numbers(values) is not None:
        set_scale("log")
        if len(names) <= _TICKS:
            set_ticks([float(name) for name in names], names)
        return [float(value) for value in values]
    set_ticks(range(len(names)), names)
    return [float(names.index(value)) for value in values]
