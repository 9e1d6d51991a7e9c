"""Seqio's view of prepared files and of texts: the examples, their order, and places that can be saved."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flm_jax.tasks.mixture import Alternating
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.reader import Reader

MIXTURE = {"en": 50.0, "zh": 40.0, "instruct": 10.0}


@pytest.fixture(scope="module")
def sources() -> Any:
    """The module, which imports TensorFlow."""
    from flm_jax.tasks import seqio_sources

    return seqio_sources


def rows(dataset: Any, count: int) -> dict[str, np.ndarray]:
    """The first examples of a dataset, stacked."""
    examples = list(itertools.islice(dataset.as_numpy_iterator(), count))
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


TURNS = Alternating({"language": {"en": 2, "zh": 1}, "teacher": "instruct"}, (3, 1))


@pytest.mark.parametrize("mixture", [MIXTURE, "zh", {0: MIXTURE, 6400: TURNS}])
def test_shuffled_it_is_the_readers_stream(sources: Any, prepared: Path, mixture: Any) -> None:
    """Over more than an epoch of the smallest task, from the beginning and from a later sequence."""
    reader = Reader(prepared, mixture, 64, seed=7, batch_size=8)
    source = sources.PreparedSource(prepared, mixture, {"inputs": 16, "targets": 48}, batch_size=8)
    assert_equal(rows(source.get_dataset("train", shuffle=True, seed=7), 300), reader.batch(0, 300))
    later = sources.PreparedSource(prepared, mixture, 64, first=40, batch_size=8)
    assert_equal(rows(later.get_dataset("train", shuffle=True, seed=7), 8), reader.batch(40, 8))
    other = rows(source.get_dataset("train", shuffle=True, seed=8), 40)
    assert not np.array_equal(other["decoder_target_tokens"], reader.batch(0, 40)["decoder_target_tokens"])


def test_shards_are_the_whole(sources: Any, prepared: Path) -> None:
    """The rows that three hosts have in a batch of 12 are those of the batch."""
    import seqio

    source = sources.PreparedSource(prepared, MIXTURE, 64)
    shards = [
        rows(source.get_dataset("train", seed=3, shard_info=seqio.ShardInfo(index, 3)), 4)
        for index in range(3)
    ]
    together = {
        name: np.stack([shard[name] for shard in shards], axis=1).reshape(12, 64) for name in shards[0]
    }
    assert_equal(together, Reader(prepared, MIXTURE, 64, seed=3).batch(0, 12))


def test_not_shuffled_it_is_every_sequence_once(sources: Any, prepared: Path) -> None:
    source = sources.PreparedSource(prepared, MIXTURE, 64)
    found = rows(source.get_dataset("validation", shuffle=False), 10**6)
    tasks = [PreparedTask(prepared / name) for name in sorted(MIXTURE)]
    assert len(found["decoder_target_tokens"]) == sum(task.num_sequences("validation") for task in tasks)
    assert (found["decoder_segment_ids"] > 0).sum() == sum(task.tokens("validation") for task in tasks)


def test_without_a_seed_the_order_is_another_every_time(sources: Any, prepared: Path) -> None:
    source = sources.PreparedSource(prepared, MIXTURE, 64)
    orders = [rows(source.get_dataset("train"), 30)["decoder_target_tokens"] for _ in range(2)]
    assert not np.array_equal(*orders)


def test_what_is_wrong_is_named(sources: Any, prepared: Path) -> None:
    with pytest.raises(ValueError, match="FIRST_SEQUENCE"):
        sources.PreparedSource(prepared, MIXTURE, 64, first=-1)
    with pytest.raises(ValueError, match="SHUFFLE_TRAIN_EXAMPLES"):
        sources.PreparedSource(prepared, MIXTURE, 64, first=8).get_dataset("train", shuffle=False)
    with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS"):
        sources.PreparedSource(prepared, MIXTURE, 65)


def saved_and_restored(make: Any, before: int, after: int, path: Path) -> tuple[list, list]:
    """What follows `before` elements: in the pipeline itself, and in another that takes over its saved place."""
    import tensorflow as tf

    first = iter(make())
    for _ in range(before):
        next(first)
    place = tf.train.Checkpoint(ds=first).write(str(path))
    second = iter(make())
    tf.train.Checkpoint(ds=second).read(place).assert_consumed()
    return [[tf.nest.map_structure(np.asarray, next(each)) for _ in range(after)] for each in (first, second)]


def test_the_place_in_prepared_data_can_be_saved(sources: Any, prepared: Path, tmp_path: Path) -> None:
    source = sources.PreparedSource(prepared, MIXTURE, 64)

    def make() -> Any:
        return source.get_dataset("train", seed=5).batch(4).prefetch(2)

    one, other = saved_and_restored(make, before=3, after=3, path=tmp_path / "place")
    assert_equal(one[0], Reader(prepared, MIXTURE, 64, seed=5).batch(12, 4))
    for expected, found in zip(one, other, strict=True):
        assert_equal(found, expected)


TEXTS = [
    {
        "inputs": [],
        "targets": [3 + number] * number,
        "inputs_pretokenized": "",
        "targets_pretokenized": f"text {number}\0",
    }
    for number in range(10)
]


class Readings:
    """Counts how often the documents are read from their beginning."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, split: str) -> Iterator[dict[str, Any]]:
        self.count += 1
        yield from TEXTS


def test_texts_in_their_order_for_as_many_epochs_as_wanted(sources: Any) -> None:
    read = Readings()
    dataset = sources.ExampleSource(read, ["train"]).get_dataset("train").repeat(2)
    found = list(dataset.as_numpy_iterator())
    texts = [example["targets_pretokenized"] for example in found]
    assert texts == [text["targets_pretokenized"].encode() for text in TEXTS * 2]
    assert [example["targets"].tolist() for example in found] == [text["targets"] for text in TEXTS * 2]
    assert read.count == 2


def test_the_place_in_texts_can_be_saved(sources: Any, tmp_path: Path) -> None:
    """In the second epoch, behind a shuffling buffer."""

    def make() -> Any:
        dataset = sources.ExampleSource(Readings(), ["train"]).get_dataset("train").repeat(3)
        return dataset.shuffle(4, seed=1)

    one, other = saved_and_restored(make, before=13, after=10, path=tmp_path / "place")
    np.testing.assert_equal(other, one)
    assert len({example["targets_pretokenized"].item() for example in one}) > 5


def test_an_error_in_the_reading_is_not_an_end(sources: Any) -> None:
    def broken(split: str) -> Iterator[dict[str, Any]]:
        yield TEXTS[0]
        raise OSError("the disk is gone")

    texts = iter(sources.ExampleSource(broken, ["train"]).get_dataset("train"))
    next(texts)
    for _ in range(2):  # who asks again is not told that this was all
        with pytest.raises(Exception, match="the disk is gone"):
            next(texts)


SHUTDOWN = """
import time
from flm_jax.tasks.seqio_sources import ExampleSource

def read(split):
    while True:
        time.sleep(0.02)
        yield {"inputs": [], "targets": [5], "inputs_pretokenized": "", "targets_pretokenized": "text"}

texts = ExampleSource(read, ["train"]).get_dataset("train").prefetch(10_000).as_numpy_iterator()
print(next(texts)["targets_pretokenized"])
"""


@pytest.mark.slow
def test_a_process_ends_while_its_pipeline_reads_ahead() -> None:
    """TensorFlow's thread is in the midst of a document then; left to itself the process hangs, mostly."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", SHUTDOWN], capture_output=True, text=True, check=False, timeout=120
        )
        assert (done.returncode, done.stdout) == (0, "b'text'\n"), done.stderr
