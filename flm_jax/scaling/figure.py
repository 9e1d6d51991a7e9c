"""The figure of `flm scaling fit`: points, the law and its band over model size."""

from pathlib import Path
from typing import Any

import numpy as np

from flm_jax import figure_file
from flm_jax.scaling.bands import LEVEL
from flm_jax.scaling.prediction import Prediction, equation


def draw(prediction: Prediction, path: str | Path) -> None:
    """Writes a PNG: the loss over parameters, logarithmic, with a curve for each of a few numbers of tokens."""
    from matplotlib import colors

    pyplot = figure_file.pyplot()
    points, law = prediction.points, prediction.law
    plot, axes = pyplot.subplots(figsize=(7.5, 5), constrained_layout=True)
    sizes = np.geomspace(points.millions.min() / 1.3, points.millions.max() * 1.3, 200)
    colours = None
    curves: list[tuple[Any, tuple[np.ndarray, ...]]] = [("C0", (sizes,))]
    if (tokens := points.tokens_millions) is not None:
        colours = pyplot.cm.ScalarMappable(colors.LogNorm(tokens.min() / 1e3, tokens.max() / 1e3), "viridis")
        plot.colorbar(colours, ax=axes, label="D, billions of tokens")
        curves = [
            (colours.to_rgba(each / 1e3), (sizes * 1e6, np.full(sizes.shape, each * 1e6)))
            for each in _spread(np.unique(tokens))
        ]
    for number, (colour, at) in enumerate(curves):
        curve, band = (None, None) if number else ("law", f"{LEVEL:.0%} of runs")
        axes.plot(sizes, law.loss(*at), color=colour, label=curve)
        axes.fill_between(sizes, *prediction.band.runs(*at), color=colour, alpha=0.2, linewidth=0, label=band)

    fitted = np.arange(len(points)) < prediction.num_fitted
    for chosen, marker, colour, name in (
        (fitted, "o", "C0", "fitted"),
        (prediction.held_out, "D", "C3", "held out"),
    ):
        if chosen.any():
            face = colour if colours is None or tokens is None else colours.to_rgba(tokens[chosen] / 1e3)
            axes.scatter(
                points.millions[chosen],
                points.losses[chosen],
                marker=marker,
                label=name,
                zorder=3,
                c=face,
                edgecolors=colour,
            )
    axes.set(
        xscale="log",
        xlabel="model size, millions of parameters",
        ylabel="loss, nats per token",
        title=equation(law),
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper right")
    figure_file.save(plot, path)


def _spread(tokens: np.ndarray, most: int = 5) -> np.ndarray:
    """So many of the numbers of tokens as can be told apart as curves, the least and the most among them."""
    return tokens[np.linspace(0, len(tokens) - 1, min(most, len(tokens))).round().astype(int)]
