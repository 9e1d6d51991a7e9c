"""Five sources of very uneven documents: shares over any 1,000 steps, every token once an epoch, restart anywhere."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flm_jax.tasks.reader import Reader

SHARES = {"a": 40.0, "b": 30.0, "c": 15.0, "d": 10.0, "e": 5.0}
LENGTH, BATCH, STEPS, WINDOW = 256, 4, 4_000, 1_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_task: Callable[..., Path]) -> Path:
    """Documents of 10 to 100,000 tokens; within a task each token is a number of its own, from 3 on."""
    made, draw = tmp_path_factory.mktemp("five"), np.random.default_rng(0)
    for index, name in enumerate(SHARES):
        # `e` has short documents only, which leave padding.
        longest = 100_000 if index < 4 else 300
        sizes = np.exp(draw.uniform(np.log(10), np.log(longest), 400)).astype(int)
        sizes = sizes[np.cumsum(sizes) < 150_000]
        if index < 4:
            sizes = np.append(sizes, 100_000)
        ends = 3 + np.cumsum(sizes)
        documents = [([], list(range(end - size, end))) for size, end in zip(sizes, ends, strict=True)]
        write_task(made / name, documents, LENGTH)
    return made


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader(folder, SHARES, LENGTH, seed=0)


def test_shares_over_any_1000_steps_and_every_token_once_an_epoch(reader: Reader) -> None:
    names = list(reader.tasks)
    tokens = np.zeros((STEPS, len(names)), np.int64)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for step in range(STEPS):
        batch = reader.batch(step * BATCH, BATCH)
        for task, row, segments in zip(
            reader.task_numbers(step * BATCH, BATCH),
            batch["decoder_target_tokens"],
            batch["decoder_segment_ids"],
            strict=True,
        ):
            real = row[segments > 0]
            tokens[step, task] += len(real)
            seen[names[task]].append(real)
    before = np.concatenate([np.zeros((1, len(names)), np.int64), np.cumsum(tokens, axis=0)])
    windows = before[WINDOW:] - before[:-WINDOW]
    shares = 100 * windows / windows.sum(axis=1, keepdims=True)
    assert np.abs(shares - [SHARES[name] for name in names]).max() < 0.5
    epochs = 0
    for name, rows in seen.items():
        task = reader.tasks[name]
        size, every = task.num_sequences("train"), np.arange(3, 3 + task.tokens("train"))
        for start in range(0, len(rows) - size + 1, size):
            epochs += 1
            assert np.array_equal(np.sort(np.concatenate(rows[start : start + size])), every), name
    assert epochs > 15


def test_the_same_batches_from_step_1000000_on_with_any_number_of_processes(
    reader: Reader, folder: Path
) -> None:
    first = 1_000_000 * 8
    expected = list(itertools.islice(reader.prefetch(first, 8), 3))
    for processes in (1, 2, 4):
        again = [Reader(folder, SHARES, LENGTH, seed=0) for _ in range(processes)]
        shares = [tuple(share) for share in np.split(np.arange(8), processes)]
        for step, batch in enumerate(expected):
            parts = [
                each.batch(first + 8 * step, 8, share) for each, share in zip(again, shares, strict=True)
            ]
            for name, rows in batch.items():
                assert np.array_equal(np.concatenate([part[name] for part in parts]), rows)


def test_a_restart_reads_what_it_needs_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late the step: as many records as the batch has rows."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    read = []
    get = ArrayRecordDataSource.__getitem__

    def counted(self: ArrayRecordDataSource, key: int) -> bytes:
        read.append(key)
        return get(self, key)

    monkeypatch.setattr(ArrayRecordDataSource, "__getitem__", counted)
    Reader(folder, SHARES, LENGTH, seed=0).batch(10**15, 8)
    assert len(read) == 8
