import copy
import shutil
from pathlib import Path

import pytest

from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.vocabulary import EOS_ID, PAD_ID, UNK_ID, Vocabulary
from tests.prepared_data import write_jsonl
from tests.tasks.test_vocabulary import HARD

TEXTS = [*HARD, "a\0\0", "ka lo 天地", "</s><|endoftext|>"]


@pytest.fixture(params=["cl100k", "huggingface"])
def model(request: pytest.FixtureRequest) -> Vocabulary:
    return request.getfixturevalue(request.param)


def test_the_same_ids_eagerly_and_in_a_pipeline(model: Vocabulary) -> None:
    import tensorflow as tf

    ours = model.as_seqio()
    assert (ours.pad_id, ours.eos_id, ours.unk_id, ours.bos_id) == (PAD_ID, EOS_ID, UNK_ID, None)
    assert ours.vocab_size == model.size
    expected = [model.encode(text) for text in TEXTS]
    assert [ours.encode(text) for text in TEXTS] == expected
    assert ours.encode_tf(tf.constant(TEXTS)).to_list() == expected
    assert [ours.encode_tf(tf.constant(text)).numpy().tolist() for text in TEXTS] == expected
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).map(ours.encode_tf)
    assert dataset.element_spec.shape.as_list() == [None]
    assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == expected
    assert [text.decode() for text in dataset.map(ours.decode_tf).as_numpy_iterator()] == TEXTS


def test_decoding_ends_at_eos(model: Vocabulary) -> None:
    import tensorflow as tf

    ours = model.as_seqio()
    ids = [*model.encode("ka "), EOS_ID, *model.encode("lo")]
    assert ours.decode(ids) == "ka "
    assert ours.decode_tf(tf.constant([ids, ids])).numpy().tolist() == [b"ka ", b"ka "]
    assert ours.decode([*model.encode("ka"), model.size + 5]) == "ka"


def test_equal_by_content(
    model: Vocabulary, cl100k: Vocabulary, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    ours = model.as_seqio()
    moved = tmp_path / "moved.model"
    shutil.copyfile(model.path, moved)
    assert ours == Vocabulary(moved).as_seqio() == copy.deepcopy(ours)
    assert ours != vocabulary.as_seqio()
    assert (ours == cl100k.as_seqio()) == (model is cl100k)


def test_a_task_is_prepared_and_read_with_it(model: Vocabulary, tmp_path: Path) -> None:
    texts = ["ka lo 😈", "天地 </s>", "a\0b"]
    file = write_jsonl(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    prepare([Corpus(f"wrapped_{model.kind}", JsonLines(str(file)))], model, 64, tmp_path / "out")
    task = PreparedTask(tmp_path / "out" / f"wrapped_{model.kind}")
    assert task.vocabulary.sha256 == model.sha256
    assert task.vocabulary.kind == model.kind
    assert task.manifest.splits["train"].tokens == sum(len(model.encode(text)) + 1 for text in texts)
