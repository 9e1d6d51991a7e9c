"""Keeps a run's ledger: what each second of a process went to, and what its steps came to."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jax.extend import core

from flm_jax import flops
from flm_jax.json_file import write_text
from flm_jax.training import hardware, processes
from flm_jax.training.hardware import Peak
from flm_jax.training.ledger import ACTIVITIES, LEDGER_FILE, Entry, Ledger, read_ledger
from flm_jax.training.leg import Leg


class Bookkeeper:
    """Writes `MODEL_DIR/ledger.json`, behind what earlier processes of the run wrote there; a context manager.

    Args:
        model_dir: Of the run.
        started: When the process began to hold its devices, by `now`.
        now: Clock in seconds, for tests.

    Every second counts to one activity, so that they add up to the time that passed. Of several processes that train
    together each keeps the same books, and the first writes.

    Raises:
        LedgerError: what is there cannot be read.
    """

    def __init__(self, model_dir: Path, started: float, now: Callable[[], float] = time.perf_counter) -> None:
        self._path = Path(model_dir) / LEDGER_FILE
        self._closed = list(read_ledger(model_dir).entries) if self._path.exists() else []
        self._now, self._since, self._activity = now, started, "other"
        self._clock = dict.fromkeys(ACTIVITIES, 0.0)  # of the process
        self._clock_before = dict(self._clock)  # where the open entry began
        self._open: Entry | None = None
        self.hardware_flops: int | None = None  # of a step

    def __enter__(self) -> "Bookkeeper":
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self.write()

    def begin(self, leg: Leg, step: int, peak: Peak) -> None:
        """Opens the entry of a stage, which is gone on with after `step` batches."""
        if self._open:
            self._close()
        devices = list(leg.mesh.devices.flat)
        self._model_flops_per_token = round(leg.config.flops_per_token(leg.route.length))
        self._positions = leg.stage.batch_size * leg.route.length
        self._open = Entry(
            stage=leg.index + 1,
            params=leg.config.num_params,
            first_step=step,
            last_step=step,
            tokens=0,
            positions=0,
            model_flops=0,
            hardware_flops=0,
            seconds={},
            devices=len(devices),
            device_kind=devices[0].device_kind,
            peak_flops_per_second=peak.flops_per_second,
            watts=hardware.watts(devices[0].device_kind),
        )

    @contextlib.contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """Counts the time inside to one of `ACTIVITIES`, and to no other."""
        self._settle()
        outer, self._activity = self._activity, activity
        try:
            yield
        finally:
            self._settle()
            self._activity = outer

    def count(self, jaxpr: core.ClosedJaxpr) -> str | None:
        """Counts the FLOPs of the program of the steps to come; says why where that cannot be done."""
        try:
            self.hardware_flops = int(flops.count(jaxpr))
        except ValueError as error:  # of somebody's own optimizer or model
            self.hardware_flops = None
            return f"hardware FLOPs are not counted, here and in {LEDGER_FILE}: {error}"
        return None

    def training_seconds(self) -> float:
        """Of this process so far."""
        self._settle()
        return self._clock["training"]

    def step(self, tokens: float) -> None:
        """Counts a step over so many tokens that are not padding, of the program that was counted last."""
        entry = self._entry
        before, more = entry.hardware_flops, self.hardware_flops
        self._open = dataclasses.replace(
            entry,
            last_step=entry.last_step + 1,
            tokens=entry.tokens + int(tokens),
            positions=entry.positions + self._positions,
            model_flops=entry.model_flops + int(tokens) * self._model_flops_per_token,
            hardware_flops=None if before is None or more is None else before + more,
        )

    def close_entry(self) -> None:
        """Before a checkpoint is saved: on disk once it returns, so that no checkpoint is ever without its entry."""
        entry = self._entry
        if entry.last_step > entry.first_step:
            self._close()
            self._open = dataclasses.replace(
                entry, first_step=entry.last_step, tokens=0, positions=0, model_flops=0, hardware_flops=0
            )
        self.write()

    def write(self) -> None:
        """Brings the file up to date."""
        if processes.is_first():
            write_text(self._path, self.ledger.to_text())

    @property
    def ledger(self) -> Ledger:
        """Of the run so far, the open entry included."""
        return Ledger((*self._closed, self._settled()))

    @property
    def _entry(self) -> Entry:
        assert self._open is not None, "begin comes first"
        return self._open

    def _settle(self) -> None:
        now = self._now()
        self._clock[self._activity] += now - self._since
        self._since = now

    def _settled(self) -> Entry:
        self._settle()
        seconds = {name: round(self._clock[name] - self._clock_before[name], 6) for name in ACTIVITIES}
        return dataclasses.replace(self._entry, seconds=seconds)

    def _close(self) -> None:
        self._closed.append(self._settled())
        self._clock_before = dict(self._clock)
