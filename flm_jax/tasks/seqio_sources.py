"""Sources of seqio tasks whose place in the stream can be saved: prepared sequences, and examples of documents.

tf.data saves the place of a pipeline that begins with a range of numbers, and not that of a Python generator. So both
begin with a range, and Python looks up what belongs to each number. Importing this imports TensorFlow.
"""

import atexit
import functools
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import seqio
import tensorflow as tf

from flm_jax.tasks.history import Epochs
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.records import decode_records
from flm_jax.tasks.sources import TRAIN

# Seqio's names of what a packed batch holds; ours are the same.
PACKED_FEATURES = seqio.PrePackedLMFeatureConverter.BATCH_FEATURES

# What Python looks up follows from the number alone, so there is nothing besides the number to be saved.
_OPTIONS = tf.data.Options()
_OPTIONS.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE

_exiting = threading.Event()
_calling: set[int] = set()  # threads


@atexit.register
def _end_all_pipelines() -> None:
    """A thread of TensorFlow that calls Python while Python shuts down never returns, and the process does not end."""
    _exiting.set()
    give_up = time.monotonic() + 10
    while True:
        time.sleep(0.2)  # the next call of each pipeline is its last
        if not _calling or time.monotonic() > give_up:
            return


def _looked_up(
    numbers: tf.data.Dataset,
    look_up: Callable[[int], Sequence[np.ndarray] | None],
    specs: Sequence[tf.TensorSpec],
) -> tf.data.Dataset:
    """What belongs to each number, as a tuple of `specs`, until `look_up` gives None."""
    # In place of what is not there; never seen.
    blank = [
        np.full(
            [size or 0 for size in spec.shape],
            "" if spec.dtype == tf.string else 0,
            spec.dtype.as_numpy_dtype,
        )
        for spec in specs
    ]

    def call(number: np.int64) -> list[np.ndarray | np.bool_]:
        _calling.add(threading.get_ident())
        try:
            found = None if _exiting.is_set() else look_up(int(number))
        finally:
            _calling.discard(threading.get_ident())
        return [np.bool_(found is not None), *(blank if found is None else found)]

    def entry(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        there, *values = tf.numpy_function(call, [number], [tf.bool, *(spec.dtype for spec in specs)])
        return tf.ensure_shape(there, []), *(
            tf.ensure_shape(value, spec.shape) for value, spec in zip(values, specs, strict=True)
        )

    return numbers.map(entry).take_while(_is_there).map(_values).with_options(_OPTIONS)


# Functions, because AutoGraph cannot tell two lambdas of a line apart, and warns at every use.
def _is_there(there: tf.Tensor, *values: tf.Tensor) -> tf.Tensor:
    return there


def _values(there: tf.Tensor, *values: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return values


class PreparedSource(seqio.DataSource):
    """What `flm data prepare` wrote, as packed features (`PACKED_FEATURES`, int32 `[length]`).

    Shuffled, it is the global stream of `Reader`, without end: example i is row i of what `flm train` reads with the
    same seed. Not shuffled, it is every sequence once, task by task in the order of the files.

    Args:
        prepared_dir: The folder that `prepare` wrote.
        mixture: As in `Reader`: a task's name, task to relative share of tokens, a schedule, `Alternating`, or a
            run's `History`.
        length: Tokens per sequence, or t5x's `TASK_FEATURE_LENGTHS`.
        first: Sequences of the shuffled stream that are left out, because a run has read them before.
        batch_size: Sequences a step, where the mixture alternates.
        max_epochs: That a task may be read for, a number or task to number; then the stream has an end.

    Raises:
        FileNotFoundError: nothing is prepared there, or a prepared file is missing.
        ValueError: as `Reader`.
    """

    def __init__(
        self,
        prepared_dir: str | Path,
        mixture: Any,
        length: int | Mapping[str, int],
        first: int = 0,
        batch_size: int | None = None,
        max_epochs: Epochs = None,
    ) -> None:
        if first < 0:
            raise ValueError(f"expected FIRST_SEQUENCE of at least 0, found {first}: change that gin binding")
        self._reader = functools.partial(
            Reader, prepared_dir, mixture, length, batch_size=batch_size, max_epochs=max_epochs
        )
        self._first = first
        reader = self._reader(seed=0)
        self.tasks: list[PreparedTask] = list(reader.tasks.values())
        self.length = reader.length
        self.vocabulary = reader.vocabulary
        splits = [split for split in self.tasks[0].splits if all(split in task.splits for task in self.tasks)]
        super().__init__(splits=splits, caching_permitted=False, performs_internal_shuffling=True)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Yes: of n shards, shard i has the examples i, i + n, i + 2n, ..., and reads no others."""
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """The record files of a split."""
        return [str(task.directory / file.name) for task in self.tasks for file in task.counts(split).files]

    def get_dataset(
        self,
        split: str = TRAIN,
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The packed features of a split; without a seed the order is another every time.

        Raises:
            ValueError: sequences are to be left out of what is not shuffled.
        """
        sequences: Sequence[Any]
        if shuffle:
            seed = random.SystemRandom().randrange(2**31) if seed is None else int(seed)
            sequences = self._reader(seed=seed, split=split).sequences
            numbers = tf.data.Dataset.range(self._first, len(sequences))
        elif self._first:
            raise ValueError(
                f"expected shuffled sequences behind FIRST_SEQUENCE = {self._first}: bind SHUFFLE_TRAIN_EXAMPLES to "
                "True, or FIRST_SEQUENCE to 0"
            )
        else:
            sources = [grain.MapDataset.source(task.source(split)) for task in self.tasks]
            sequences = grain.MapDataset.concatenate(sources)
            numbers = tf.data.Dataset.range(len(sequences))
        if shard_info is not None:
            numbers = numbers.shard(shard_info.num_shards, shard_info.index)

        def look_up(number: int) -> list[np.ndarray]:
            features = decode_records([sequences[number]], self.length)
            return [features[name][0] for name in PACKED_FEATURES]

        def example(*rows: tf.Tensor) -> dict[str, tf.Tensor]:
            return dict(zip(PACKED_FEATURES, rows, strict=True))

        specs = [tf.TensorSpec([self.length], tf.int32)] * len(PACKED_FEATURES)
        return _looked_up(numbers, look_up, specs).map(example)


class ExampleSource(seqio.DataSource):
    """Examples of documents, in their order; a saved place is found by reading up to it.

    `inputs` and `targets` are tokens, int32 `[n]`, `inputs_pretokenized` and `targets_pretokenized` their texts.

    Args:
        read: `read(split)` gives the examples of a split, always the same in the same order.
        splits: That there are.
    """

    def __init__(self, read: Callable[[str], Iterator[Mapping[str, Any]]], splits: Collection[str]) -> None:
        self._read = read
        super().__init__(splits=splits, caching_permitted=True)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """No: every host reads everything and keeps its share."""
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """One, whatever the files."""
        return [split]

    def get_dataset(
        self,
        split: str = TRAIN,
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The examples in their order, which seqio shuffles in a buffer behind this."""
        cursor = _Cursor(lambda: self._read(split))
        return _looked_up(tf.data.Dataset.range(sys.maxsize), cursor, list(_EXAMPLE.values())).map(_example)


_EXAMPLE = {
    "inputs": tf.TensorSpec([None], tf.int32),
    "targets": tf.TensorSpec([None], tf.int32),
    "inputs_pretokenized": tf.TensorSpec([], tf.string),
    "targets_pretokenized": tf.TensorSpec([], tf.string),
}


def _example(*values: tf.Tensor) -> dict[str, tf.Tensor]:
    return dict(zip(_EXAMPLE, values, strict=True))


class _Cursor:
    """An example by its number: the next one is at hand, for another the reading begins anew."""

    def __init__(self, read: Callable[[], Iterator[Mapping[str, Any]]]) -> None:
        self._read = read
        self._next = -1
        self._examples: Iterator[Mapping[str, Any]] = iter(())
        self._lock = threading.Lock()

    def __call__(self, number: int) -> list[np.ndarray] | None:
        """The values of the example of this number; None behind the last."""
        with self._lock:
            if number != self._next:
                self._examples = itertools.islice(self._read(), number, None)
            self._next = -1  # where it fails, the next call begins anew, and fails again
            example = next(self._examples, None)
            self._next = number + 1
        # Texts as objects: numpy's own strings would lose the zero bytes at the end of a text.
        return (
            None
            if example is None
            else [np.array(example[name], spec.dtype.as_numpy_dtype) for name, spec in _EXAMPLE.items()]
        )
