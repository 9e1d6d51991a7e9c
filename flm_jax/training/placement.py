"""Batches between processes and devices: which rows a process reads, and where they go.

The rows are those that the process' own devices hold. With the batch split over the processes each reads its part;
where processes hold parts of one model (`tensor`, `stage` or `sequence` over processes) they read the same rows.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np


def local_rows(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The rows of a batch of this shape, `[batch, ...]`, that this process' devices hold, in order."""
    pieces = sharding.addressable_devices_indices_map(shape).values()
    found = {row for piece in pieces if piece is not None for row in range(*piece[0].indices(shape[0]))}
    return tuple(sorted(found))


def to_devices(
    batch: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding, size: int, rows: Sequence[int]
) -> dict[str, jax.Array]:
    """Arrays over all devices, `[size, ...]`, from what this process has of them.

    Args:
        batch: `[len(rows), ...]` each.
        sharding: Of the arrays.
        size: Rows over all processes.
        rows: Which of them these are, in order; those of `local_rows` at least.
    """
    place = {row: index for index, row in enumerate(rows)}

    def array(values: np.ndarray) -> jax.Array:
        def piece(index: tuple[slice, ...]) -> np.ndarray:
            wanted = range(*index[0].indices(size))
            start = place[wanted[0]]
            return values[(slice(start, start + len(wanted)), *index[1:])]

        return jax.make_array_from_callback((size, *values.shape[1:]), sharding, piece)

    return {name: array(values) for name, values in batch.items()}
