"""A sweep for people: a table of its points, and where the loss is lowest."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flm_jax.scaling.optimum import Optimum, Point, best_point, optima
from flm_jax.scaling.trials import Result
from flm_jax.table import aligned


def to_json(results: Sequence[Result]) -> dict[str, Any]:
    """All trials, and the optimum of each variation at each width."""
    found = [{**vars(one), "sure": one.sure} for one in optima(results)]
    return {"optima": found, "trials": [result.to_json() for result in results]}


def to_csv(results: Sequence[Result]) -> str:
    """A row a width and seed, at the width's best point: what `flm scaling fit` reads; nothing of what diverged."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["width", "params_millions", "loss", "seed"])
    for _, here in _by_width(results):
        best = best_point(here)
        rows.writerows(
            [result.trial.width or "", result.num_params / 1e6, result.loss, result.trial.seed]
            for result in here
            if result.trial.bindings == best
        )
    return text.getvalue()


def table(results: Sequence[Result]) -> str:
    """A row a point, losses over seeds, then the optima."""
    rows: list[tuple[str, ...]] = [
        ("d_model", "parameters", "point", "loss", "spread", "seeds", "skipped", "")
    ]
    lines = []
    for width, here in _by_width(results):
        best = best_point(here)
        for point in dict.fromkeys(result.trial.bindings for result in here):
            rows.append(_row(width, point, [r for r in here if r.trial.bindings == point], point == best))
        if best is None:
            lines.append(f"{_at(width)}every point diverged: lower the learning rate")
        lines += map(_line, optima(here))
    return "\n".join([aligned(rows), "", *lines])


def _by_width(results: Sequence[Result]) -> list[tuple[int | None, list[Result]]]:
    widths = dict.fromkeys(result.trial.width for result in results)
    return [(width, [result for result in results if result.trial.width == width]) for width in widths]


def _row(width: int | None, point: Point, found: Sequence[Result], is_best: bool) -> tuple[str, ...]:
    losses = [result.loss for result in found]
    finite = all(map(math.isfinite, losses))
    return (
        "as bound" if width is None else str(width),
        f"{found[0].num_params:,}",
        " ".join(f"{name}={value}" for name, value in point),
        f"{np.mean(losses):.4f}" if finite else "diverged",
        f"{np.std(losses, ddof=1):.4f}" if finite and len(losses) > 1 else "-",
        str(len(losses)),
        str(sum(result.skipped for result in found)),
        "best" if is_best else "",
    )


def _at(width: int | None) -> str:
    return "" if width is None else f"d_model {width}: "


def _line(one: Optimum) -> str:
    parabola = ""
    if one.interpolated is not None:
        parabola = f", interpolated {one.interpolated:.4g}"
        inside = [value for value in one.of_seeds if value is not None]
        if len(one.of_seeds) > 1 and inside:
            parabola += f" ({min(inside):.4g} to {max(inside):.4g} over seeds"
            outside = len(one.of_seeds) - len(inside)
            parabola += f", {outside} of {len(one.of_seeds)} at the edge)" if outside else ")"
    margin = ""
    if one.margin is not None:
        error = "" if one.error is None else f" (standard error {one.error:.4f})"
        margin = f"; the next value is {one.margin:.4f} nats worse{error}"
    return f"{_at(one.width)}{one.name} best at {one.best}{parabola}, loss {one.loss:.4f}: {one.sure}{margin}"
