import contextlib
import itertools
import json
import resource
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks import prepared as prepared_module
from flm_jax.tasks.history import History
from flm_jax.tasks.interleave import Interleave
from flm_jax.tasks.mixture import Alternating
from flm_jax.tasks.reader import PreparedTask, Reader, evaluation_batches

MIXTURE = {"en": 53.5, "zh": 46.5, "instruct": 5.0}
Batch = dict[str, np.ndarray]


def _equal(first: Batch, second: Batch) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def _joined(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture(scope="module")
def reader(uneven: Path) -> Reader:
    return Reader(uneven, MIXTURE, 128, seed=0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_sees_the_same_batches(reader: Reader, uneven: Path, processes: int) -> None:
    for first in (0, 24, 12_345_678):
        # Each process has a reader of its own, and asks in its own order.
        parts = [
            Reader(uneven, MIXTURE, 128, seed=0).batch(first, 12, rows)
            for rows in np.split(np.arange(12), processes)
        ]
        assert _equal(_joined(parts), reader.batch(first, 12))
    batch = reader.batch(0, 12)
    assert all(values.shape == (12, 128) and values.dtype == np.int32 for values in batch.values())


def test_a_batch_depends_on_its_step_alone(reader: Reader, uneven: Path) -> None:
    in_order = [reader.batch(step * 8, 8) for step in range(30)]
    again = Reader(uneven, dict(reversed(MIXTURE.items())), {"targets": 128}, seed=0)
    for step in np.random.default_rng(0).permutation(30):
        assert _equal(again.batch(int(step) * 8, 8), in_order[step])
    # Cut in another batch size it is the same stream.
    assert _equal(_joined(in_order[:3]), reader.batch(0, 24))
    assert not _equal(Reader(uneven, MIXTURE, 128, seed=1).batch(0, 8), in_order[0])


def _source_of(row: np.ndarray, owner: dict[bytes, str]) -> str:
    return owner[row.tobytes()]


def _owners(folder: Path, names: list[str]) -> dict[bytes, str]:
    return {
        row.tobytes(): name
        for name in names
        for batch in evaluation_batches(PreparedTask(folder / name), "train", 1)
        for row in batch["decoder_target_tokens"]
    }


@pytest.mark.parametrize(
    "mixture", [MIXTURE, {"en": 1, "zh": 1}, {"en": 53.5, "zh": 46.5}, {"en": 1, "zh": 9}]
)
def test_shares_are_shares_of_tokens(uneven: Path, mixture: dict[str, float]) -> None:
    owner = _owners(uneven, list(mixture))
    padding = {name: PreparedTask(uneven / name).counts("train").padding for name in mixture}
    assert padding["zh"] > padding["en"] + 0.3  # or this would prove nothing
    tokens: Counter[str] = Counter()
    batch = Reader(uneven, mixture, 128, seed=0).batch(777, 4000)
    for row, segments in zip(batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True):
        tokens[_source_of(row, owner)] += int((segments > 0).sum())
    for name, share in mixture.items():
        measured = tokens[name] / tokens.total()
        assert measured == pytest.approx(share / sum(mixture.values()), abs=0.01), name


def test_every_sequence_comes_once_an_epoch_in_a_new_order(uneven: Path) -> None:
    reader = Reader(uneven, "en", 128, seed=0)
    size = reader.tasks["en"].num_sequences("train")
    epochs = [
        [row.tobytes() for row in reader.batch(epoch * size, size)["decoder_target_tokens"]]
        for epoch in range(3)
    ]
    everything = Counter(_owners(uneven, ["en"]))
    assert all(Counter(epoch).keys() == everything.keys() and len(set(epoch)) == size for epoch in epochs)
    moved = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in itertools.combinations(epochs, 2)]
    assert min(moved) > 0.9 * size


def test_in_a_mixture_every_sequence_comes_once_an_epoch(uneven: Path) -> None:
    owner = _owners(uneven, list(MIXTURE))
    seen: dict[str, list[bytes]] = {name: [] for name in MIXTURE}
    for row in Reader(uneven, MIXTURE, 128, seed=0).batch(0, 5000)["decoder_target_tokens"]:
        seen[owner[row.tobytes()]].append(row.tobytes())
    for name, rows in seen.items():
        size = PreparedTask(uneven / name).num_sequences("train")
        for start in range(0, len(rows) - size + 1, size):
            assert len(set(rows[start : start + size])) == size


def test_tasks_and_seeds_do_not_share_orders(tmp_path: Path, write_task: Callable[..., Path]) -> None:
    # Grain's epoch e uses seed + e: with seeds next to each other, these orders would repeat.
    documents = [([], [3 + number] * 16) for number in range(50)]
    for name in "abc":
        write_task(tmp_path / name, documents, 16)
    orders = [
        tuple(Reader(tmp_path, name, 16, seed).batch(epoch * 50, 50)["decoder_target_tokens"][:, 0])
        for name in "abc"
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders)


@given(rates=st.lists(st.integers(1, 1000), min_size=1, max_size=6), start=st.integers(0, 10**15))
def test_interleaving_is_exact_in_any_window(rates: list[int], start: int) -> None:
    interleave = Interleave(rates)
    picked = [interleave[start + offset] for offset in range(300)]
    for task, rate in enumerate(rates):
        indices = [index for chosen, index in picked if chosen == task]
        assert indices == list(range(indices[0], indices[0] + len(indices))) if indices else True
        assert abs(len(indices) - 300 * rate / sum(rates)) <= len(rates)


def test_prefetching_gives_the_same_batches_and_stops(reader: Reader) -> None:
    with contextlib.closing(reader.prefetch(16, 8)) as batches:
        for step, batch in zip(range(2, 7), batches, strict=False):
            assert _equal(batch, reader.batch(step * 8, 8))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]
    second = reader.prefetch(0, 8, range(4, 8))
    assert _equal(next(second), reader.batch(0, 8, range(4, 8)))
    second.close()


def test_evaluation_reads_all_once_in_one_shape(uneven: Path) -> None:
    task = PreparedTask(uneven / "zh")
    batches = list(evaluation_batches(task, "train", 64))
    assert {batch["decoder_target_tokens"].shape for batch in batches} == {(64, 128)}
    joined = _joined(batches)
    assert (joined["decoder_segment_ids"] > 0).sum() == task.tokens("train")
    size = task.num_sequences("train")
    assert not any(values[size:].any() for values in joined.values())
    halves = [
        _joined(list(evaluation_batches(task, "train", 64, None, range(first, first + 32))))
        for first in (0, 32)
    ]
    rows = np.concatenate(
        [half["decoder_target_tokens"].reshape(len(batches), 32, 128) for half in halves], axis=1
    )
    assert (rows.reshape(-1, 128) == joined["decoder_target_tokens"]).all()
    # A part of it is spread evenly.
    few = _joined(list(evaluation_batches(task, "train", 8, max_sequences=10)))["decoder_target_tokens"]
    assert len(few) == 16
    assert (few[:10] == joined["decoder_target_tokens"][[index * size // 10 for index in range(10)]]).all()


def test_what_cannot_be_read_is_said(uneven: Path, tmp_path: Path, vocabulary) -> None:
    with pytest.raises(ValueError, match=r"\['en', 'instruct', 'zh'\].*\['fr'\].*MIXTURE_OR_TASK_NAME"):
        Reader(uneven, {"en": 1, "fr": 1}, 128, 0)
    with pytest.raises(ValueError, match=r"positive shares.*'zh': 0"):
        Reader(uneven, {"en": 1, "zh": 0}, 128, 0)
    with pytest.raises(ValueError, match=r"sequences of 64 tokens, found 128.*TASK_FEATURE_LENGTHS"):
        Reader(uneven, "en", 64, 0)
    with pytest.raises(FileNotFoundError, match=r"PREPARED_DIR.*flm data prepare"):
        Reader(tmp_path, "en", 128, 0)
    with pytest.raises(FileNotFoundError, match=r"PREPARED_DIR.*flm data prepare"):
        PreparedTask(tmp_path)
    with pytest.raises(ValueError, match=r"one of the splits \['train'\]"):
        Reader(uneven, "en", 128, 0, split="validation")


def test_damaged_files_are_refused(uneven: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        shutil.copytree(uneven / "en", tmp_path / name)
        return tmp_path / name

    path = damaged("missing") / "train-00001.array_record"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001\.array_record.*--overwrite"):
        PreparedTask(path.parent)
    path = damaged("short") / "train-00000.array_record"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"bytes in .*train-00000\.array_record"):
        PreparedTask(path.parent)
    path = damaged("format") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match=r"its format is 99, this version reads 2"):
        PreparedTask(path.parent)
    path = damaged("tokenizer") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["vocabulary"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    shutil.copytree(uneven / "zh", tmp_path / "zh")
    with pytest.raises(ValueError, match=r"prepared with one tokenizer, found .*--overwrite"):
        Reader(tmp_path, {"tokenizer": 1, "zh": 1}, 128, 0)
    with pytest.raises(ValueError, match=r"expected the tokenizer with SHA-256 000"):
        Reader(tmp_path, "tokenizer", 128, 0)


def test_the_default_mixture_on_prepared_text(prepared: Path) -> None:
    reader = Reader(prepared, MIXTURE, 64, seed=0)
    assert reader.shares == pytest.approx({"en": 53.5 / 105, "zh": 46.5 / 105, "instruct": 5 / 105})
    owner = _owners(prepared, list(MIXTURE))
    tokens: Counter[str] = Counter()
    batch = reader.batch(0, 4000)
    for row, segments in zip(batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True):
        tokens[owner[row.tobytes()]] += int((segments > 0).sum())
    assert tokens["en"] / (tokens["en"] + tokens["zh"]) == pytest.approx(0.535, abs=0.01)
    assert tokens["instruct"] / tokens.total() == pytest.approx(5 / 105, abs=0.01)
    assert (
        Reader(prepared, "zh", 64, 0, split="validation")
        .batch(0, 2)["decoder_target_tokens"]
        .all(axis=1)
        .any()
    )


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_history_of_mixtures_is_read_alike_anywhere(uneven: Path, processes: int) -> None:
    """Another mixture, another batch size and turns, by any number of processes, in any order."""
    turns = Alternating({"language": {"en": 2, "zh": 1}, "teacher": "instruct"}, (3, 1))
    history = History.begin({"en": 1, "zh": 1}, 8).changed(5, 12, {"en": 1, "zh": 9}).changed(9, 4, turns)
    whole = Reader(uneven, history, 128, seed=0)
    for step in (4, 5, 9, 12, 1_000_000, 7, 10**12):
        first, size = history.sequences(step), history.at(step).batch_size
        shares = [tuple(share) for share in np.split(np.arange(size), processes)]
        parts = [Reader(uneven, history, 128, seed=0).batch(first, size, share) for share in shares]
        assert _equal(_joined(parts), whole.batch(first, size))
        numbers = [whole.task_numbers(first, size, share) for share in shares]
        assert (np.concatenate(numbers) == whole.task_numbers(first, size)).all()
    owner = _owners(uneven, list(whole.tasks))
    rows = whole.batch(0, 300)["decoder_target_tokens"]
    expected = [list(whole.tasks)[number] for number in whole.task_numbers(0, 300)]
    assert [owner[row.tobytes()] for row in rows] == expected


def test_no_sequence_comes_twice_or_not_at_all_when_the_mixture_changes(uneven: Path) -> None:
    owner = _owners(uneven, ["en", "zh"])
    history = History.begin({"en": 1, "zh": 1}, 8).changed(9, 8, {"en": 9, "zh": 1}).changed(17, 5, "en")
    reader = Reader(uneven, history, 128, seed=3)
    size = reader.tasks["en"].num_sequences("train")
    rows = [row.tobytes() for row in reader.batch(0, 4 * size)["decoder_target_tokens"]]
    english = [row for row in rows if owner[row] == "en"]
    for start in range(0, len(english) - size + 1, size):
        assert len(set(english[start : start + size])) == size


def test_a_reader_follows_another_history(uneven: Path) -> None:
    history = History.begin({"en": 1, "zh": 1}, 8)
    later = history.changed(5, 4, {"en": 1, "instruct": 1})
    reader = Reader(uneven, history, 128, seed=0)
    followed = reader.following(later)
    assert _equal(followed.batch(40, 12), Reader(uneven, later, 128, seed=0).batch(40, 12))
    assert list(reader.tasks) == ["en", "zh"] and followed.tasks["en"] is reader.tasks["en"]
    assert _equal(reader.batch(40, 12), Reader(uneven, {"en": 1, "zh": 1}, 128, seed=0).batch(40, 12))


def test_epochs_end_the_stream(uneven: Path) -> None:
    reader = Reader(uneven, {"en": 1, "zh": 1}, 128, seed=0, max_epochs=2)
    assert reader.plan.end is not None
    rows = Counter(row.tobytes() for row in reader.batch(0, reader.plan.end)["decoder_target_tokens"])
    assert set(rows.values()) == {2} and rows.keys() == _owners(uneven, ["en", "zh"]).keys()
    with pytest.raises(IndexError, match=r"Trainer\.max_epochs"):
        reader.batch(reader.plan.end, 1)


def test_turns_need_a_batch_size(uneven: Path) -> None:
    turns = Alternating({"language": "en", "teacher": "instruct"}, (1, 1))
    with pytest.raises(ValueError, match=r"expected a batch size .*seqio_tasks\.prepared\.batch_size"):
        Reader(uneven, turns, 128, 0)
    assert set(Reader(uneven, turns, 128, 0, batch_size=4).task_numbers(0, 8)[:4]) == {0}


def test_files_are_opened_when_they_are_read_and_the_limit_is_raised(
    uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = len(PreparedTask(uneven / "en").counts("train").files)
    monkeypatch.setattr(prepared_module, "_record_files", set())
    monkeypatch.setattr(prepared_module, "_OTHER_FILES", soft)
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, 2 * soft))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    descriptors = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else None
    for _ in range(2):  # what is known is not counted again
        source = PreparedTask(uneven / "en").source("train")
    assert limits == [(soft + files, 2 * soft)] * 2
    if descriptors is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert source[0]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    with pytest.raises(ValueError, match=rf"at least {soft + files:,} open files, for {files:,} prepared"):
        PreparedTask(uneven / "en").source("train")
