"""Cleaning within `prepare`: counted by kind, the same in any number of processes, nothing unless asked for."""

import json
from pathlib import Path

import pytest

from flm_jax.tasks.cleaning import Length, Normalize
from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.decontamination import Decontamination
from flm_jax.tasks.duplicates import Exact, Near
from flm_jax.tasks.manifest import Manifest
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import PreparedTask, evaluation_batches
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.teacher import Classification
from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary
from tests.prepared_data import write_jsonl

SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def _texts(folder: Path, split: str, vocabulary: Vocabulary) -> list[str]:
    """All documents of a split; each fits into a sequence."""
    found = []
    for batch in evaluation_batches(PreparedTask(folder), split, 4):
        for tokens, ids in zip(batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True):
            for segment in range(1, ids.max() + 1):
                *text, end = tokens[ids == segment].tolist()
                assert end == EOS_ID
                found.append(vocabulary.decode(text))
    return found


def _prepared(
    folder: Path, texts: list[str], vocabulary: Vocabulary, cleaning: list, **settings: int
) -> tuple[Manifest, list[str]]:
    path = write_jsonl(folder / "x.jsonl", [{"text": text} for text in texts])
    task = Corpus("x", JsonLines(str(path)), cleaning=cleaning)
    manifest = prepare([task], vocabulary, 512, folder / "out", **settings)["x"]
    return manifest, sorted(_texts(folder / "out" / "x", "train", vocabulary))


def test_each_step_in_its_order_and_counted(tmp_path: Path, vocabulary: Vocabulary) -> None:
    evaluation = write_jsonl(tmp_path / "eval" / "e.jsonl", [{"question": SENTENCE}])
    # The short one is the decomposed form of three characters: it is normalised before it is measured.
    texts = ["Cafe\u0301", "abcd", "abc", "abcde", "abcde", f"They said: {SENTENCE.upper()}!", "fine text"]
    steps = [Normalize(), Length(min_characters=4), Decontamination([str(evaluation)]), Exact()]
    manifest, found = _prepared(tmp_path, texts, vocabulary, steps)
    assert found == sorted(["Caf\u00e9", "abcd", "abcde", "fine text"])
    counts = manifest.splits["train"]
    assert counts.documents == 4
    assert counts.removed == {"length": 1, "exact_duplicates": 1, "contaminated": 1}
    assert manifest.problems["changed"] == {"normalized": 1}
    removed = manifest.problems["removed"]
    path = tmp_path / "x.jsonl"
    assert removed["exact_duplicates"]["places"] == [f"{path}:5: repeats {path}:4"]
    assert removed["length"]["places"][0].startswith(f"{path}:3: ")
    assert "e.jsonl" in removed["contaminated"]["places"][0]
    assert json.dumps(manifest.definition)  # and what was asked for stands in it
    assert [step["type"] for step in manifest.definition["task"]["cleaning"]] == [
        "Normalize", "Length", "Decontamination", "Exact",
    ]  # fmt: skip


def test_nothing_unless_asked_for(tmp_path: Path, vocabulary: Vocabulary) -> None:
    texts = ["Cafe\u0301", "a", "a", SENTENCE]
    manifest, found = _prepared(tmp_path, texts, vocabulary, [])
    assert found == sorted(texts)
    assert "cleaning" not in manifest.definition["task"] and not manifest.problems["removed"]


@pytest.mark.parametrize("step", [Exact(), Near()])
def test_in_any_number_of_processes_the_first_one_stays(
    tmp_path: Path, vocabulary: Vocabulary, step: Exact | Near
) -> None:
    texts = [f"document number {n % 70} says {'ka lo mi tan re ' * (n % 7 + 1)}{n % 70}" for n in range(200)]
    made = {}
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        manifest, found = _prepared(folder, texts, vocabulary, [step], shard_bytes=1500, num_workers=workers)
        assert manifest.splits["train"].removed == {step.kind: 130}
        assert len(manifest.splits["train"].files) > 3
        assert found == sorted(set(texts))
        made[workers] = [file.sha256 for file in manifest.splits["train"].files]
        places = manifest.problems["removed"][step.kind]["places"]
        assert places[0] == f"{folder}/x.jsonl:71: repeats {folder}/x.jsonl:1"
    assert made[1] == made[2]


def test_what_is_held_out_is_not_trained_on(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_jsonl(
        tmp_path / "x.jsonl", [{"text": text} for text in ["a1", "b2", "a1", "a1", "c3", "c3"]]
    )
    task = Corpus("x", JsonLines(str(path), validation_every=3), cleaning=[Exact()])
    manifest = prepare([task], vocabulary, 32, tmp_path / "out")["x"]
    assert _texts(tmp_path / "out" / "x", "validation", vocabulary) == ["a1", "c3"]
    assert _texts(tmp_path / "out" / "x", "train", vocabulary) == ["b2"]
    assert manifest.splits["train"].removed == {"exact_duplicates": 3}
    assert manifest.splits["validation"].removed == {}


def test_other_cleaning_is_another_definition(tmp_path: Path, vocabulary: Vocabulary) -> None:
    _prepared(tmp_path, ["abc", "abcdef"], vocabulary, [])
    with pytest.raises(
        FileExistsError, match=r"task\.cleaning: prepared with None, asked for .*min_characters.*4"
    ):
        _prepared(tmp_path, ["abc", "abcdef"], vocabulary, [Length(min_characters=4)])


def test_what_is_left_out_itself_is_no_first_copy(tmp_path: Path, vocabulary: Vocabulary) -> None:
    records = [
        {"text": "same text", "label": 7},
        {"text": "same text", "label": 1},
        {"text": "ka " * 200, "label": 0},
    ]
    path = write_jsonl(tmp_path / "x.jsonl", records)  # type: ignore[arg-type]
    task = Classification(
        name="x",
        source=JsonLines(str(path), fields=None),
        statements={0: "{text} zero ", 1: "{text} one "},
        cleaning=[Exact()],
    )
    manifest = prepare([task], vocabulary, 64, tmp_path / "out", max_bad_share=0.5)["x"]
    assert manifest.splits["train"].documents == 1 and manifest.problems["count"] == 1
    assert manifest.splits["train"].removed == {"longer than a sequence": 1}


def test_duplicates_are_what_is_learnt_not_what_a_record_holds_besides(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    records = [{"id": n, "text": "same text", "label": label} for n, label in enumerate([0, 0, 1])]
    path = write_jsonl(tmp_path / "x.jsonl", records)  # type: ignore[arg-type]
    task = Classification(
        name="x",
        source=JsonLines(str(path), fields=None),
        statements={0: "{text} zero ", 1: "{text} one ", 2: "{text} two "},
        cleaning=[Exact()],
    )
    manifest = prepare([task], vocabulary, 64, tmp_path / "out")["x"]
    # The first two say the same, though their numbers differ; the third says the opposite.
    assert manifest.splits["train"].documents == 2
    assert manifest.problems["removed"]["exact_duplicates"]["places"] == [f"{path}:2: repeats {path}:1"]


def test_steps_stand_in_the_order_in_which_they_are_done(tmp_path: Path) -> None:
    source = JsonLines(str(tmp_path / "x.jsonl"))
    Corpus("x", source, cleaning=[Normalize(), Length(), Exact(), Near()])
    for wrong in ([Exact(), Normalize()], [Length(), Normalize()], [Exact(), Length()], [Length]):
        with pytest.raises(ValueError, match=r"first what rewrites.*gin binding `cleaning`"):
            Corpus("x", source, cleaning=wrong)  # type: ignore[arg-type]


def test_duplicates_cannot_be_streamed(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "ka"}])
    task = Corpus("streamed_duplicates", JsonLines(str(path)), cleaning=[Exact()])
    with pytest.raises(ValueError, match=r"no search for duplicates.*Corpus\.cleaning"):
        task.seqio_task(vocabulary)


def test_all_removed_is_an_error_that_says_by_what(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match=r"cleaning has removed all \(2 by length\).*Corpus\.cleaning"):
        _prepared(tmp_path, ["a", "b"], vocabulary, [Length(min_characters=5)])
