"""The coordinate check for people: a table with a verdict, and a figure."""

import dataclasses
from typing import Any

from flm_jax import figure_file
from flm_jax.scaling.coordinate_check import ALL_OF_LOGITS, LOGITS, TOLERANCE, CoordinateCheck, Curve
from flm_jax.table import aligned


def to_json(check: CoordinateCheck) -> dict[str, Any]:
    """Plain values."""
    values = dataclasses.asdict(check)
    curves = [{**dataclasses.asdict(curve), "flat": curve.flat} for curve in check.curves]
    return {"flat": check.flat, "tolerance": TOLERANCE, **values, "curves": curves}


def table(check: CoordinateCheck) -> str:
    """Every quantity at every width, its slope, and the verdict."""
    rows = [("activation", "", "step", *map(str, check.widths), "slope", "")]
    rows += [_row(curve) for curve in check.curves]
    worst = max((curve for curve in check.curves if curve.judged), key=lambda curve: abs(curve.slope))
    found = f"largest slope {worst.slope:+.3f} ({worst.name}, {worst.what} at step {worst.step})"
    verdict = (
        f"flat: {found}, within {TOLERANCE}: the multipliers are those that these widths need"
        if check.flat
        else f"not flat: {found}, beyond {TOLERANCE}: what is tuned at one of these widths is wrong at another"
    )
    head = (
        f"coordinate check, {check.parametrization} parametrisation, learning rate {check.learning_rate:g} at the base "
        f"width, {check.num_seeds} seeds; root mean squares by d_model"
    )
    note = f"in brackets: {ALL_OF_LOGITS}, whose part shrinks with width; not judged"
    return "\n".join([head, aligned(rows), note, verdict])


def _row(curve: Curve) -> tuple[str, ...]:
    slope = f"{curve.slope:+.3f}" if curve.judged else f"({curve.slope:+.3f})"
    mark = "*" if curve.judged and not curve.flat else ""
    return (curve.name, curve.what, str(curve.step), *(f"{value:.4g}" for value in curve.values), slope, mark)


def figure(check: CoordinateCheck, path: str) -> None:
    """Draws every quantity over the widths, a line for each step."""
    plt = figure_file.pyplot()
    names = list(dict.fromkeys(curve.name for curve in check.curves))
    drawing, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.4), layout="constrained")
    for name, ax in zip(names, axes, strict=True):
        for curve in check.curves:
            if curve.name == name:
                style = "-" if curve.what == "change" else ":"
                ax.plot(
                    check.widths,
                    curve.values,
                    style,
                    marker="o",
                    markersize=3,
                    label=f"{curve.what} {curve.step}",
                )
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="d_model",
            title=f"{name}{', shared' if name == LOGITS else ''}",
        )
        ax.set_xticks(check.widths, [str(width) for width in check.widths], minor=False)
        ax.minorticks_off()
    axes[0].set_ylabel("root mean square")
    axes[0].legend(fontsize=6)
    drawing.suptitle(f"Coordinate check, {check.parametrization}: {'flat' if check.flat else 'not flat'}")
    figure_file.save(drawing, path)
