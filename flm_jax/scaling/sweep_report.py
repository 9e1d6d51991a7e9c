"""A sweep for people: a table of its points, where the loss is lowest, and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flm_jax.scaling.optimum import Optimum, best_point, optima
from flm_jax.scaling.sweep import Result
from flm_jax.table import aligned


def to_json(results: Sequence[Result]) -> dict[str, Any]:
    """All trials, and the optimum of each variation at each width."""
    found = [{**vars(one), "sure": one.sure} for one in optima(results)]
    return {"optima": found, "trials": [result.to_json() for result in results]}


def table(results: Sequence[Result]) -> str:
    """A row a point, losses over seeds, then the optima."""
    rows: list[tuple[str, ...]] = [
        ("d_model", "parameters", "point", "loss", "spread", "seeds", "skipped", "")
    ]
    for width in dict.fromkeys(result.trial.width for result in results):
        here = [result for result in results if result.trial.width == width]
        best = best_point(here)
        for point in dict.fromkeys(result.trial.bindings for result in here):
            rows.append(_row(width, point, [r for r in here if r.trial.bindings == point], point == best))
    return "\n".join([aligned(rows), "", *map(_line, optima(results))])


def _row(
    width: int | None, point: tuple[tuple[str, str], ...], found: Sequence[Result], is_best: bool
) -> tuple[str, ...]:
    losses = [result.loss for result in found]
    return (
        "as bound" if width is None else str(width),
        f"{found[0].num_params:,}",
        " ".join(f"{name}={value}" for name, value in point),
        f"{np.mean(losses):.4f}",
        f"{np.std(losses, ddof=1):.4f}" if len(losses) > 1 else "-",
        str(len(losses)),
        str(sum(result.skipped for result in found)),
        "best" if is_best else "",
    )


def _line(one: Optimum) -> str:
    at = "" if one.width is None else f"d_model {one.width}: "
    parabola = ""
    if one.interpolated is not None:
        parabola = f", interpolated {one.interpolated:.4g}"
        if len(one.of_seeds) > 1:
            parabola += f" ({min(one.of_seeds):.4g} to {max(one.of_seeds):.4g} over seeds)"
    margin = "" if one.margin is None else f"; the next value is {one.margin:.4f} nats worse"
    return f"{at}{one.name} best at {one.best}{parabola}, loss {one.loss:.4f}: {one.sure}{margin}"


def figure(results: Sequence[Result], path: str) -> None:
    """Draws the loss over each variation, a line a width; of two variations a heat map of every width besides."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name, _ in results[0].trial.bindings]
    names = [name for name in names if len({dict(r.trial.bindings)[name] for r in results}) > 1]
    widths = list(dict.fromkeys(result.trial.width for result in results))
    maps = widths if len(names) == 2 else []
    count = len(names) + len(maps)
    drawing, axes = plt.subplots(1, count, figsize=(4.5 * count, 3.8), squeeze=False, layout="constrained")
    for name, ax in zip(names, axes[0], strict=False):
        for width in widths:
            _draw_line(ax, name, width, [result for result in results if result.trial.width == width])
        ax.set(xlabel=name, ylabel="loss, nats per token")
        ax.legend(fontsize=8)
    for width, ax in zip(maps, axes[0][len(names) :], strict=True):
        _draw_map(ax, names, [result for result in results if result.trial.width == width])
        ax.set_title("" if width is None else f"d_model {width}")
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def _draw_line(ax: Any, name: str, width: int | None, results: Sequence[Result]) -> None:
    """Mean and range over seeds, the other variations at their best."""
    best = dict(best_point(results))
    losses: dict[str, list[float]] = {}
    for result in results:
        point = dict(result.trial.bindings)
        if all(point[other] == best[other] for other in best if other != name):
            losses.setdefault(point[name], []).append(result.loss)
    ticks, numbers = _places(list(losses))
    order = np.argsort(ticks)
    means = np.array([np.mean(found) for found in losses.values()])
    low, high = (np.array([of(found) for found in losses.values()]) for of in (min, max))
    label = "mean over seeds" if width is None else f"d_model {width}"
    places = np.array(ticks)[order]
    ax.plot(places, means[order], marker="o", label=label)
    ax.fill_between(places, low[order], high[order], alpha=0.2)
    if numbers:
        ax.set_xscale("log")
    else:
        ax.set_xticks(ticks, list(losses), rotation=30)


def _places(values: Sequence[str]) -> tuple[list[float], bool]:
    """Where values go on an axis, and whether they are positive numbers."""
    try:
        numbers = [float(value) for value in values]
        if min(numbers) > 0:
            return numbers, True
    except ValueError:
        pass
    return [float(index) for index in range(len(values))], False


def _draw_map(ax: Any, names: Sequence[str], results: Sequence[Result]) -> None:
    """Mean loss over seeds of every pair of values."""
    points = [dict(result.trial.bindings) for result in results]
    columns, rows = (list(dict.fromkeys(point[name] for point in points)) for name in names)
    columns, rows = (
        sorted(v, key=lambda x: _places([x])[0][0] if _places([x])[1] else 0) for v in (columns, rows)
    )
    cells = np.full((len(rows), len(columns)), np.nan)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            found = [
                r.loss
                for r, p in zip(results, points, strict=True)
                if (p[names[0]], p[names[1]]) == (column, row)
            ]
            cells[y, x] = np.mean(found) if found else np.nan
            ax.text(
                x,
                y,
                f"{cells[y, x]:.3f}" if found else "",
                ha="center",
                va="center",
                fontsize=8,
                color="white",
            )
    ax.imshow(cells, origin="lower", aspect="auto", cmap="viridis_r")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel=names[0], ylabel=names[1])
