import io
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flm_jax.tasks.vocabulary import (
    EOS_ID,
    PAD_ID,
    TEACHER_LABELS,
    UNK_ID,
    Vocabulary,
    train_tokenizer,
    train_tokenizer_from_files,
)
from tests.prepared_data import english, write_jsonl

HARD = [
    "", " ", "  a  b ", "a\nb", "\n\n", "\t x", "\0", "a\0b", "\u2581", "a\u2581 b", " \u2581", "\u2585",
    "<s>", "</s>", "<pad>", "<unk>", "<0x41>", "😈😡x😀", "\r\n", "\ufeff", "\u200b", "\u0085", "é", "e\u0301", "㍿",
    "1234567890", "\U0010ffff", "\ud7ff",
]  # fmt: skip
TEXT = st.text() | st.text(alphabet=st.sampled_from("a 天\u2581\u2585\n\t\0<>/s😈10x"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_any_text_comes_back_and_its_bytes_are_counted(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert not {PAD_ID, EOS_ID, UNK_ID} & set(ids)
    assert vocabulary.piece_bytes[ids].sum() == len(text.encode("utf-8"))


@pytest.mark.parametrize("text", HARD)
def test_hard_text_comes_back(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.encode(text)
    assert vocabulary.decode([*ids, EOS_ID, PAD_ID, PAD_ID]) == text
    assert not {PAD_ID, EOS_ID, UNK_ID} & set(ids)
    assert vocabulary.piece_bytes[ids].sum() == len(text.encode("utf-8"))


def test_tensorflow_gives_the_same_ids(vocabulary: Vocabulary) -> None:
    import tensorflow as tf

    draw = random.Random(0)
    ranges = [(0, 0x300), (0x2500, 0x2600), (0x4E00, 0x9FFF), (0xE000, 0x10FFFF)]
    strings = [
        "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randrange(20)))
        for _ in range(500)
    ]
    texts = [*HARD, *strings, english(draw, 200)]
    model = vocabulary.as_seqio()
    assert model.vocab_size == vocabulary.size
    assert (model.pad_id, model.eos_id, model.unk_id) == (PAD_ID, EOS_ID, UNK_ID)
    expected = [vocabulary.encode(text) for text in texts]
    assert model.encode_tf(tf.constant(texts)).to_list() == expected


def test_labels_are_single_pieces_and_digits_are_split(vocabulary: Vocabulary) -> None:
    labels = [vocabulary.encode(label) for label in TEACHER_LABELS]
    assert labels == [[3], [4]]
    assert vocabulary.encode("a😈")[-1] == 3
    assert len(vocabulary.encode("2024")) == len(b"2024")


def test_training_is_deterministic(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [english(draw, 40) for _ in range(300)]
    first, second = (
        train_tokenizer(texts, tmp_path / f"{name}.model", 400, max_bytes=30_000, seed=3) for name in "ab"
    )
    assert first.sha256 == second.sha256
    other = train_tokenizer(texts, tmp_path / "c.model", 400, max_bytes=30_000, seed=4)
    assert other.sha256 != first.sha256


def test_a_long_document_is_learnt_from_and_not_skipped(tmp_path: Path) -> None:
    # sentencepiece would leave this one line of 200,000 bytes out, and have nothing to learn from.
    document = english(random.Random(0), 40_000)
    vocabulary = train_tokenizer([document], tmp_path / "long.model", 400)
    assert len(vocabulary.encode(document)) < 0.6 * len(document)


def test_the_files_of_a_language_count_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    files = [
        write_jsonl(tmp_path / "a.jsonl", [{"text": english(draw, 50)} for _ in range(400)]),
        tmp_path / "b.txt",
    ]
    files[1].write_text("天地人山水" * 2000, "utf-8")
    with open(files[0], "a", encoding="utf-8") as file:
        file.write("{broken\n")
    vocabulary = train_tokenizer_from_files(files, tmp_path / "t.model", 350, max_bytes=40_000)
    assert len(vocabulary.encode("天地人山水")) < 5 * 3  # learnt, not spelt in bytes
    captured = capsys.readouterr()
    assert f"{files[0]}:401: not JSON" in captured.err
    assert "bytes per token" in captured.out


def test_too_many_pieces_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer of 5,000 pieces.*change --vocab_size"):
        train_tokenizer(["a few words"] * 50, tmp_path / "t.model", 5000)
    with pytest.raises(ValueError, match="no tokenizer of 100 pieces"):
        train_tokenizer(["a few words"] * 50, tmp_path / "t.model", 100)
    with pytest.raises(ValueError, match="expected text"):
        train_tokenizer([" ", ""], tmp_path / "t.model", 300)
    assert not list(tmp_path.iterdir())


def _foreign_model(path: Path, **options: object) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to train on"] * 50),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.model.*VOCABULARY.*flm tokenizer train"):
        Vocabulary(tmp_path / "missing.model")
    (tmp_path / "text.model").write_text("this is text, no model")
    with pytest.raises(ValueError, match=r"expected a sentencepiece model.*text\.model"):
        Vocabulary(tmp_path / "text.model")
    ids = _foreign_model(tmp_path / "ids.model", vocab_size=300, byte_fallback=True)
    with pytest.raises(ValueError, match=r"found -1, 2 and 0 in .*ids\.model"):
        Vocabulary(ids)
    no_bytes = _foreign_model(tmp_path / "no.model", vocab_size=30, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    with pytest.raises(ValueError, match=r"expected byte pieces.*no\.model"):
        Vocabulary(no_bytes)


def test_an_id_outside_is_an_error(vocabulary: Vocabulary) -> None:
    assert vocabulary.decode(np.array([PAD_ID, EOS_ID])) == ""
    with pytest.raises(ValueError, match="expected ids from 0 to 511"):
        vocabulary.decode([5, vocabulary.size])


def test_seqio_never_gets_a_stale_model(tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    train_tokenizer([english(random.Random(0), 300)], path, 300).as_seqio()
    changed = train_tokenizer([english(random.Random(1), 300)], path, 310)
    with pytest.raises(ValueError, match="has changed since this process"):
        changed.as_seqio()
