"""The reader: batches of mixed prepared tasks by index.

The batch at a step is a function of the seed, the step's first sequence, the batch size and the history of the mixture,
and of nothing else. So resuming needs no state, and any number of processes sees the same global batches. Grain gives
the random access, the shuffle of each epoch and the repetition. Nothing here imports TensorFlow.
"""

import copy
import hashlib
import itertools
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from sys import maxsize
from typing import Any

import grain
import numpy as np

from flm_jax.tasks.history import Epochs, History
from flm_jax.tasks.mixture import Mixture
from flm_jax.tasks.mixture_plan import MixturePlan, TaskCounts
from flm_jax.tasks.packing import sequence_length
from flm_jax.tasks.prepared import PreparedTask, evaluation_batches, prepared_tasks
from flm_jax.tasks.records import decode_records
from flm_jax.tasks.sources import TRAIN
from flm_jax.tasks.vocabulary import Vocabulary

__all__ = ["PreparedTask", "Reader", "evaluation_batches", "prepared_tasks"]


class _Selection(grain.transforms.DatasetSelectionMap):
    """A plan's stream, by the number of the task."""

    def __init__(self, plan: MixturePlan, numbers: Mapping[str, int]) -> None:
        self._plan, self._numbers = plan, numbers

    def __len__(self) -> int:
        return maxsize if self._plan.end is None else self._plan.end

    def __getitem__(self, index: int) -> tuple[int, int]:
        name, position = self._plan.locate(index)
        return self._numbers[name], position


class Reader:
    """Batches of packed sequences from prepared tasks, shuffled, mixed by tokens and without end.

    A task's sequences all come once before any comes again (an epoch); each epoch has an order of its own.

    Attributes:
        tasks: the tasks of the mixture by name, in alphabetical order.
        plan: which sequence of which task stands where, and which tasks have been read for their epochs by when.
        length: tokens per sequence.
        vocabulary: the tokenizer, the same for all tasks.
        sequences: the global stream by index, each a record (`records.py`).

    Args:
        prepared_dir: the folder that `prepare` wrote (`PREPARED_DIR`).
        mixture: what is read: a task's name, or task name -> relative share of the tokens, e.g.
            `{"en": 53.5, "zh": 46.5, "instruct": 5.0}`, which need not sum to anything; a schedule, or `Alternating`
            (`mixture.py`); or the whole `History` of a run.
        length: tokens per sequence, or t5x's `TASK_FEATURE_LENGTHS`.
        seed: of the orders.
        split: which split to read.
        batch_size: sequences a step, where the mixture alternates; a history has its own.
        max_epochs: that a task may be read for, a number or task -> number; a history has its own.

    Raises:
        FileNotFoundError: nothing is prepared there, or a prepared file is missing.
        ValueError: an unknown task, a share that is not positive, another length or different tokenizers.
    """

    def __init__(
        self,
        prepared_dir: str | Path,
        mixture: Any,
        length: int | Mapping[str, int],
        seed: int,
        split: str = TRAIN,
        batch_size: int | None = None,
        max_epochs: Epochs = None,
    ) -> None:
        self._directory = Path(prepared_dir).expanduser()
        self.length = sequence_length(length)
        self._seed, self._split = seed, split
        self._opened: dict[str, tuple[PreparedTask, grain.MapDataset]] = {}
        self._follow(_history(mixture, batch_size, max_epochs))

    def following(self, history: History) -> "Reader":
        """A reader of the same files for another history; what is open stays open."""
        other = copy.copy(self)
        other._follow(history)
        return other

    def _follow(self, history: History) -> None:
        _check_tasks(self._directory, history.tasks)
        for name in history.tasks:
            if name not in self._opened:
                self._opened[name] = self._open(name)
        opened = {name: self._opened[name] for name in history.tasks}
        self.tasks = {name: task for name, (task, _) in opened.items()}
        self.vocabulary: Vocabulary = _one_vocabulary(list(self.tasks.values()))
        counts = {
            name: TaskCounts(task.num_sequences(self._split), task.tokens(self._split))
            for name, task in self.tasks.items()
        }
        self.plan = MixturePlan(history, counts, self.length)
        self._numbers = {name: number for number, name in enumerate(self.tasks)}
        self.sequences = grain.MapDataset.select_from_datasets(
            [dataset for _, dataset in opened.values()], _Selection(self.plan, self._numbers)
        )

    def _open(self, name: str) -> tuple[PreparedTask, grain.MapDataset]:
        task = PreparedTask(self._directory / name)
        if task.length != self.length:
            raise ValueError(
                f"expected sequences of {self.length} tokens, found {task.length} in {task.directory}: "
                "change the gin binding `TASK_FEATURE_LENGTHS`, or run `flm data prepare` with "
                f"`TASK_FEATURE_LENGTHS` for {self.length}"
            )
        source = grain.MapDataset.source(task.source(self._split))
        return task, source.shuffle(seed=_task_seed(self._seed, name)).repeat()

    @property
    def shares(self) -> dict[str, float]:
        """Task name -> its share of the tokens at the beginning, summing to 1."""
        return self.plan.shares(0)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the batches beside seed and mixture, as plain JSON: length, tokenizer, each task's files."""
        digests = {}
        for name, task in self.tasks.items():
            files = [file.sha256 for file in task.counts(self._split).files]
            digests[name] = hashlib.sha256("".join(files).encode()).hexdigest()
        return {"length": self.length, "tokenizer": self.vocabulary.sha256, "tasks": digests}

    def batch(self, first: int, size: int, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Sequences [first, first + size) of the global stream, or some of them.

        Args:
            first: number of sequences before this batch; at a constant batch size, `step * size`.
            size: sequences in the batch, over all processes.
            rows: those of the batch that are wanted, such as `range(4, 8)` for the second of two processes; all unless
                given.

        Returns:
            seqio's decoder features (see `packing.features`), int32 [len(rows), length].
        """
        return decode_records([self.sequences[first + row] for row in _rows(size, rows)], self.length)

    def task_numbers(self, first: int, size: int, rows: Sequence[int] | None = None) -> np.ndarray:
        """The task of each row of `batch` with the same arguments, int32 [len(rows)].

        Tasks are numbered as in `tasks`.
        """
        numbers = [self._numbers[self.plan.locate(first + row)[0]] for row in _rows(size, rows)]
        return np.array(numbers, np.int32)

    def prefetch(
        self, first: int, size: int, rows: Sequence[int] | None = None, ahead: int = 2
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """The batches from `first` on, without end, each read by a thread while the ones before are in use.

        An error in the thread is raised where its batch is asked for. Close the iterator (`.close()`, or
        `contextlib.closing`) to stop the thread.

        Args:
            first, size, rows: as in `batch`.
            ahead: how many batches are read in advance.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        firsts = itertools.count(first, size)
        pending: deque[Future[dict[str, np.ndarray]]] = deque()
        try:
            while True:
                while len(pending) <= ahead:
                    pending.append(thread.submit(self.batch, next(firsts), size, rows))
                yield pending.popleft().result()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def _rows(size: int, rows: Sequence[int] | None) -> Sequence[int]:
    return range(size) if rows is None else rows


def _history(mixture: Any, batch_size: int | None, max_epochs: Epochs) -> History:
    if isinstance(mixture, History):
        return mixture
    mixture = Mixture.of(mixture)
    if batch_size is None and mixture.alternates:
        raise ValueError(
            "expected a batch size for a mixture that alternates, found None: give Reader.batch_size, under t5x the "
            "gin binding `seqio_tasks.prepared.batch_size`"
        )
    return History.begin(mixture, batch_size or 1, max_epochs)


def _check_tasks(prepared_dir: Path, names: list[str]) -> None:
    there = prepared_tasks(prepared_dir)
    if not there:
        raise FileNotFoundError(
            f"expected prepared tasks, found none in {prepared_dir}: change the gin binding `PREPARED_DIR`, "
            "or make them with `flm data prepare`"
        )
    if unknown := sorted(set(names) - set(there)):
        raise ValueError(
            f"expected a mixture of {there}, which {prepared_dir} holds, found {unknown}: change the gin binding "
            "`MIXTURE_OR_TASK_NAME` or `PREPARED_DIR`, or run `flm data prepare` (what a run has read must stay, for "
            "its place in the data follows from it)"
        )


def _one_vocabulary(tasks: list[PreparedTask]) -> Vocabulary:
    hashes = {task.name: task.manifest.vocabulary["sha256"] for task in tasks}
    if len(set(hashes.values())) > 1:
        raise ValueError(
            f"expected tasks prepared with one tokenizer, found {hashes}: run `flm data prepare --overwrite` "
            "with one `VOCABULARY` for all of them"
        )
    return tasks[0].vocabulary


def _task_seed(seed: int, name: str) -> int:
    """A seed for one task, in 32 bits.

    Grain shuffles epoch e with seed + e: were tasks (or runs) seeded with neighbouring numbers, one task's
    second epoch would have the order of another's first. A hash puts them apart.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest(), "little")
