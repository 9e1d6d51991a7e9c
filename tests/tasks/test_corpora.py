import json
from pathlib import Path

import pytest

from flm_jax.tasks.corpora import Corpus, Instructions
from flm_jax.tasks.packing import chunk, features, pack
from flm_jax.tasks.sources import JsonLines, Problems
from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary
from tests.prepared_data import write_jsonl

FIELDS = {"inputs": "prompt", "targets": "response"}


def _examples(task: Corpus | Instructions, vocabulary: Vocabulary, split: str = "train") -> list[dict]:
    dataset = task.seqio_task(vocabulary).get_dataset(sequence_length=None, split=split, shuffle=False)
    return list(dataset.as_numpy_iterator())


def test_a_corpus_has_empty_inputs(tmp_path: Path, vocabulary: Vocabulary) -> None:
    texts = ["Ka lo.", " 天地\n\u2581x", "\0"]
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    examples = _examples(Corpus("corpus", JsonLines(str(path))), vocabulary)
    assert [example["targets"].tolist() for example in examples] == [
        [*vocabulary.encode(text), EOS_ID] for text in texts
    ]
    assert all(len(example["inputs"]) == 0 for example in examples)
    assert [example["targets_pretokenized"] for example in examples] == [text.encode() for text in texts]


def test_instructions_have_loss_on_the_response_only(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "lo mi {tan}", "response": "天地"}])
    task = Instructions("instructions", JsonLines(str(path), FIELDS), template="Q: {inputs}\nA: ")
    (example,) = _examples(task, vocabulary)
    prompt, response = vocabulary.encode("Q: lo mi {tan}\nA: "), [*vocabulary.encode("天地"), EOS_ID]
    assert example["inputs"].tolist() == prompt
    assert example["targets"].tolist() == response
    (row,) = pack(chunk(example["inputs"], example["targets"], 64), 64)
    batch = features(row.tokens[None], row.segment_ids[None], row.loss_weights[None])
    trained = batch["decoder_target_tokens"][batch["decoder_loss_weights"] == 1]
    assert trained.tolist() == response
    # What predicts the first token of the response is the last token of the prompt.
    first = int(batch["decoder_loss_weights"][0].argmax())
    assert batch["decoder_input_tokens"][0, first] == prompt[-1]


def test_features_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError, match=r"task 'x' .*'targets'.*JsonLines\.fields"):
        Corpus("x", JsonLines("x.jsonl", {"inputs": "text"}))
    with pytest.raises(ValueError, match=r"found \['inputs', 'targets'\].*\['context'\]"):
        Instructions("x", JsonLines("x.jsonl", FIELDS), template="{context} {inputs}")
    with pytest.raises(ValueError, match=r"letters, digits and '_', found 'a/b'.*Corpus\.name"):
        Corpus("a/b", JsonLines("x.jsonl"))


def test_registering_again(tmp_path: Path, vocabulary: Vocabulary) -> None:
    import seqio

    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "ka"}])
    task = Corpus("again", JsonLines(str(path)))
    task.seqio_task(vocabulary)
    assert task.seqio_task(vocabulary) is seqio.TaskRegistry.get("again")
    foreign = seqio.TaskRegistry.get("again").replace(name="foreign")
    seqio.TaskRegistry.add_provider("foreign", foreign)
    with pytest.raises(ValueError, match="already has 'foreign'"):
        Corpus("foreign", JsonLines(str(path))).seqio_task(vocabulary)


def test_problems_come_through_seqio(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("broken\n" + json.dumps({"text": "ka"}))
    problems = Problems()
    task = Corpus("problems", JsonLines(str(path))).seqio_task(vocabulary, problems)
    assert len(list(task.get_dataset(None, "train", shuffle=False))) == 1
    assert problems.places == [f"{path}:1: not JSON (Expecting value: line 1 column 1 (char 0))"]
