"""Files that break off: how many records are lost with them is told, and weighs in `prepare.max_bad_share`."""

import errno
import gzip
import json
import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from backports import zstd

from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources import JsonLines, Parquet, PlainText, TFRecord, files
from flm_jax.tasks.vocabulary import Vocabulary

ROWS = 20_000
TEXTS = [np.random.default_rng(number).bytes(100).hex() for number in range(ROWS)]
RAW = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)


def _read(source: Any) -> tuple[list[str], Problems]:
    problems = Problems()
    return [document["targets"] for document in source.read("train", problems)], problems


def _overwrite(path: Path, share: float, size: int = 200) -> None:
    raw = bytearray(path.read_bytes())
    start = round(len(raw) * share)
    if (
        path.suffix == ".gz"
    ):  # the head of the next member: what is overwritten in one may be read as something
        start = raw.index(gzip.compress(b"")[:4], start)
    raw[start : start + size] = b"\xff" * size
    path.write_bytes(bytes(raw))


def _in_frames(compress: Any) -> bytes:
    """Of several frames, as pigz, bgzip and pzstd write them: damage at the head of one stops the reading."""
    lines = RAW.splitlines(keepends=True)
    return b"".join(compress(b"".join(lines[at : at + 100])) for at in range(0, ROWS, 100))


@pytest.mark.parametrize(
    ("name", "compress"), [("x.jsonl.gz", gzip.compress), ("x.jsonl.zst", zstd.compress)]
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_damage_in_the_middle_loses_what_lies_behind_it(
    tmp_path: Path, name: str, compress: Any, share: float
) -> None:
    path = tmp_path / name
    raw = _in_frames(compress)
    path.write_bytes(raw)
    _overwrite(path, raw.index(compress(b"")[:4], int(len(raw) * share)) / len(raw), 5000)
    found, problems = _read(JsonLines(str(path)))
    assert found == TEXTS[: len(found)] and 0 < len(found) < ROWS
    # Within the few KiB that are read ahead.
    assert problems.records == pytest.approx(ROWS - len(found), abs=ROWS * 0.04)
    assert problems.places[-1].startswith(
        f"{path}:{len(found)}: the file is damaged and was read up to here ("
    )
    assert problems.count == 1 and f"about {problems.records:,} records are lost" in problems.places[0]


@pytest.mark.parametrize(
    ("name", "compress"), [("x.jsonl.gz", gzip.compress), ("x.jsonl.zst", zstd.compress)]
)
def test_a_file_that_was_cut_counts_twice_and_is_refused(
    tmp_path: Path, name: str, compress: Any, vocabulary: Vocabulary
) -> None:
    path = tmp_path / name
    whole = compress(RAW)
    path.write_bytes(whole[: len(whole) // 3])
    found, problems = _read(JsonLines(str(path)))
    assert problems.count == 1 and problems.records == len(found) < ROWS / 2
    assert f"is unknown and counted as the {len(found):,} before" in problems.places[0]
    task = Corpus("cut", JsonLines(str(path)))
    with pytest.raises(ValueError, match=rf"found {len(found):,} of {2 * len(found):,}: mend"):
        prepare([task], vocabulary, 64, tmp_path / "out")


def test_nothing_of_a_file_can_be_read(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(RAW.splitlines(keepends=True)[:1000]))
    (tmp_path / "b.jsonl.gz").write_bytes(b"\0" * 2_000_000)
    source = JsonLines(str(tmp_path / "*.jsonl*"))
    found, problems = _read(source)
    assert len(found) == 1000 and (problems.count, problems.records) == (1, 2_000_000 // 1024)
    with pytest.raises(ValueError, match=r"found 1,953 of 2,953"):
        prepare([Corpus("half", source)], vocabulary, 64, tmp_path / "out")


def test_a_damaged_row_group_is_counted_exactly_and_the_next_is_read(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=5000, use_dictionary=False)
    _overwrite(path, 0.1)
    found, problems = _read(Parquet(str(path)))
    assert problems.count == 1 and problems.records == ROWS - len(found)
    assert found[-15_000:] == TEXTS[5000:] and len(found) < ROWS
    assert f"{problems.records:,} rows are lost, up to row 5,000" in problems.places[0]
    parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    _overwrite(path, 0.1)
    with pytest.raises(ValueError, match=rf"found {ROWS:,} of"):
        prepare([Corpus("x", Parquet(str(path)))], vocabulary, 64, tmp_path / "out")
    path.write_bytes(path.read_bytes()[:-100])  # without its footer
    _, problems = _read(Parquet(str(path)))
    assert problems.records == path.stat().st_size // 1024 > 100


def test_a_parquet_row_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array([b"one", b"\xff", b"three"]).cast(pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, column.buffers())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "x.parquet")
    found, problems = _read(Parquet(str(tmp_path / "x.parquet")))
    assert found == ["one", "three"]
    assert problems.places == [f"{tmp_path}/x.parquet, row 2: not UTF-8 (byte 0 of a value)"]


class _FailingDisk:
    """A file whose reading fails behind a number of bytes."""

    def __init__(self, path: Path, good: int) -> None:
        self._file, self._good = path.open("rb"), good

    def __enter__(self) -> "_FailingDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        if self._file.tell() < self._good:
            raise OSError(errno.EIO, "Input/output error")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_disk_that_fails_is_an_error(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    # The footer at the end can be read, and the rows before it cannot.
    broken = mock.patch.object(files, "open", lambda *_: _FailingDisk(path, 1_000_000), create=True)
    with broken, pytest.raises(OSError, match="Input/output error"):
        _read(Parquet(str(path)))


def test_tfrecord(tmp_path: Path) -> None:
    import tensorflow as tf

    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for text in TEXTS[:2000]:
            feature = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    whole = path.read_bytes()
    _overwrite(path, 0.25)
    found, problems = _read(TFRecord(str(path)))
    assert problems.records == pytest.approx(2000 - len(found), rel=0.02)
    (tmp_path / "cut.tfrecord").write_bytes(whole[: len(whole) // 4 - 5])
    (tmp_path / "cut.tfrecord.gz").write_bytes(gzip.compress(whole)[:-10_000])
    for name in ("cut.tfrecord", "cut.tfrecord.gz"):
        found, problems = _read(TFRecord(str(tmp_path / name)))
        assert problems.count == 1 and problems.records == len(found) > 100
        assert "is unknown and counted" in problems.places[0]


def test_a_text_file_that_is_one_document_loses_one(tmp_path: Path) -> None:
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(RAW)[:-100_000])
    found, problems = _read(PlainText(str(tmp_path / "x.txt.gz")))
    assert RAW.decode().startswith(found[0]) and (problems.count, problems.records) == (1, 1)
    assert "the file is damaged and its end is lost" in problems.places[0]


def test_what_is_lost_travels_with_the_problem() -> None:
    assert pickle.loads(pickle.dumps(Problem("gone", 7))).records == 7
    problems = Problems()
    problems.add("a", "bad")
    problems.add("b", "damaged", 7)
    assert (problems.count, problems.records) == (2, 8)
    assert Problems.from_json(problems.to_json()).records == 8
    assert Problems.from_json({"count": 3, "places": []}).records == 3  # of an older manifest
    assert problems.report().startswith("about 8 documents could not be read and were left out:\n")
