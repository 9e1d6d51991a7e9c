"""The cost table of a run that was trained, from what `flm train` measured: `MODEL_DIR/ledger.json`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flm_jax.budget import formula
from flm_jax.budget.costs import CostTable, Row, common_assumptions, formula_flops, priced, scaled
from flm_jax.budget.rates import Rates
from flm_jax.config import ModelConfig
from flm_jax.grow.lineage import Lineage
from flm_jax.training.checkpoints import load_metadata
from flm_jax.training.ledger import Cost, Ledger, read_ledger


def cost_table(model_dir: str | Path, rates: Rates, factor: float = formula.NO_RECOMPUTATION) -> CostTable:
    """What a run has cost so far.

    The ledger has numbers of parameters; the models' shapes and the length of sequences, which the formula wants, are
    those of the newest checkpoint and of the growths that it records.

    Raises:
        FileNotFoundError: there is no ledger.
        LedgerError: it is damaged.
        ValueError: no step of the last stage is in it.
    """
    ledger = read_ledger(model_dir)
    try:
        metadata, _ = load_metadata(Path(model_dir))
    except FileNotFoundError:
        return of_ledger(ledger, rates, factor, {}, 0)
    configs = [record.source for record in Lineage.from_json(metadata.growth_record).records]
    shapes = {config.num_params: config for config in (*configs, metadata.config)}
    return of_ledger(ledger, rates, factor, shapes, metadata.data["length"])


def of_ledger(
    ledger: Ledger, rates: Rates, factor: float, shapes: Mapping[int, ModelConfig], length: int
) -> CostTable:
    """The same of numbers.

    Args:
        ledger: What was measured.
        rates: Of a device-hour.
        factor: k of the formula.
        shapes: Models by their number of parameters, those that are known.
        length: Tokens of a sequence.

    Raises:
        ValueError: no step of the last stage is in the ledger.
    """
    names = {stage: cost.params for stage, cost in ledger.stages.items()}
    last = max(names)
    if not ledger.stages[last].kept.tokens:
        raise ValueError(
            f"expected steps of stage {last} in the ledger, found none yet, so that there is no speed to compare with "
            "training from scratch: ask again once its first steps are logged"
        )
    rows = []
    for stage, cost in ledger.stages.items():
        config = shapes.get(cost.params)
        by_formula = None if config is None else formula_flops(config, cost.spent.tokens, length, factor)
        rows.append(_row(str(stage), cost, _possible(ledger, stage), by_formula, rates))
    scratch = _from_scratch(rows[-1], ledger, shapes.get(names[last]), length, factor)
    unknown = [str(stage) for stage, params in names.items() if params not in shapes]
    return CostTable(
        _machine(ledger, rates), tuple(rows), scratch, factor, _assumptions(ledger, rates, factor, unknown)
    )


def _row(name: str, cost: Cost, possible: float, by_formula: float | None, rates: Rates) -> Row:
    """Tokens that are kept, and everything that was spent on them."""
    return Row(
        name,
        cost.params,
        cost.kept.tokens,
        by_formula,
        cost.spent.model_flops,
        cost.spent.hardware_flops,
        possible,
        sum(cost.seconds.values()),
        cost.device_hours,
        **priced(rates, cost.device_hours, cost.kwh),
    )


def _possible(ledger: Ledger, stage: int) -> float:
    """FLOPs that the devices could have done in all the time of a stage."""
    return sum(
        sum(entry.seconds.values()) * entry.peak_flops_per_second
        for entry in ledger.entries
        if entry.stage == stage
    )


def _from_scratch(last: Row, ledger: Ledger, config: ModelConfig | None, length: int, factor: float) -> Row:
    """All kept tokens at what a kept token of the last stage has cost; FLOPs without those that were lost."""
    tokens, kept = ledger.total.kept.tokens, ledger.stages[max(ledger.stages)].kept
    whole = dataclasses.replace(
        last,
        tokens=kept.tokens,
        formula_flops=None if config is None else formula_flops(config, kept.tokens, length, factor),
        model_flops=kept.model_flops,
        hardware_flops=kept.hardware_flops,
    )
    return scaled(whole, tokens / kept.tokens, "from scratch")


def _machine(ledger: Ledger, rates: Rates) -> dict[str, Any]:
    kinds = sorted({(entry.device_kind, entry.devices) for entry in ledger.entries})
    devices = [{"kind": kind, "num_devices": number} for kind, number in kinds]
    return {
        "devices": devices,
        "price": rates.price,
        "watts": rates.watts,
        "pue": rates.pue,
        "grid": rates.grid,
    }


def _assumptions(ledger: Ledger, rates: Rates, factor: float, unknown: list[str]) -> tuple[str, ...]:
    kinds = sorted({(entry.device_kind, entry.devices) for entry in ledger.entries})
    energy = ledger.energy if rates.watts is None else f"{rates.watts:g} W a device (--watts), at full draw"
    lines = [
        f"measured on {', '.join(f'{number:,} x {kind}' for kind, number in kinds)}; tokens are those in the "
        "parameters, padding left out; FLOPs, time, money and energy are all that was spent, lost work included",
        "MFU and HFU are of all that time: compiling, evaluating, growing, saving and starting are in it (flm train's "
        "table has the MFU of the steps)",
        rates.money(),
        f"energy: {energy}; {rates.carbon()}",
        *common_assumptions(factor),
        *ledger.gaps,
    ]
    if unknown:
        lines.append(
            f"no formula of stage {', '.join(unknown)}: the ledger has numbers of parameters, and no checkpoint here "
            "records the shape"
        )
    return tuple(lines)
