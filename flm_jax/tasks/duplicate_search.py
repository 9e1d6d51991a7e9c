"""Which records of a task repeat earlier ones: signed shard by shard in any process, compared in order in one.

Other splits come before `train`, so that no held-out document is trained on.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flm_jax.tasks.corpora import Task
from flm_jax.tasks.documents import Duplicates, signatures
from flm_jax.tasks.problems import KEPT
from flm_jax.tasks.shards import Shard, no_room, shard_name
from flm_jax.tasks.sources import TRAIN
from flm_jax.tasks.vocabulary import Vocabulary

# Of one shard: index of a record in it to the kind and the reason.
Dropped = dict[int, tuple[str, str]]


class Signed(NamedTuple):
    """The signatures of a shard's documents, in a file.

    Attributes:
        split: of the shard.
        number: of the shard.
        path: of the file.
    """

    split: str
    number: int
    path: Path


def steps(task: Task) -> list[Duplicates]:
    """Those of a task's cleaning that look for duplicates."""
    return [step for step in task.cleaning if isinstance(step, Duplicates)]


def signature_path(directory: Path, split: str, number: int) -> Path:
    """Of a shard's signatures."""
    return directory / "parts" / f"{shard_name(split, number)}.signatures.npz"


def sign_shard(
    shard: Shard,
    task: Task,
    vocabulary: Vocabulary,
    length: int,
    directory: Path,
    advance: Callable[[int], None],
) -> Signed:
    """Writes the signatures of a shard's documents, whole or not at all; arguments as of `write_shard`."""
    path = signature_path(directory, shard.split, shard.number)
    if path.is_file():
        return Signed(shard.split, shard.number, path)
    indices: list[int] = []
    places: list[str] = []
    found: list[list[np.ndarray]] = []
    for index, place, values in signatures(task, shard.records, no_room(task, vocabulary, length)):
        indices.append(index)
        places.append(place)
        found.append([_as_array(value) for value in values])
        advance(1)
    columns: dict[str, Any] = {"index": np.array(indices, np.int64), "place": np.array(places, str)}
    columns |= {f"step{number}": np.stack(column) for number, column in enumerate(zip(*found, strict=True))}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        np.savez(file, **columns)
    partial.replace(path)
    return Signed(shard.split, shard.number, path)


def find(task: Task, signed: Iterator[Signed]) -> dict[str, dict[int, Dropped]]:
    """The duplicates: split to shard number to what is dropped of it.

    Args:
        task: whose cleaning says what a duplicate is.
        signed: all shards, other splits before `train`, each split in order.
    """
    looking = [(number, step, step.index()) for number, step in enumerate(steps(task))]
    dropped: dict[str, dict[int, Dropped]] = {}
    told = dict.fromkeys((step.kind for _, step, _ in looking), 0)
    origins: list[Signed] = []
    for origin, shard in enumerate(signed):
        origins.append(shard)
        mine = dropped.setdefault(shard.split, {}).setdefault(shard.number, {})
        with np.load(shard.path) as stored:
            indices = stored["index"].tolist()
            columns = {number: stored[f"step{number}"] for number, _, _ in looking if indices}
        for row, index in enumerate(indices):
            for number, step, known in looking:
                first = known.first(_as_signature(columns[number][row]), origin << 32 | row)
                if first is None:
                    continue
                told[step.kind] += 1
                # Only the first places are ever shown.
                place = _place(origins[first >> 32], first & 0xFFFFFFFF) if told[step.kind] <= KEPT else ""
                mine[index] = (step.kind, f"repeats {place}")
                break
    return dropped


def split_order(splits: Sequence[str]) -> list[str]:
    """`train` last."""
    return sorted(splits, key=lambda split: split == TRAIN)


def _place(shard: Signed, row: int) -> str:
    with np.load(shard.path) as stored:
        return str(stored["place"][row])


def _as_array(signature: Any) -> np.ndarray:
    return np.frombuffer(signature, np.uint8) if isinstance(signature, bytes) else np.asarray(signature)


def _as_signature(row: np.ndarray) -> Any:
    return row.tobytes() if row.dtype == np.uint8 else row
