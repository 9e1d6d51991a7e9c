"""The batches of a stage, on its devices."""

import itertools
from collections.abc import Generator

import jax
import numpy as np

from flm_jax.model import TASK_NUMBERS
from flm_jax.tasks.reader import Reader
from flm_jax.training.leg import Leg
from flm_jax.training.placement import local_rows, to_devices


class Feed:
    """Batches in order, each placed while the devices are at work on the one before it.

    Args:
        reader: Of the prepared tasks; this process reads the rows that its devices hold.
        leg: The stage.
        step: The first batch is that of the step after so many.
        with_tasks: Each batch says of which task each row is (`model.TASK_NUMBERS`).
    """

    def __init__(self, reader: Reader, leg: Leg, step: int, with_tasks: bool) -> None:
        self._reader, self._leg, self._with_tasks = reader, leg, with_tasks
        first, self._size = leg.sequences(step), leg.stage.batch_size
        self._rows = local_rows(leg.row_sharding, (self._size,))
        self._places = itertools.count(first, self._size)
        self._batches: Generator[dict[str, np.ndarray], None, None] = reader.prefetch(
            first, self._size, self._rows
        )
        self._ahead: dict[str, jax.Array] | None = None

    def take(self) -> dict[str, jax.Array]:
        """The next batch."""
        batch = self._place() if self._ahead is None else self._ahead
        self._ahead = None
        return batch

    def place_ahead(self) -> None:
        """Places the batch that `take` will give; to be called when a step has been dispatched."""
        self._ahead = self._place()

    def close(self) -> None:
        """Ends the reader's threads."""
        self._batches.close()

    def _place(self) -> dict[str, jax.Array]:
        batch, place = next(self._batches), next(self._places)
        placed = to_devices(batch, self._leg.batch_sharding, self._size, self._rows)
        if self._with_tasks:
            numbers = self._reader.task_numbers(place, self._size, self._rows)
            placed |= to_devices({TASK_NUMBERS: numbers}, self._leg.row_sharding, self._size, self._rows)
        return placed
