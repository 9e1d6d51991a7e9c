"""Bad input, one of each kind among good documents: counted and told with its place, the rest unharmed."""

import gzip
import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from backports import zstd

from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import PreparedTask, evaluation_batches
from flm_jax.tasks.problems import Problem
from flm_jax.tasks.sources import JsonLines, Parquet, PlainText, Problems, TFRecord
from flm_jax.tasks.sources.file_source import FileSource
from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary

GOOD = ["Ka lo mi.", "天地人。", "tan re su vor"]


def _line(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def _lines(*texts: str) -> bytes:
    return b"".join(map(_line, texts))


def _texts(source: FileSource, problems: Problems) -> list[str]:
    return [document["targets"] for document in source.read("train", problems)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good documents in every file, and what is bad among them."""
    noise = np.random.default_rng(0).integers(0, 2**31, 3000)
    whole = gzip.compress(_lines("first", *(f"number {number}" for number in noise)))
    files = {
        "a.jsonl": _lines(GOOD[0]) + b'{"text": "\xff\xfe"}\n' + b'{"body": "x"}\n' + _lines(GOOD[1]),
        "b_empty.jsonl": b"",
        "c.jsonl": _lines("x", "null\0inside", GOOD[2]),
        "d_long.jsonl": _lines("before") + _line("y" * 50_000_000) + _lines("after"),
        "e_truncated.jsonl.gz": whole[: len(whole) // 2],
        "g_last.jsonl.gz": gzip.compress(_lines("the last")),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "f_gone.jsonl").symlink_to(tmp_path / "it has disappeared")
    return tmp_path


def test_every_kind_is_counted_with_its_place_and_the_rest_is_unharmed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    task = Corpus("bad", JsonLines(str(folder / "*.jsonl*")))
    out = tmp_path_factory.mktemp("out")
    with pytest.raises(ValueError, match=r"expected at most 10\.0% .* to be unreadable, found 1,"):
        prepare([task], vocabulary, 64, out)  # of the file that breaks off it is not known how much is lost
    manifest = prepare([task], vocabulary, 64, out, max_bad_share=0.6)["bad"]
    assert manifest.problems["count"] == 6
    places = "\n".join(manifest.problems["places"])
    for expected in (
        "a.jsonl:2: not UTF-8 (byte 10 of the line)",
        "a.jsonl:3: field 'text' is missing (found ['body'])",
        "b_empty.jsonl: the file is empty",
        "d_long.jsonl:2: a line of 50,000,013 bytes, more than max_record_bytes = 33,554,432",
        "f_gone.jsonl: the file has disappeared since it was found; how many records are lost is unknown",
    ):
        assert f"{folder}/{expected}" in places
    assert "e_truncated.jsonl.gz:" in places and "the file is damaged and was read up to here" in places
    noticed = manifest.problems["noticed"]
    assert noticed["one character or none"]["places"] == [f"{folder}/c.jsonl:1: 'x'"]
    assert noticed["null character"]["places"] == [f"{folder}/c.jsonl:2: at character 4"]
    told = capsys.readouterr().err
    lost = manifest.problems["records"]
    assert f"bad: about {lost:,} documents could not be read and were left out:\n" in told
    assert "a.jsonl:2: not UTF-8" in told
    assert "1 document noticed, and kept (null character):\n" in told

    found = set()
    for batch in evaluation_batches(PreparedTask(out / "bad"), "train", 8):
        for tokens, ids in zip(batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True):
            for segment in range(1, ids.max() + 1):
                ended = tokens[ids == segment].tolist()
                assert ended.pop() == EOS_ID
                found.add(vocabulary.decode(ended))
    assert {*GOOD, "x", "null\0inside", "before", "after", "first", "the last"} <= found
    truncated = [text for text in found if text.startswith("number ")]
    assert 100 < len(truncated) < 3000
    # As many as were read of it (with "first"), and one for each of the other places.
    assert lost == 5 + len(truncated) + 1
    assert f"how many records are lost is unknown and counted as the {lost - 5:,} before" in places
    assert manifest.splits["train"].documents == len(found) == 9 + len(truncated)


def test_above_a_share_of_bad_records_the_run_stops_with_the_list(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes((_line("fine") * 9 + b"broken\n") * 200)
    task = Corpus("x", JsonLines(str(path)))
    assert prepare([task], vocabulary, 64, tmp_path / "out")["x"].problems["count"] == 200  # a tenth exactly
    with pytest.raises(ValueError, match=rf"at most 9\.0% .*max_bad_share`\n.*\n  {path}:10: not JSON"):
        prepare([task], vocabulary, 64, tmp_path / "less", max_bad_share=0.09)
    # Before all is read, and not at the first bad one of a few.
    path.write_bytes(b"broken\n" * 900 + _line("fine") * 50_000)
    with pytest.raises(ValueError, match=r"found 900 of 1,000"):
        prepare([task], vocabulary, 64, tmp_path / "early", max_bad_share=0.5, shard_bytes=900 * 7)
    with pytest.raises(ValueError, match=r"max_bad_share from 0 to 1, found .* 2"):
        prepare([task], vocabulary, 64, tmp_path / "wrong", max_bad_share=2)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("separator", ["", "\n\n"])
def test_a_long_document_is_not_read_into_memory(tmp_path: Path, suffix: str, separator: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[suffix]
    texts = ["one", "y" * 3_000_000, "three"]
    for number, text in enumerate(texts if not separator else [separator.join(texts)]):
        (tmp_path / f"{number}.txt{suffix}").write_bytes(pack(text.encode()))
    problems = Problems()
    source = PlainText(str(tmp_path / "*.txt*"), separator=separator, max_record_bytes=2_000_000)
    assert _texts(source, problems) == ["one", "three"]
    assert problems.count == 1 and "a document of 3,000,000 bytes" in problems.places[0]


def test_zstd_in_several_frames_and_truncated(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2**31, 20_000)
    second = zstd.compress(_lines(*(f"number {number}" for number in noise)))
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstd.compress(_lines("first")) + second)
    problems = Problems()
    assert len(_texts(JsonLines(str(path)), problems)) == 20_001 and not problems.count
    path.write_bytes(zstd.compress(_lines("first")) + second[:-10_000])
    assert 0 < len(_texts(JsonLines(str(path)), problems)) < 20_001
    assert problems.count == 1 and "the file is damaged" in problems.places[0]


def test_in_cloud_storage(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """fsspec's memory stands for a bucket."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.jsonl.gz", gzip.compress(_lines("one", "two")))
    memory.pipe("/bucket/b.jsonl.zst", zstd.compress(_lines("three")))
    source = JsonLines("memory://bucket/*.jsonl.*")
    problems = Problems()
    assert source.paths("train") == ["memory:///bucket/a.jsonl.gz", "memory:///bucket/b.jsonl.zst"]
    assert _texts(source, problems) == ["one", "two", "three"] and not problems.count
    before = source.fingerprint()
    assert before == source.fingerprint()
    assert (
        prepare([Corpus("cloud", source)], vocabulary, 16, tmp_path)["cloud"].splits["train"].documents == 3
    )
    memory.pipe("/bucket/b.jsonl.zst", zstd.compress(_lines("four")))
    assert source.fingerprint() != before
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/none\*.*JsonLines\.files"):
        JsonLines("memory://bucket/none*").paths("train")


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "one", "id": 1}, {"text": None, "id": 2}, {"text": "二", "id": 3}]
    parquet.write_table(pyarrow.Table.from_pylist(rows * 300), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "c.parquet")
    problems = Problems()
    assert _texts(Parquet(str(tmp_path / "*.parquet")), problems) == ["one", "二"] * 300
    assert problems.count == 302
    assert (
        problems.places[0]
        == f"{tmp_path}/a.parquet, row 2: expected a string in field 'text', found NoneType"
    )
    few = Problems()
    assert _texts(Parquet([str(tmp_path / "b.parquet"), str(tmp_path / "c.parquet")]), few) == []
    assert few.places[0].startswith(f"{tmp_path}/b.parquet: the file is damaged")
    assert few.places[1].startswith(f"{tmp_path}/c.parquet, row 1: field 'text' is missing")
    whole = Parquet(str(tmp_path / "a.parquet"), fields=None)
    assert next(iter(whole.read("train", Problems()))) == {"text": "one", "id": 1}


def test_tfrecord(tmp_path: Path) -> None:
    import tensorflow as tf

    def example(**values: list) -> bytes:
        kinds = {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
            if isinstance(value[0], bytes)
            else tf.train.Feature(int64_list=tf.train.Int64List(value=value))
            for name, value in values.items()
        }
        return tf.train.Example(features=tf.train.Features(feature=kinds)).SerializeToString()

    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in (
            example(text=["二".encode()], label=[1, 2]), example(text=[b"\xff"]), b"\xff\xff", example(text=[b"two"])
        ):  # fmt: skip
            writer.write(record)
    (tmp_path / "b.tfrecord").write_bytes(path.read_bytes()[:-5])
    problems = Problems()
    assert _texts(TFRecord(str(tmp_path / "*.tfrecord")), problems) == ["二", "two", "二"]
    assert [place.split(": ")[0].removeprefix(f"{tmp_path}/") for place in problems.places] == [
        "a.tfrecord, record 2", "a.tfrecord, record 3",
        "b.tfrecord, record 2", "b.tfrecord, record 3", "b.tfrecord, record 3",
    ]  # fmt: skip
    whole = TFRecord(str(path), fields=None)
    assert next(iter(whole.read("train", Problems()))) == {"text": "二", "label": [1, 2]}
    os.symlink(tmp_path / "nothing", tmp_path / "c.tfrecord")
    gone = Problems()
    assert _texts(TFRecord(str(tmp_path / "c.tfrecord")), gone) == []
    assert gone.places[0].startswith(f"{tmp_path}/c.tfrecord: the file has disappeared since it was found; ")


ODD = [b'{"text": ' + b"1" * 5000 + b"}", b'{"text": NaN}', b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize("line", ODD)
def test_odd_json_is_a_problem_and_no_crash(line: bytes) -> None:
    with pytest.raises(Problem):
        JsonLines("x").document(line)
