"""What `flm scaling fit` says: the law, how sure it is, and each model's loss beside its prediction."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flm_jax.json_file import write_json
from flm_jax.scaling import fit
from flm_jax.scaling.bands import LEVEL, Band, bootstrap
from flm_jax.scaling.laws import LossLaw, SizeLaw
from flm_jax.scaling.points import Points


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A law fitted to the first of some points, and all of them predicted by it.

    Attributes:
        points: All.
        num_fitted: How many of them, from the first, the law was fitted to; the others were held out.
        law: The fit.
        band: How sure it is.
        predicted: `[n]`, nats per token.
        low, high: `[n]`, between which a run's loss lies with a probability of `LEVEL`.
    """

    points: Points
    num_fitted: int
    law: SizeLaw | LossLaw
    band: Band
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def times_largest(self) -> np.ndarray:
        """`[n]`: each size over the largest fitted one."""
        return self.points.millions / self.points.millions[: self.num_fitted].max()

    @property
    def held_out(self) -> np.ndarray:
        """`[n]`: whether a point was held out; one that was never trained is not."""
        behind = np.arange(len(self.points)) >= self.num_fitted
        return behind & np.isfinite(self.points.losses)

    @property
    def errors(self) -> np.ndarray:
        """`[n]`: predicted minus found, nats; NaN of a model that was never trained."""
        return self.predicted - self.points.losses

    def rows(self) -> list[dict[str, Any]]:
        """A point each, as JSON has them."""
        columns: dict[str, np.ndarray] = {
            "params_millions": self.points.millions,
            "loss": self.points.losses,
            "predicted": self.predicted,
            "error": self.errors,
            "low": self.low,
            "high": self.high,
            "times_largest_fitted": self.times_largest,
        }
        if self.points.tokens_millions is not None:
            columns["tokens_millions"] = self.points.tokens_millions
        rows: list[dict[str, Any]] = []
        for i in range(len(self.points)):
            numbers = {name: float(column[i]) for name, column in columns.items()}
            rows.append({name: None if np.isnan(number) else number for name, number in numbers.items()})
            rows[-1]["fitted"] = i < self.num_fitted
            if self.points.widths is not None:
                rows[-1]["width"] = self.points.widths[i]
        return rows

    def to_json(self) -> dict[str, Any]:
        """All numbers, the law's own first."""
        held_out, losses = self.held_out, self.points.losses
        inside = (losses >= self.low) & (losses <= self.high)
        return dataclasses.asdict(self.law) | {
            "form": _FORMS[type(self.law)],
            "level": LEVEL,
            "confidence_intervals": self.band.parameters(),
            "residual_std": self.band.residual,
            "num_fitted": self.num_fitted,
            "num_held_out": int(held_out.sum()),
            "held_out_max_error": float(np.abs(self.errors[held_out]).max()) if held_out.any() else None,
            "held_out_inside": int(inside[held_out].sum()),
            "resamples": len(self.band.laws),
            "seed": self.band.seed,
            "predictions": self.rows(),
        }

    def write_json(self, path: str | Path, **used: Any) -> None:
        """Writes the numbers, and what was `used` to make them, whole or not at all."""
        write_json(path, self.to_json() | {"used": used})

    def table(self) -> str:
        """For people."""
        values = self.to_json()
        intervals = ", ".join(
            f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in values["confidence_intervals"].items()
        )
        fitted = self.points.millions[: self.num_fitted]
        lines = [
            f"{equation(self.law)} nats per token; {_UNITS[type(self.law)]}",
            f"{LEVEL:.0%} intervals: {intervals}",
            f"fitted to {self.num_fitted} points, {fitted.min():,.4g}M to {fitted.max():,.4g}M parameters; they lie "
            f"{self.band.residual:.4f} nats (standard deviation) about it",
            "",
            *_columns(values["predictions"]),
        ]
        if values["num_held_out"]:
            lines += [
                "",
                f"held out: off by {values['held_out_max_error']:.4f} nats at the most, up to "
                f"{self.times_largest[self.held_out].max():.1f} times the largest fitted size; "
                f"{values['held_out_inside']} of {values['num_held_out']} between low and high, {LEVEL:.0%} of runs "
                "expected there",
            ]
        return "\n".join(lines)


def predict(
    points: Points, fit_first: int | None = None, untrained: Sequence[Sequence[float]] = ()
) -> Prediction:
    """Fits the law that the points' columns are for, and predicts all of them.

    Args:
        points: Of trained models.
        fit_first: How many to fit, from the first; None for all.
        untrained: More models to predict: millions of parameters of each and, with tokens, of these.

    Raises:
        ValueError: there are fewer points than that, or `untrained` ones have other columns.
        FitError: they show no law.
    """
    if fit_first is not None and fit_first > len(points):
        raise ValueError(f"expected --fit_first of at most the CSV's {len(points)} rows, found {fit_first}")
    everything = points.and_also(untrained)
    chosen = points.first(len(points) if fit_first is None else fit_first)
    law: SizeLaw | LossLaw
    if points.tokens_millions is None:
        law = fit.fit_size_law(chosen.millions, chosen.losses)
        refit: Any = functools.partial(fit.nearest_size_law, chosen.millions)
    else:
        params, tokens = chosen.at
        law = fit.fit_loss_law(params, tokens, chosen.losses)
        refit = functools.partial(fit.nearest_loss_law, params, tokens, near=law)
    band: Band = bootstrap(law, chosen.at, chosen.losses, refit)
    low, high = band.runs(*everything.at)
    return Prediction(everything, len(chosen), law, band, law.loss(*everything.at), low, high)


def equation(law: SizeLaw | LossLaw) -> str:
    """The law with its numbers."""
    if isinstance(law, SizeLaw):
        return f"L(C) = {law.a:.4g} C^{law.b:.4g} + {law.c:.4g}"
    return f"L(N, D) = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.4g} + {law.B:.4g} / D^{law.beta:.4g}"


_FORMS = {SizeLaw: "a*C^b + c", LossLaw: "E + A/N^alpha + B/D^beta"}
_UNITS = {SizeLaw: "C in millions of parameters", LossLaw: "N in parameters, D in tokens"}


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """The rows, each cell to the right."""
    named = {"width": "width", "params_millions": "params (M)", "tokens_millions": "tokens (M)"}
    cells = [[title for key, title in named.items() if key in rows[0]]]
    cells[0] += ["", "x largest", "loss", "predicted", "error", "low", "high"]
    for row in rows:
        trained = row["loss"] is not None
        kind = "fitted" if row["fitted"] else "held out" if trained else "to train"
        cells.append([f"{row[key]:,.2f}" if key != "width" else row[key] for key in named if key in row])
        cells[-1] += [kind, f"{row['times_largest_fitted']:.2f}"]
        cells[-1] += [f"{row['loss']:.4f}" if trained else "-", f"{row['predicted']:.4f}"]
        cells[-1] += [f"{row['error']:+.4f}" if trained else "-", f"{row['low']:.4f}", f"{row['high']:.4f}"]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)) for line in cells]
