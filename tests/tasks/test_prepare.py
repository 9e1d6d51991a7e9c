import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flm_jax.tasks import preparation
from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.duplicates import Exact
from flm_jax.tasks.manifest import differences, read_manifest
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import PreparedTask, evaluation_batches
from flm_jax.tasks.sources import JsonLines, Problems
from flm_jax.tasks.sources.file_source import Raw
from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary
from tests import prepared_data


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = prepared_data.write_texts(tmp_path / "texts", documents=40)["en"]
    return Corpus("corpus", JsonLines(str(path), validation_every=10))


def _segments(task: PreparedTask, split: str) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for batch in evaluation_batches(task, split, 8):
        for tokens, ids in zip(batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True):
            found.update(tuple(tokens[ids == segment].tolist()) for segment in range(1, ids.max() + 1))
    return found


def test_the_files_hold_every_token_of_every_document(
    corpus: Corpus, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    manifest = prepare([corpus], vocabulary, 32, tmp_path / "out", shard_bytes=2000)["corpus"]
    task = PreparedTask(tmp_path / "out" / "corpus")
    assert task.manifest == manifest
    assert task.vocabulary.sha256 == vocabulary.sha256
    for split in ("train", "validation"):
        texts = [document["targets"] for document in corpus.source.read(split, Problems())]
        encoded = [[*vocabulary.encode(text), EOS_ID] for text in texts]
        chunks = Counter(tuple(ids[at : at + 32]) for ids in encoded for at in range(0, len(ids), 32))
        assert _segments(task, split) == chunks
        counts = manifest.splits[split]
        assert counts.documents == len(texts)
        assert counts.tokens == counts.loss_tokens == sum(map(len, encoded))
        assert counts.bytes == sum(len(text.encode()) for text in texts)
        assert counts.padding == pytest.approx(1 - counts.tokens / (counts.sequences * 32))
        assert counts.sequences == sum(file.records for file in counts.files)
    assert len(manifest.splits["train"].files) > 2


def test_seqio_defines_the_same(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """The prepared segments are seqio's examples: the same tokens, and the loss on its targets."""
    for task in prepared_data.tasks(prepared_data.write_texts(tmp_path / "texts", documents=30)):
        prepare([task], vocabulary, 2048, tmp_path / "out", num_workers=1)
        found = Counter()
        for batch in evaluation_batches(PreparedTask(tmp_path / "out" / task.name), "train", 2):
            for row in range(2):
                ids = batch["decoder_segment_ids"][row]
                for segment in range(1, ids.max() + 1):
                    tokens = batch["decoder_target_tokens"][row][ids == segment]
                    weights = batch["decoder_loss_weights"][row][ids == segment]
                    found[(*tokens[weights == 0], -1, *tokens[weights == 1])] += 1
        examples = task.seqio_task(vocabulary).get_dataset(None, "train", shuffle=False).as_numpy_iterator()
        assert found == Counter((*example["inputs"], -1, *example["targets"]) for example in examples)


def test_preparing_again_keeps_what_is_the_same_and_refuses_what_is_not(
    corpus: Corpus, tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = prepare([corpus], vocabulary, 32, out)
    stamp = (out / "corpus" / "manifest.json").stat().st_mtime_ns
    assert prepare([corpus], vocabulary, {"targets": 32}, out) == first
    assert (out / "corpus" / "manifest.json").stat().st_mtime_ns == stamp
    assert "already prepared, kept" in capsys.readouterr().out

    with pytest.raises(FileExistsError, match=r"PREPARED_DIR:\s+length: prepared with 32, asked for 64"):
        prepare([corpus], vocabulary, 64, out)
    assert prepare([corpus], vocabulary, 64, out, overwrite=True)["corpus"].length == 64
    assert read_manifest(out / "corpus").length == 64

    (path,) = corpus.source.paths("train")  # type: ignore[attr-defined]
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileExistsError, match=r"task\.source\.files\.train.*modified_ns: .* asked for 1"):
        prepare([corpus], vocabulary, 64, out)


def test_a_damaged_task_is_not_kept_and_a_foreign_folder_not_replaced(
    corpus: Corpus, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    out = tmp_path / "out"
    manifest = prepare([corpus], vocabulary, 32, out)["corpus"]
    (out / "corpus" / manifest.splits["train"].files[0].name).unlink()
    with pytest.raises(FileExistsError, match=r"expected the prepared file .*train-00000\.array_record"):
        prepare([corpus], vocabulary, 32, out)
    assert prepare([corpus], vocabulary, 32, out, overwrite=True)["corpus"] == manifest
    (out / "corpus" / "thesis.txt").write_text("not ours to delete")
    with pytest.raises(FileExistsError, match=r"other files there \(thesis\.txt\).*PREPARED_DIR"):
        prepare([corpus], vocabulary, 64, out, overwrite=True)
    assert (out / "corpus" / "thesis.txt").exists()


def test_the_same_input_gives_the_same_files(corpus: Corpus, tmp_path: Path, vocabulary: Vocabulary) -> None:
    first, second = (prepare([corpus], vocabulary, 32, tmp_path / out)["corpus"] for out in "ab")
    assert first == second  # with the SHA-256 of every file


def test_problems_are_counted_and_reported(
    tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "ka"}) + "\nbroken\n" + json.dumps({"text": "lo"}))
    task = Corpus("x", JsonLines(str(path)))
    with pytest.raises(
        ValueError, match=r"at most 10\.0% of the records of task 'x'.*found 1 of 3.*max_bad_share"
    ):
        prepare([task], vocabulary, 16, tmp_path / "out")
    manifest = prepare([task], vocabulary, 16, tmp_path / "out", max_bad_share=0.4)["x"]
    assert manifest.splits["train"].documents == 2
    assert manifest.problems["count"] == 1
    assert "validation" not in manifest.splits
    assert f"{path}:2: not JSON" in capsys.readouterr().err
    assert read_manifest(tmp_path / "out" / "x").problems["places"][0].startswith(f"{path}:2: ")


def test_nothing_is_left_of_what_cannot_be_prepared(tmp_path: Path, vocabulary: Vocabulary) -> None:
    out = tmp_path / "out"
    (tmp_path / "bad.jsonl").write_text("broken\n")
    with pytest.raises(
        ValueError, match=r"documents in the split 'train' of task 'bad'.*1 could not be read"
    ):
        prepare([Corpus("bad", JsonLines(str(tmp_path / "bad.jsonl")))], vocabulary, 16, out)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        prepare([Corpus("none", JsonLines(str(tmp_path / "none.jsonl")))], vocabulary, 16, out)
    assert not out.exists() or not list(out.iterdir())
    with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS"):
        prepare([Corpus("none", JsonLines("x"))], vocabulary, 1, out)
    with pytest.raises(ValueError, match=r"names of their own.*prepare\.tasks"):
        prepare([Corpus("none", JsonLines("x"))] * 2, vocabulary, 16, out)


class _Failing(JsonLines):
    """Yields one document, then fails as a network file system would."""

    def _raw(self, path: str):
        yield Raw(path, b'{"text": "ka"}', 14)
        raise OSError("the disk is gone")


def test_a_failure_in_the_middle_leaves_what_was_there(
    corpus: Corpus, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    out = tmp_path / "out"
    before = prepare([corpus], vocabulary, 32, out)["corpus"]
    failing = Corpus("corpus", _Failing(corpus.source.files))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="the disk is gone"):
        prepare([failing], vocabulary, 32, out, overwrite=True)
    assert PreparedTask(out / "corpus").manifest == before
    # What the failure left aside is in nobody's way.
    assert prepare([corpus], vocabulary, 16, out, overwrite=True)["corpus"].length == 16
    assert [path.name for path in out.iterdir()] == ["corpus"]


def test_differences_are_told_by_place() -> None:
    found = differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5})
    assert found == [
        "a.c: prepared with 2, asked for 4",
        "d: prepared with 3, asked for None",
        "e: prepared with None, asked for 5",
    ]


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = prepared_data.write_jsonl(tmp_path / "x.jsonl", [{"text": "aa"}, {"text": "aa"}, {"text": "bb"}])
    task = Corpus("x", JsonLines(str(path)), cleaning=[Exact()])
    sign = preparation._sign

    def changes(*arguments: Any) -> Any:
        found = sign(*arguments)
        prepared_data.write_jsonl(path, [{"text": "zzz"}, {"text": "aa"}, {"text": "bb"}])
        return found

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=rf"{path} changed"):
        patch.setattr(preparation, "_sign", changes)
        prepare([task], vocabulary, 16, tmp_path / "out")
    assert not (tmp_path / "out" / "x").exists()
    manifest = prepare([task], vocabulary, 16, tmp_path / "out")[
        "x"
    ]  # what was begun with other files is not used
    assert manifest.splits["train"].documents == 3


def test_two_at_once_are_refused(tmp_path: Path, corpus: Corpus, vocabulary: Vocabulary) -> None:
    alone = sys.modules[prepare.__module__]._locked(tmp_path / "out")
    with alone, pytest.raises(BlockingIOError, match=r"another process is preparing.*PREPARED_DIR"):
        prepare([corpus], vocabulary, 16, tmp_path / "out")
    prepare([corpus], vocabulary, 16, tmp_path / "out")


def test_a_split_of_bad_records_alone_is_refused(tmp_path: Path, vocabulary: Vocabulary) -> None:
    good = prepared_data.write_jsonl(tmp_path / "t.jsonl", [{"text": "ka"}] * 50)
    bad = prepared_data.write_jsonl(tmp_path / "v.jsonl", [{"body": "ka"}] * 50)
    task = Corpus("x", JsonLines({"train": str(good), "validation": str(bad)}))
    with pytest.raises(ValueError, match="found 50 of 50"):
        prepare([task], vocabulary, 16, tmp_path / "out")


@dataclass(frozen=True)
class _Broken(Corpus):
    def examples(self, document: dict[str, Any]) -> list:
        raise KeyError("a mistake of the task's own")


def test_an_error_of_the_tasks_own_has_its_place(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = prepared_data.write_jsonl(tmp_path / "x.jsonl", [{"text": "ka"}])
    with pytest.raises(ValueError, match=rf"task 'x' failed at {path}:1: KeyError"):
        prepare([_Broken("x", JsonLines(str(path)))], vocabulary, 16, tmp_path / "out")


def test_killed_when_all_is_there_nothing_is_made_again(
    tmp_path: Path, corpus: Corpus, vocabulary: Vocabulary
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare([corpus], vocabulary, 16, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "write_shard", lambda *arguments: pytest.fail("made again"))
        prepare([corpus], vocabulary, 16, out)
    assert not {"parts", "definition.json"} & {path.name for path in (out / "corpus").iterdir()}
    # Killed one step later, what was needed to build it may be left: it is cleared away, and the task kept.
    (out / "corpus" / "parts").mkdir()
    (out / "corpus" / "definition.json").write_text("{}")
    prepare([corpus], vocabulary, 16, out)
    assert not {"parts", "definition.json"} & {path.name for path in (out / "corpus").iterdir()}
