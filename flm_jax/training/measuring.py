"""What is measured of the model between two steps: its loss on held-out text, and a suite of questions."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flm_jax.tasks.reader import Reader
from flm_jax.training import processes
from flm_jax.training.bookkeeper import Bookkeeper
from flm_jax.training.held_out import HeldOutEvaluator
from flm_jax.training.leg import Leg
from flm_jax.training.run_log import EVAL, SUITE, RunLog
from flm_jax.training.stop import StopRequest

if TYPE_CHECKING:
    from flm_jax.training.trainer import Trainer


class Measuring:
    """Of one stage; compiles once.

    Both kinds are due at multiples of their periods and at the end of the stage. What a run that goes on finds recorded
    at its step is not measured again; what was cut short is, from its beginning.
    """

    def __init__(
        self, trainer: "Trainer", leg: Leg, reader: Reader, log: RunLog, books: Bookkeeper, stop: StopRequest
    ) -> None:
        self._trainer, self._leg, self._reader = trainer, leg, reader
        self._log, self._books, self._stop = log, books, stop
        self._held_out = HeldOutEvaluator(
            leg.model,
            leg.mesh,
            list(reader.tasks.values()),
            leg.stage.batch_size,
            trainer.eval_sequences,
            leg.stage.num_microbatches,
        )
        if trainer.eval_period and self._held_out.missing:
            log.line(f"not evaluated, for want of a validation split: {', '.join(self._held_out.missing)}")

    def __call__(self, params: Any, step: int, over: bool) -> None:
        """Measures what is due behind `step` and not recorded yet.

        Args:
            params: Of the model.
            step: Taken so far.
            over: Whether the stage is.
        """
        kinds: tuple[tuple[str, int, Callable[[Any, int], dict[str, float] | None]], ...] = (
            (EVAL, self._trainer.eval_period, self._evaluate),
            (SUITE, self._trainer.suite_period, self._ask),
        )
        for kind, period, measure in kinds:
            due = bool(period) and (step % period == 0 or over)
            if not due or processes.of_first(self._log.measured_at(step, kind)):
                continue
            with self._books.spending("evaluating"):
                # One record for all: a run that is killed here has measured all of them or none.
                values = measure(params, step)
                if values is not None:
                    self._log.scalars(step, values)

    def _evaluate(self, params: Any, step: int) -> dict[str, float] | None:
        """Loss, bits per byte and accuracy on each task's held-out text; None if it was cut short."""
        mask = self._leg.lineage.mask_at(step)
        tasks = self._held_out(params, cancelled=self._stop.asked_for, growth=mask)
        for name, found in (tasks or {}).items():
            self._log.line(
                f"eval {step:>6}  {name}: loss {found.loss:.4f} nats/token, {found.bits_per_byte:.4f} bits/byte "
                f"({found.tokens:,} tokens)"
            )
        if tasks is None:
            return None
        return {
            f"{EVAL}{name}/{measure}": getattr(found, measure)
            for name, found in tasks.items()
            for measure in ("loss", "bits_per_byte", "accuracy")
        }

    def _ask(self, params: Any, step: int) -> dict[str, float] | None:
        """The suite's numbers; None if it was cut short."""
        leg = self._leg
        assert self._trainer.suite is not None, "Trainer.check refuses a period without a suite"
        found: dict[str, float] = {}
        asked: Iterable[Any] = self._trainer.suite(
            leg.config, params, self._reader.vocabulary, leg.lineage.mask_at(step), leg.mesh
        )
        for measure in asked:
            if self._stop.asked_for():
                return None
            self._log.line(f"suite {step:>5}  {measure.name}: {measure.text}")
            if math.isfinite(measure.value):
                found[f"{SUITE}{measure.name}"] = measure.value
        return found
