"""The reader: batches of mixed prepared tasks by index.

The batch at a step is a function of the seed, the step's first sequence, the batch size and the mixture, and
of nothing else. So resuming needs no state, and any number of processes sees the same global batches. Grain
gives the random access, the shuffle of each epoch and the repetition. Nothing here imports TensorFlow.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from sys import maxsize
from typing import Any

import grain
import numpy as np

from flm_jax.tasks.packing import sequence_length
from flm_jax.tasks.prepared import PreparedTask, evaluation_batches, prepared_tasks, process_rows
from flm_jax.tasks.records import decode_records
from flm_jax.tasks.sources import TRAIN
from flm_jax.tasks.vocabulary import Vocabulary

__all__ = ["PreparedTask", "Reader", "evaluation_batches", "prepared_tasks"]

# Sequence rates are integers in units of about a millionth, so that positions are exact for any index.
_RATE_UNITS = 1 << 20


class Interleave(grain.transforms.DatasetSelectionMap):
    """An endless, regular interleaving of tasks in whole-number rates, with random access.

    In any window of n consecutive elements, a task has its share of n to within a few elements.
    (`MapDataset.mix` interleaves likewise, but with rates rounded to a hundredth of the smallest.)

    Example: rates [2, 1] give the tasks 0, 0, 1, 0, 0, 1, ...
    """

    def __init__(self, rates: list[int]) -> None:
        self._rates = rates

    def __len__(self) -> int:
        return maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        """The task of element `index`, and how many elements that task had before."""
        # Task 0 gets its share of all elements, task 1 its share of what that leaves, and so on. Of the first
        # `index` elements `before` are left to the tasks from here on, of the first `index + 1` `after`.
        before, after, total = index, index + 1, sum(self._rates)
        for task, rate in enumerate(self._rates):
            left_before, left_after = (count * (total - rate) // total for count in (before, after))
            if left_before == left_after:
                return task, before - left_before
            before, after, total = left_before, left_after, total - rate
        raise AssertionError("the last task takes what is left")


class Reader:
    """Batches of packed sequences from prepared tasks, shuffled, mixed by tokens and without end.

    A task's sequences all come once before any comes again (an epoch); each epoch has an order of its own.

    Attributes:
        tasks: the tasks of the mixture by name, in alphabetical order.
        shares: task name -> its share of the tokens, summing to 1.
        length: tokens per sequence.
        vocabulary: the tokenizer, the same for all tasks.
        sequences: the global stream by index, each a record (`records.py`).

    Args:
        prepared_dir: the folder that `prepare` wrote (`PREPARED_DIR`).
        mixture: a task's name, or task name -> relative share of the tokens, e.g.
            `{"en": 53.5, "zh": 46.5, "instruct": 5.0}`; they need not sum to anything.
        length: tokens per sequence, or t5x's `TASK_FEATURE_LENGTHS`.
        seed: of the orders.
        split: which split to read.

    Raises:
        FileNotFoundError: nothing is prepared there, or a prepared file is missing.
        ValueError: an unknown task, a share that is not positive, another length or different tokenizers.
    """

    def __init__(
        self,
        prepared_dir: str | Path,
        mixture: str | Mapping[str, float],
        length: int | Mapping[str, int],
        seed: int,
        split: str = TRAIN,
    ) -> None:
        shares = {mixture: 1.0} if isinstance(mixture, str) else dict(sorted(mixture.items()))
        prepared_dir = Path(prepared_dir).expanduser()
        _check_mixture(prepared_dir, shares)
        self.tasks = {name: PreparedTask(prepared_dir / name) for name in shares}
        self.shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        self.length = sequence_length(length)
        self._split = split
        for task in self.tasks.values():
            if task.length != self.length:
                raise ValueError(
                    f"expected sequences of {self.length} tokens, found {task.length} in {task.directory}: "
                    "change the gin binding `TASK_FEATURE_LENGTHS`, or run `flm data prepare` with "
                    f"`TASK_FEATURE_LENGTHS` for {self.length}"
                )
        self.vocabulary: Vocabulary = _one_vocabulary(list(self.tasks.values()))
        datasets = [
            grain.MapDataset.source(task.source(split)).shuffle(seed=_task_seed(seed, name)).repeat()
            for name, task in self.tasks.items()
        ]
        self.sequences = grain.MapDataset.select_from_datasets(datasets, Interleave(self._rates(split)))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the batches beside seed and mixture, as plain JSON: length, tokenizer, each task's files."""
        digests = {}
        for name, task in self.tasks.items():
            files = [file.sha256 for file in task.counts(self._split).files]
            digests[name] = hashlib.sha256("".join(files).encode()).hexdigest()
        return {"length": self.length, "tokenizer": self.vocabulary.sha256, "tasks": digests}

    def batch(
        self, first: int, size: int, process_index: int = 0, process_count: int = 1
    ) -> dict[str, np.ndarray]:
        """Sequences [first, first + size) of the global stream, or this process's equal part of them.

        Args:
            first: number of sequences before this batch; at a constant batch size, `step * size`.
            size: sequences in the batch, over all processes.
            process_index, process_count: this process gets rows
                `[process_index * size / process_count, (process_index + 1) * size / process_count)`.

        Returns:
            seqio's decoder features (see `packing.features`), int32 [size / process_count, length].
        """
        rows = process_rows(size, process_index, process_count)
        return decode_records([self.sequences[first + row] for row in rows], self.length)

    def prefetch(
        self, first: int, size: int, process_index: int = 0, process_count: int = 1, ahead: int = 2
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """The batches from `first` on, without end, each read by a thread while the ones before are in use.

        An error in the thread is raised where its batch is asked for. Close the iterator (`.close()`, or
        `contextlib.closing`) to stop the thread.

        Args:
            first, size, process_index, process_count: as in `batch`.
            ahead: how many batches are read in advance.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        firsts = itertools.count(first, size)
        pending: deque[Future[dict[str, np.ndarray]]] = deque()
        try:
            while True:
                while len(pending) <= ahead:
                    pending.append(
                        thread.submit(self.batch, next(firsts), size, process_index, process_count)
                    )
                yield pending.popleft().result()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)

    def _rates(self, split: str) -> list[int]:
        """Relative rates of sequences: a task's share of tokens over its tokens per sequence."""
        rates = [
            self.shares[name] * task.num_sequences(split) / task.tokens(split)
            for name, task in self.tasks.items()
        ]
        return [max(1, round(rate / sum(rates) * _RATE_UNITS)) for rate in rates]


def _check_mixture(prepared_dir: Path, shares: Mapping[str, float]) -> None:
    there = prepared_tasks(prepared_dir)
    if not there:
        raise FileNotFoundError(
            f"expected prepared tasks, found none in {prepared_dir}: change the gin binding `PREPARED_DIR`, "
            "or make them with `flm data prepare`"
        )
    if not shares or (unknown := sorted(set(shares) - set(there))):
        raise ValueError(
            f"expected a mixture of {there}, which {prepared_dir} holds, found "
            f"{unknown if shares else shares}: change the gin binding `MIXTURE_OR_TASK_NAME` or "
            "`PREPARED_DIR`, or run `flm data prepare`"
        )
    if wrong := {name: share for name, share in shares.items() if not 0 < share < float("inf")}:
        raise ValueError(
            f"expected positive shares in the mixture, found {wrong}: change the gin binding "
            "`MIXTURE_OR_TASK_NAME` (leave a task out to give it no share)"
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
