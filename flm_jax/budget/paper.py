"""`flm budget paper`: the paper's figures beside ours, as a table and as JSON."""

import dataclasses
import math
from typing import Any

from flm_jax.budget import formula, published, rates
from flm_jax.budget.published import EMISSIONS, MODELS, PRESETS, STAGES, TOTAL
from flm_jax.table import aligned

_FACTORS = (formula.NO_RECOMPUTATION, formula.CENTRE, formula.FULL_RECOMPUTATION)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A printed figure and what we get for it, to the same digits.

    Attributes:
        what, printed, reproduced, how: As in the table.
        fitted: Whether something that goes into it was chosen to give the printed figure, which then shows nothing.
    """

    what: str
    printed: str
    reproduced: str
    how: str
    fitted: bool = False

    @property
    def agrees(self) -> bool:
        """To the last printed digit, of what was not fitted to it."""
        return self.printed == self.reproduced and not self.fitted

    @property
    def mark(self) -> str:
        """Of the table; nothing where nothing is printed."""
        if not self.printed:
            return ""
        return "fitted" if self.fitted else "=" if self.agrees else "differs"


def flops() -> list[Figure]:
    """Of all models, zetta-FLOPs."""
    figures = []
    for model in MODELS:
        how = f"k = {model.factor}; {model.layers} x {model.width:,}, V {model.vocab_size:,}, s {model.length:,}"
        figures.append(Figure(model.name, model.printed, f"{model.zetta():.2f}", how))
        if model.spread:
            spread = (model.zetta(formula.FULL_RECOMPUTATION) - model.zetta(formula.NO_RECOMPUTATION)) / 2
            figures.append(Figure("  plus or minus", model.spread, f"{spread:.2f}", "k = 96 and 72"))
    return figures + flm_flops()


def flm_flops() -> list[Figure]:
    """FLM-101B's own, with the first shapes that give its total, and the language shares that give its halves."""
    shapes = published.consistent(formula.NO_RECOMPUTATION).pairs[0]
    found = sum(published.flm_zetta(shapes, formula.NO_RECOMPUTATION))
    sizes = " -> ".join(f"{layers} x {width:,}" for layers, width in shapes)
    how = f"k = 72; {sizes}, V {published.VOCAB_SIZE:,}, s {published.LENGTH:,}; only the last shape is published"
    share = 0.5349  # of English tokens; printed as 53.5 %, and the fourth digit is chosen
    return [
        Figure("FLM-101B, 311.55B tokens", TOTAL, f"{found:.2f}", how, fitted=True),
        Figure(
            "  of it English",
            "28.22",
            f"{share * float(TOTAL):.2f}",
            f"{share:.2%} of the total",
            fitted=True,
        ),
        Figure("  of it Chinese", "24.54", f"{(1 - share) * float(TOTAL):.2f}", "the rest", fitted=True),
    ]


def energy() -> list[Figure]:
    """Table 3: thousand kWh, cut off as it does, and tonnes of CO2 equivalent."""
    figures = []
    for column in EMISSIONS:
        kwh = rates.kwh(column.hours, column.watts)
        carbon = rates.tco2e(kwh, 1.0, column.intensity)
        figures.append(
            Figure(
                f"{column.name}, thousand kWh",
                column.printed_energy,
                f"{math.floor(kwh / 1000)}",
                f"{column.hours:,.0f} h x {column.watts:g} W",
            )
        )
        figures.append(
            Figure(
                f"{column.name}, tCO2e",
                column.printed_carbon,
                f"{math.floor(carbon)}",
                f"x {column.intensity:.4g} t/MWh, PUE included",
                column.fitted,
            )
        )
    return figures


def savings() -> list[Figure]:
    """What growing saved."""
    days = sum(stage[2] for stage in STAGES)
    return [
        Figure("days of training", "21.54", f"{days:.2f}", "sum of table 1"),
        Figure("days from scratch", "76.74", f"{published.days_from_scratch():.2f}",
               "all tokens at the last stage's tokens a day"),
        Figure("speedup", "3.56", f"{76.74 / days:.2f}", "76.74 days over 21.54"),
        Figure("saved, by days", "72%", f"{1 - days / 76.74:.0%}", "21.54 days beside 76.74"),
        Figure("saved, by area", "", f"{published.area_saved():.1%}", "nominal parameters x tokens, table 1"),
    ]  # fmt: skip


def asymmetry() -> list[tuple[str, ...]]:
    """FLM's FLOPs by k: each stage with our shapes, and the printed total as other factors would have it."""
    rows = [("FLM-101B, zetta-FLOPs", *(f"k = {factor}" for factor in _FACTORS))]
    by_factor = [published.flm_zetta(PRESETS, factor) for factor in _FACTORS]
    for index, (name, *_) in enumerate(STAGES):
        layers, width = PRESETS[index]
        whose = "published shape" if index == len(STAGES) - 1 else "our shape"
        label = f"{name}: {layers} x {width:,} ({whose})"
        rows.append((label, *(f"{stages[index]:.2f}" for stages in by_factor)))
    rows.append(("all, with our shapes", *(f"{sum(stages):.2f}" for stages in by_factor)))
    printed = (float(TOTAL) * factor / formula.NO_RECOMPUTATION for factor in _FACTORS)
    rows.append(("all, as printed for k = 72", *(f"{value:.2f}" for value in printed)))
    return rows


def consistency() -> list[tuple[str, ...]]:
    """Which k can give FLM's printed total, whatever the two shapes were."""
    rows: list[tuple[str, ...]] = [
        ("k", "totals of all shapes that round to 16B and 51B", f"shapes that give {TOTAL}")
    ]
    for factor in _FACTORS:
        found = published.consistent(factor)
        rows.append(
            (
                str(factor),
                f"{found.lowest:.2f} to {found.highest:.2f}",
                f"{len(found.pairs)} of {found.tried:,}",
            )
        )
    return rows


def table() -> str:
    """For people."""
    parts = []
    for title, figures in (
        ("FLOPs, zetta (1e21)", flops()),
        ("time", savings()),
        ("energy and carbon", energy()),
    ):
        shown = [figure.mark for figure in figures]
        title += f": {shown.count('=')} of {len([mark for mark in shown if mark in ('=', 'differs')])} agree"
        rows = [(title, "printed", "ours", "", "how")]
        rows += [(each.what, each.printed, each.reproduced, each.mark, each.how) for each in figures]
        parts.append(aligned(rows))
    parts += [aligned(asymmetry()), aligned(consistency())]
    parts.append(aligned([("where the paper disagrees with itself", ""), *published.contradictions()]))
    return "\n\n".join(parts)


def to_json() -> dict[str, Any]:
    """The same numbers."""

    def listed(figures: list[Figure]) -> list[dict[str, Any]]:
        return [dataclasses.asdict(each) | {"agrees": each.agrees, "mark": each.mark} for each in figures]

    return {
        "zetta_flops": listed(flops()),
        "time": listed(savings()),
        "energy_and_carbon": listed(energy()),
        "flm_by_factor": {
            str(factor): {
                "stages_with_our_shapes": list(published.flm_zetta(PRESETS, factor)),
                "printed_total": float(TOTAL) * factor / formula.NO_RECOMPUTATION,
            }
            for factor in _FACTORS
        },
        "consistent_shapes": [dataclasses.asdict(published.consistent(factor)) for factor in _FACTORS],
        "contradictions": [
            {"what": what, "figures": figures} for what, figures in published.contradictions()
        ],
    }
