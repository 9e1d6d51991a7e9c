"""The ledger of a run: what each stage costs, and what training its last model from scratch would.

Rows are plain numbers, so that a run's measured ones make the same ledger as a plan's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flm_jax.budget import formula, power
from flm_jax.budget.machine import Machine
from flm_jax.config import ModelConfig
from flm_jax.table import aligned, number

SPEEDS = ("mfu", "hfu", "tokens_per_second")


@dataclasses.dataclass(frozen=True)
class Row:
    """What one stage costs; of several together, all but `params` are sums.

    Attributes:
        name: Of the stage.
        params: Of its model; of several stages, of the last one's.
        tokens: Trained on.
        formula_flops: By the paper's formula (`formula`).
        model_flops: Counted exactly, recomputation left out (`ModelConfig.flops_per_token`).
        hardware_flops: Counted exactly, all that is carried out.
        seconds: Of wall-clock time.
        device_hours: Of all devices.
        dollars, kwh, tco2e: None where price or power are not known. `kwh` is the devices' own.
    """

    name: str
    params: int
    tokens: float
    formula_flops: float
    model_flops: float
    hardware_flops: float
    seconds: float
    device_hours: float
    dollars: float | None
    kwh: float | None
    tco2e: float | None

    @property
    def days(self) -> float:
        """Of wall-clock time."""
        return self.seconds / 86_400

    @property
    def area(self) -> float:
        """Parameters times tokens: the area under the size of the model as a function of tokens."""
        return self.params * self.tokens


def row(
    machine: Machine,
    name: str,
    params: int,
    tokens: float,
    formula_flops: float,
    model_flops: float,
    hardware_flops: float,
    seconds: float,
) -> Row:
    """A stage that has taken `seconds` of all devices, predicted or measured."""
    device_hours = seconds / 3600 * machine.num_devices
    energy = None if machine.watts is None else power.kwh(device_hours, machine.watts)
    return Row(
        name,
        params,
        tokens,
        formula_flops,
        model_flops,
        hardware_flops,
        seconds,
        device_hours,
        None if machine.price is None else device_hours * machine.price,
        energy,
        None if energy is None else power.tco2e(energy, machine.pue, machine.grid),
    )


def total(rows: Sequence[Row], name: str = "all") -> Row:
    """Of several stages together."""
    sums: dict[str, Any] = {}
    for field in dataclasses.fields(Row)[2:]:
        values = [getattr(each, field.name) for each in rows]
        sums[field.name] = None if None in values else sum(values)
    return Row(name, rows[-1].params, **sums)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage is to do: a model, and tokens in sequences of `length`."""

    name: str
    config: ModelConfig
    tokens: float
    length: int


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast stages run, by one of three measures.

    Attributes:
        measure: `mfu`: share of the peak in model FLOPs. `hfu`: in all FLOPs that are carried out, what is recomputed
            (`ModelConfig.remat`) included. `tokens_per_second`: of all devices together.
        values: One for all stages, or one for each.
    """

    measure: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.measure not in SPEEDS:
            raise ValueError(f"a speed is one of {', '.join(SPEEDS)}; found {self.measure!r}")
        highest = float("inf") if self.measure == "tokens_per_second" else 1.0
        for value in self.values:
            if not 0 < value <= highest:
                kind = "positive" if highest > 1 else "a share of the peak between 0 and 1"
                raise ValueError(f"--{self.measure} must be {kind}, found {value}")

    def of_stages(self, stages: int) -> tuple[float, ...]:
        """One value for each stage.

        Raises:
            ValueError: there are more or fewer.
        """
        if len(self.values) not in (1, stages):
            raise ValueError(
                f"--{self.measure} takes one number, or {stages}, one for each stage; found {len(self.values)}"
            )
        return self.values if len(self.values) == stages else self.values * stages

    def seconds(self, work: Work, value: float, machine: Machine) -> float:
        """How long the work takes at this value of the measure."""
        if self.measure == "tokens_per_second":
            return work.tokens / value
        count = work.config.flops_per_token if self.measure == "mfu" else work.config.hardware_flops_per_token
        return work.tokens * count(work.length) / (machine.peak * value)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Stages, all of them together, and the last one's model trained from scratch on as many tokens."""

    machine: Machine
    rows: tuple[Row, ...]
    from_scratch: Row
    factor: float
    assumptions: tuple[str, ...]

    @staticmethod
    def of(
        works: Sequence[Work], machine: Machine, speed: Speed, factor: float = formula.NO_RECOMPUTATION
    ) -> "Ledger":
        """Predicts it.

        Raises:
            ValueError: a speed is above the peak, or there are more speeds than stages.
        """
        values = speed.of_stages(len(works))
        rows = tuple(
            _predicted(work, machine, speed, value, factor) for work, value in zip(works, values, strict=True)
        )
        everything = dataclasses.replace(
            works[-1], name="from scratch", tokens=sum(work.tokens for work in works)
        )
        given = ", ".join(f"{value:g}" for value in speed.values)
        assumptions = (
            *machine.assumptions(),
            f"{speed.measure} {given} (--{speed.measure})",
            "from scratch runs at the last stage's speed",
            f"formula: Narayanan 2021 with k = {factor:g} (--factor: 72 without, 96 with full recomputation); model "
            "and hardware FLOPs are counted exactly (docs/model.md), the latter with the config's remat",
            "from scratch is the last stage's model on all tokens: it would have another loss (flm budget plan "
            "compares at equal cost)",
        )
        return Ledger(
            machine, rows, _predicted(everything, machine, speed, values[-1], factor), factor, assumptions
        )

    @property
    def total(self) -> Row:
        """All stages."""
        return total(self.rows)

    def saved(self) -> dict[str, float]:
        """Shares of from scratch that are not spent, each by its own measure."""
        scratch, everything = self.from_scratch, self.total
        shares = {
            name: 1 - getattr(everything, name) / getattr(scratch, name)
            for name in ("formula_flops", "model_flops", "hardware_flops", "seconds")
        }
        return shares | {"area": 1 - sum(each.area for each in self.rows) / scratch.area}

    def table(self) -> str:
        """For people."""
        header = ("stage", "parameters", "tokens", f"formula k={self.factor:g}", "model FLOPs", "hardware FLOPs", "MFU",
                  "HFU", "days", "device-hours", "dollars", "kWh", "tCO2e")  # fmt: skip
        shown = [*self.rows, self.total, self.from_scratch]
        saved = self.saved()
        names = {
            "formula_flops": "FLOPs by the formula",
            "model_flops": "model FLOPs",
            "hardware_flops": "hardware FLOPs",
            "seconds": "time and money",
            "area": "parameters x tokens",
        }
        lines = [
            aligned([header, *map(self._cells, shown)]),
            "saved beside from scratch: " + ", ".join(f"{saved[key]:.1%} of {names[key]}" for key in names),
            "assumed:",
            *(f"  - {line}" for line in self.assumptions),
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same numbers."""
        return {
            "machine": self.machine.to_json(),
            "factor": self.factor,
            "stages": [dataclasses.asdict(each) for each in self.rows],
            "total": dataclasses.asdict(self.total),
            "from_scratch": dataclasses.asdict(self.from_scratch),
            "saved": self.saved(),
            "assumptions": list(self.assumptions),
        }

    def _cells(self, each: Row) -> tuple[str, ...]:
        peak = self.machine.peak * each.seconds
        return (
            each.name,
            f"{each.params:,}",
            f"{each.tokens:.4g}",
            f"{each.formula_flops:.4g}",
            f"{each.model_flops:.4g}",
            f"{each.hardware_flops:.4g}",
            f"{each.model_flops / peak:.1%}",
            f"{each.hardware_flops / peak:.1%}",
            f"{each.days:,.2f}" if each.days >= 0.1 else f"{each.days:.2g}",
            number(each.device_hours, ",.0f" if each.device_hours >= 100 else ".3g"),
            number(each.dollars, ",.0f" if (each.dollars or 0) >= 100 else ".3g"),
            number(each.kwh, ",.0f" if (each.kwh or 0) >= 100 else ".3g"),
            number(each.tco2e, ".3g"),
        )


def _predicted(work: Work, machine: Machine, speed: Speed, value: float, factor: float) -> Row:
    config, seconds = work.config, speed.seconds(work, value, machine)
    found = row(
        machine,
        work.name,
        config.num_params,
        work.tokens,
        work.tokens
        * formula.flops_per_token(config.num_layers, config.d_model, config.vocab_size, work.length, factor),
        work.tokens * config.flops_per_token(work.length),
        work.tokens * config.hardware_flops_per_token(work.length),
        seconds,
    )
    # Equal to the peak but for rounding where --hfu=1.
    if found.model_flops > machine.peak * seconds * (1 + 1e-9):
        raise ValueError(
            f"--{speed.measure}={value:g} is {found.model_flops / machine.peak / seconds:.0%} of the peak of "
            f"{machine.num_devices:,} {machine.chip.name} in stage {work.name}: expected at most 100 %"
        )
    return found
