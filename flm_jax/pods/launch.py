"""What each process of a run would do, without doing it."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import jax
import numpy as np

from flm_jax.training.leg import Leg
from flm_jax.training.trainer import Trainer


def dry_run(trainer: Trainer, devices: list[jax.Device] | None = None) -> str:
    """The stages of a run, and for each process its devices, the rows that it reads and the part of the model it holds.

    Args:
        trainer: The run.
        devices: On which it is to run, which need not be here; all that are here unless given.

    Raises:
        ValueError: the run would not start.
    """
    route = trainer.check(devices)
    lines = [
        f"checkpoints and metrics go to {trainer.model_dir}; process 0 writes metrics, all write checkpoints",
        f"data is read from {trainer.prepared_dir}",
        route.describe(),
    ]
    for leg in trainer.legs(route, devices):
        lines += [leg.introduction(), *_processes(leg)]
    return "\n".join(lines)


def _processes(leg: Leg) -> Iterator[str]:
    """A line for each process."""
    rows: dict[int, set[int]] = {}
    places: dict[int, list[tuple[int, ...]]] = {}
    size = leg.stage.batch_size
    for device, (piece, *_) in leg.row_sharding.devices_indices_map((size,)).items():
        rows.setdefault(device.process_index, set()).update(range(*piece.indices(size)))
    for place, device in np.ndenumerate(leg.mesh.devices):
        places.setdefault(device.process_index, []).append(place)
    for process in sorted(rows):
        held = zip(*places[process], strict=True)
        where = ", ".join(
            f"{axis} {_ranges(set(indices))}"
            for axis, indices in zip(leg.mesh.axis_names, held, strict=True)
            if leg.mesh.shape[axis] > 1
        )
        yield (
            f"  process {process}: {len(places[process])} devices ({where or 'all'}); reads {len(rows[process]):,} of "
            f"{size:,} rows: {_ranges(rows[process])}"
        )


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3, 8` of 0, 1, 2, 3 and 8."""
    found = []
    for _, group in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        found.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(found)
