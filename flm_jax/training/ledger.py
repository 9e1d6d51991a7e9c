"""What a run cost, as `MODEL_DIR/ledger.json` has it: read here, kept by `bookkeeper`.

The file is a list of entries in the order of time; everything else in it is a sum over them. An entry ends where a
checkpoint is saved, a stage begins or a process ends, and is on disk before the checkpoint is. So every checkpoint that
a run can go on from ends an entry, and what a kill undoes is made of whole entries: those that end behind the step from
which a later one begins. Hence two sums, right whatever was killed:

* `kept`: what is in the parameters. Each step counts once, by the process whose result was kept. A function of the
  run alone: equal, to the last token and FLOP, to that of a run that was never interrupted. (A killed run that has
  not gone on yet still counts what it did behind its last checkpoint.)
* `spent`: all that was done and all the time that it took, steps that had to be taken again included. Lost are the
  seconds, and the steps, of a killed process behind its last line in the log.

Nothing of this is in the checkpoints, which stay as they are: they say where a run stands, not what became of it.
FLOPs are whole numbers of any size, so that sums do not depend on their order.
"""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEDGER_FILE = "ledger.json"
FORMAT = 1
# What a process does with its devices, one at a time; `other` is starting, restoring and ending.
ACTIVITIES = ("training", "compiling", "evaluating", "growing", "saving", "other")


class LedgerError(ValueError):
    """`ledger.json` is damaged, or does not know what it is asked for."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one process did in one stage between two checkpoints.

    Attributes:
        stage: From 1.
        params: Of the stage's model.
        first_step: Batches that the run had taken before it.
        last_step: And after it; the same where it took none.
        tokens: Read, padding excluded.
        positions: Computed on, padding included.
        model_flops: Tokens by `ModelConfig.flops_per_token`, the convention of MFU.
        hardware_flops: Matmuls of the training step's program (`flm_jax.flops`): recomputation, padding, whole blocks
            of attention, what idle pipeline stages compute; all devices together. None where they cannot be counted.
        seconds: Of each activity; together the time from the entry before on, or from the start of the process.
        devices: Of the stage's mesh, over all processes.
        device_kind: As JAX calls them.
        peak_flops_per_second: Of all these devices.
        watts: Of one device at most, by its data sheet; None where none is published.
    """

    stage: int
    params: int
    first_step: int
    last_step: int
    tokens: int
    positions: int
    model_flops: int
    hardware_flops: int | None
    seconds: dict[str, float]
    devices: int
    device_kind: str
    peak_flops_per_second: float
    watts: float | None

    @property
    def device_hours(self) -> float:
        """All its time, on all devices."""
        return sum(self.seconds.values()) * self.devices / 3600


@dataclasses.dataclass(frozen=True)
class Work:
    """What was computed on: batches, tokens, positions and FLOPs, as in `Entry`."""

    steps: int
    tokens: int
    positions: int
    model_flops: int
    hardware_flops: int | None

    @staticmethod
    def of(entries: Sequence[Entry]) -> "Work":
        """Summed up; FLOPs that one entry does not know are not known of all."""
        carried_out = [entry.hardware_flops for entry in entries if entry.last_step > entry.first_step]
        return Work(
            sum(entry.last_step - entry.first_step for entry in entries),
            sum(entry.tokens for entry in entries),
            sum(entry.positions for entry in entries),
            sum(entry.model_flops for entry in entries),
            None if None in carried_out else sum(filter(None, carried_out)),
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a stage, or of all.

    Attributes:
        params: Of the model, the last one where there are several.
        kept: What is in the parameters.
        spent: What was done, lost work included.
        seconds: Wall-clock time of each activity.
        device_hours: All that time, on all devices of the mesh.
        training_share: Of the device-hours: those in training steps.
        mfu: Model FLOPs spent, over what the devices could have done in the time of the training steps; None without.
        kwh: Device-hours at the power of the data sheet; None where that is not published. No hosts, no cooling.
    """

    params: int
    kept: Work
    spent: Work
    seconds: dict[str, float]
    device_hours: float
    training_share: float
    mfu: float | None
    kwh: float | None

    @staticmethod
    def of(entries: Sequence[Entry], kept: Sequence[Entry]) -> "Cost":
        """Of some entries, at least one, of which these are kept."""
        spent = Work.of(entries)
        hours = math.fsum(entry.device_hours for entry in entries)
        training = math.fsum(entry.seconds["training"] * entry.devices for entry in entries) / 3600
        could = math.fsum(entry.seconds["training"] * entry.peak_flops_per_second for entry in entries)
        known = all(entry.watts is not None for entry in entries)
        return Cost(
            params=entries[-1].params,
            kept=Work.of(kept),
            spent=spent,
            seconds={
                name: round(math.fsum(entry.seconds[name] for entry in entries), 6) for name in ACTIVITIES
            },
            device_hours=hours,
            training_share=training / hours if hours else 0.0,
            mfu=spent.model_flops / could if could else None,
            kwh=math.fsum(e.device_hours * (e.watts or 0) for e in entries) / 1000 if known else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the names are those of a planned cost, where it has them."""
        measured = {
            "seconds": round(math.fsum(self.seconds.values()), 6),
            "seconds_of": self.seconds,
            "device_hours": self.device_hours,
            "training_share": self.training_share,
            "mfu": self.mfu,
            "kwh": self.kwh,
        }
        kept, spent = dataclasses.asdict(self.kept), dataclasses.asdict(self.spent)
        return {"params": self.params, "kept": kept, "spent": spent | measured}


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The entries of a run, in the order of time; at least one."""

    entries: tuple[Entry, ...]

    @property
    def kept(self) -> list[Entry]:
        """Those whose steps are in the parameters."""
        return [self.entries[index] for index in self._kept()]

    def _kept(self) -> list[int]:
        kept: list[int] = []
        for index, entry in enumerate(self.entries):
            # It went on from the checkpoint of its first step: what had been done behind that is lost.
            while kept and self.entries[kept[-1]].last_step > entry.first_step:
                kept.pop()
            if entry.last_step > entry.first_step:
                kept.append(index)
        return kept

    @property
    def uncovered(self) -> list[tuple[int, int]]:
        """Steps, from and to, that are in the parameters and of which nothing is known.

        Taken before there was a ledger, or by another program.
        """
        gaps, known = [], 0
        ends = [(entry.first_step, entry.last_step) for entry in self.kept]
        for first, last in [*ends, (self.entries[-1].last_step,) * 2]:
            if first > known:
                gaps.append((known, first))
            known = max(known, last)
        return gaps

    @property
    def gaps(self) -> list[str]:
        """What is not covered, for people."""
        return [f"{LEDGER_FILE} does not cover steps {first:,} to {last:,}" for first, last in self.uncovered]

    @property
    def total(self) -> Cost:
        """Of all stages."""
        return Cost.of(self.entries, self.kept)

    @property
    def stages(self) -> dict[int, Cost]:
        """Of each, by its number from 1."""
        kept = self.kept
        return {
            stage: Cost.of(
                [entry for entry in self.entries if entry.stage == stage],
                [entry for entry in kept if entry.stage == stage],
            )
            for stage in sorted({entry.stage for entry in self.entries})
        }

    def at(self, step: int) -> "Ledger":
        """The ledger as it stood when the checkpoint of `step` was about to be saved: what that checkpoint cost.

        Raises:
            LedgerError: there was none; the message names those that are known.
        """
        ends = {self.entries[index].last_step: index for index in self._kept()}
        if step not in ends:
            raise LedgerError(
                f"expected the step of a checkpoint that the ledger knows, {', '.join(map(str, ends)) or 'none yet'}; "
                f"found {step}"
            )
        return Ledger(self.entries[: ends[step] + 1])

    @property
    def energy(self) -> str:
        """Where `kwh` is from, or why there is none."""
        powers = {(entry.device_kind, entry.watts) for entry in self.entries}
        unknown = sorted({kind for kind, watts in powers if watts is None})
        if unknown:
            return f"not estimated: no data sheet gives the power of {', '.join(unknown)}"
        of = ", ".join(f"{watts:g} W for each {kind}" for kind, watts in sorted(powers))
        return f"estimated: device-hours at {of}, the data sheet's most; no hosts, no cooling"

    def to_text(self) -> str:
        """The file's text: sums first, an entry a line behind them."""
        head = {
            "format": FORMAT,
            "total": self.total.to_json(),
            "stages": [{"stage": stage, **cost.to_json()} for stage, cost in self.stages.items()],
            "uncovered": self.uncovered,
            "energy": self.energy,
        }
        entries = ",\n".join("    " + json.dumps(dataclasses.asdict(entry)) for entry in self.entries)
        return json.dumps(head, indent=2)[:-2] + f',\n  "entries": [\n{entries}\n  ]\n}}\n'

    def table(self) -> str:
        """For people: a row for each stage, and one of all."""
        rows = [(f"stage {stage}", cost) for stage, cost in self.stages.items()]
        if len(rows) > 1:
            rows.append(("all", self.total))
        lines = [
            f"{'cost':<8} {'parameters':>15} {'steps':>9} {'again':>6} {'tokens':>17} {'model FLOPs':>11} "
            f"{'hardware':>10} {'wall':>9} {'device-hours':>12} {'in steps':>8} {'MFU':>6} {'kWh':>9}"
        ]
        lines += [_row(name, cost) for name, cost in rows]
        return "\n".join([*lines, *self.gaps])


def _row(name: str, cost: Cost) -> str:
    """Counts are those kept, times those spent."""
    kept, seconds = cost.kept, round(sum(cost.seconds.values()))
    hardware = "-" if kept.hardware_flops is None else f"{kept.hardware_flops:.3g}"
    wall = f"{seconds // 3600}:{time.strftime('%M:%S', time.gmtime(seconds))}"
    mfu = "-" if cost.mfu is None else f"{cost.mfu:.1%}"
    kwh = "-" if cost.kwh is None else f"{cost.kwh:,.3g}"
    return (
        f"{name:<8} {cost.params:>15,} {kept.steps:>9,} {cost.spent.steps - kept.steps:>6,} {kept.tokens:>17,} "
        f"{kept.model_flops:>11.3g} {hardware:>10} {wall:>9} {cost.device_hours:>12,.4g} {cost.training_share:>8.1%} "
        f"{mfu:>6} {kwh:>9}"
    )


def read_ledger(model_dir: str | Path) -> Ledger:
    """The ledger of a run.

    Raises:
        FileNotFoundError: it has none.
        LedgerError: the file is damaged, or of another version.
    """
    path = Path(model_dir).expanduser() / LEDGER_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise LedgerError(f"the format is {values['format']!r}")
        entries = tuple(_checked(Entry(**entry)) for entry in values["entries"])
        if not entries:
            raise LedgerError("there is no entry")
        return Ledger(entries)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected {path}, found none; `flm train` writes it under MODEL_DIR"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"expected a ledger of format {FORMAT} in {path}, found what cannot be read ({error!r}): copy it again, or "
            "move it away for the run to begin another, which then does not cover the steps so far"
        ) from error


def _checked(entry: Entry) -> Entry:
    """Refuses what no process has written.

    Raises:
        ValueError: naming the field.
    """
    least = {"stage": 1, "first_step": 0, "last_step": entry.first_step, "devices": 1}
    for name in (
        "stage",
        "params",
        "first_step",
        "last_step",
        "tokens",
        "positions",
        "model_flops",
        "devices",
    ):
        value = getattr(entry, name)
        if not isinstance(value, int) or value < least.get(name, 0):
            raise ValueError(f"{name} is {value!r}")
    if set(entry.seconds) != set(ACTIVITIES):
        raise ValueError(f"seconds are of {', '.join(entry.seconds)}")
    return entry
