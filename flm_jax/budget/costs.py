"""What a run's stages cost, and what training its last model from scratch would.

Rows are plain numbers: a plan's (`CostTable.of`) and those that `flm train` measured (`measured`) make the same table.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flm_jax.budget import formula
from flm_jax.budget.machine import Machine
from flm_jax.budget.rates import Rates, kwh, tco2e
from flm_jax.config import ModelConfig
from flm_jax.table import aligned, number

SPEEDS = ("mfu", "hfu", "tokens_per_second")
_MEASURES = {
    "formula_flops": "FLOPs by the formula",
    "model_flops": "model FLOPs",
    "hardware_flops": "hardware FLOPs",
    "seconds": "time",
    "dollars": "money",
    "area": "parameters x tokens",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one stage costs; of several together, all but `params` are sums. None is what is not known.

    Attributes:
        name: Of the stage.
        params: Of its model; of several stages, of the last one's.
        tokens: Trained on.
        formula_flops: By the paper's formula (`formula`).
        model_flops: Counted exactly, recomputation left out (`ModelConfig.flops_per_token`).
        hardware_flops: Counted exactly, all that is carried out.
        possible_flops: The devices' peak rate times `seconds`.
        seconds: Of wall-clock time.
        device_hours: Of all devices.
        dollars, kwh, tco2e: `kwh` is the devices' own.
    """

    name: str
    params: int
    tokens: float
    formula_flops: float | None
    model_flops: float
    hardware_flops: float | None
    possible_flops: float
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


def priced(rates: Rates, device_hours: float, energy: float | None) -> dict[str, float | None]:
    """Money, energy and carbon of a row.

    Args:
        rates: Of a device-hour.
        device_hours: Of all devices.
        energy: kWh by the devices' data sheets, which `rates.watts` is put in place of.
    """
    energy = energy if rates.watts is None else kwh(device_hours, rates.watts)
    return {
        "dollars": None if rates.price is None else device_hours * rates.price,
        "kwh": energy,
        "tco2e": None if energy is None else tco2e(energy, rates.pue, rates.grid),
    }


def total(rows: Sequence[Row], name: str = "all") -> Row:
    """Of several stages together."""
    sums: dict[str, Any] = {}
    for field in dataclasses.fields(Row)[2:]:
        values = [getattr(each, field.name) for each in rows]
        sums[field.name] = None if None in values else sum(values)
    return Row(name, rows[-1].params, **sums)


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """What a stage is to do: a model, and steps of `batch_size` sequences of `length` tokens."""

    name: str
    config: ModelConfig
    steps: int
    batch_size: int
    length: int

    @property
    def tokens(self) -> int:
        """All that it trains on."""
        return self.steps * self.batch_size * self.length


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

    def seconds(self, stage: PlannedStage, value: float, machine: Machine) -> float:
        """How long the stage takes at this value of the measure."""
        if self.measure == "tokens_per_second":
            return stage.tokens / value
        count = (
            stage.config.flops_per_token if self.measure == "mfu" else stage.config.hardware_flops_per_token
        )
        return stage.tokens * count(stage.length) / (machine.peak * value)


@dataclasses.dataclass(frozen=True)
class CostTable:
    """Stages, all of them together, and the last one's model trained from scratch on as many tokens.

    Attributes:
        machine: What they run on and what that costs, as plain JSON values.
        rows: Of the stages.
        from_scratch: Of the last model on all tokens.
        factor: k of the formula.
        assumptions: What is taken for granted, a line each.
    """

    machine: dict[str, Any]
    rows: tuple[Row, ...]
    from_scratch: Row
    factor: float
    assumptions: tuple[str, ...]

    @staticmethod
    def of(
        stages: Sequence[PlannedStage],
        machine: Machine,
        speed: Speed,
        factor: float = formula.NO_RECOMPUTATION,
    ) -> "CostTable":
        """Predicts it.

        Raises:
            ValueError: a speed is above the peak, or there are more speeds than stages.
        """
        values = speed.of_stages(len(stages))
        rows = tuple(
            _predicted(stage, machine, speed, value, factor)
            for stage, value in zip(stages, values, strict=True)
        )
        scratch = scaled(rows[-1], sum(row.tokens for row in rows) / rows[-1].tokens, "from scratch")
        given = ", ".join(f"{value:g}" for value in speed.values)
        assumptions = (
            *machine.assumptions(),
            *(
                f"stage {index}: {stage.steps:,} steps of {stage.batch_size:,} sequences of "
                f"{stage.length:,} tokens"
                for index, stage in enumerate(stages, 1)
            ),
            f"{speed.measure} {given} (--{speed.measure})",
            *common_assumptions(factor),
        )
        return CostTable(machine.to_json(), rows, scratch, factor, assumptions)

    @property
    def total(self) -> Row:
        """All stages."""
        return total(self.rows)

    def saved(self) -> dict[str, float]:
        """Shares of from scratch that are not spent, each by its own measure, of those that are known."""
        scratch, everything = self.from_scratch, self.total
        shares = {
            name: 1 - getattr(everything, name) / getattr(scratch, name)
            for name in _MEASURES
            if name != "area" and None not in (getattr(everything, name), getattr(scratch, name))
        }
        return shares | {"area": 1 - sum(each.area for each in self.rows) / scratch.area}

    def table(self) -> str:
        """For people."""
        header = ("stage", "parameters", "tokens", f"formula k={self.factor:g}", "model FLOPs", "hardware FLOPs", "MFU",
                  "HFU", "days", "device-hours", "dollars", "kWh", "tCO2e")  # fmt: skip
        shown = [*self.rows, self.total, self.from_scratch]
        saved = self.saved()
        lines = [
            aligned([header, *map(_cells, shown)]),
            "saved beside from scratch: "
            + ", ".join(f"{saved[key]:.1%} of {_MEASURES[key]}" for key in saved),
            "assumed:",
            *(f"  - {line}" for line in self.assumptions),
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same numbers."""
        return {
            "machine": self.machine,
            "factor": self.factor,
            "stages": [dataclasses.asdict(each) for each in self.rows],
            "total": dataclasses.asdict(self.total),
            "from_scratch": dataclasses.asdict(self.from_scratch),
            "saved": self.saved(),
            "assumptions": list(self.assumptions),
        }


def common_assumptions(factor: float) -> tuple[str, ...]:
    """Of planned and of measured tables."""
    return (
        "from scratch is the last stage's model on all tokens, at the last stage's speed: it would have another loss "
        "(flm budget plan compares at equal cost)",
        f"formula: Narayanan 2021 with k = {factor:g} (--factor: 72 without, 96 with full recomputation); model and "
        "hardware FLOPs are counted exactly (docs/model.md), the latter with the config's remat",
    )


def formula_flops(config: ModelConfig, tokens: float, length: int, factor: float) -> float:
    """By the paper's formula, for training on so many tokens in sequences of `length`."""
    each = formula.flops_per_token(config.num_layers, config.d_model, config.vocab_size, length, factor)
    return tokens * each


def scaled(row: Row, times: float, name: str) -> Row:
    """As long at the same speed."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Row)[2:]:
        value = getattr(row, field.name)
        values[field.name] = None if value is None else value * times
    return Row(name, row.params, **values)


def _cells(each: Row) -> tuple[str, ...]:
    hfu = None if each.hardware_flops is None else each.hardware_flops / each.possible_flops
    return (
        each.name,
        f"{each.params:,}",
        f"{each.tokens:.4g}",
        number(each.formula_flops, ".4g"),
        f"{each.model_flops:.4g}",
        number(each.hardware_flops, ".4g"),
        f"{each.model_flops / each.possible_flops:.1%}",
        number(hfu, ".1%"),
        f"{each.days:,.2f}" if each.days >= 0.1 else f"{each.days:.2g}",
        number(each.device_hours, ",.0f" if each.device_hours >= 100 else ".3g"),
        number(each.dollars, ",.0f" if (each.dollars or 0) >= 100 else ".3g"),
        number(each.kwh, ",.0f" if (each.kwh or 0) >= 100 else ".3g"),
        number(each.tco2e, ".3g"),
    )


def _predicted(stage: PlannedStage, machine: Machine, speed: Speed, value: float, factor: float) -> Row:
    config, seconds = stage.config, speed.seconds(stage, value, machine)
    hours = seconds / 3600 * machine.num_devices
    found = Row(
        stage.name,
        config.num_params,
        stage.tokens,
        formula_flops(config, stage.tokens, stage.length, factor),
        stage.tokens * config.flops_per_token(stage.length),
        stage.tokens * config.hardware_flops_per_token(stage.length),
        machine.peak * seconds,
        seconds,
        hours,
        **priced(machine.rates, hours, None),
    )
    # Equal to the peak but for rounding where --hfu=1.
    if found.model_flops > found.possible_flops * (1 + 1e-9):
        raise ValueError(
            f"--{speed.measure}={value:g} is {found.model_flops / found.possible_flops:.0%} of the peak of "
            f"{machine.num_devices:,} {machine.chip.name} in stage {stage.name}: expected at most 100 %"
        )
    return found
