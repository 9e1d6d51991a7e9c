"""A vocabulary that leaves as a `tokenizer.json` and enters again is the same: every kind."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings

from flm_jax import cli
from flm_jax.tasks.tokenizers import export, sentencepiece_training, tiktoken_ranks
from flm_jax.tasks.tokenizers.export import CHECKED_TEXTS, export_tokenizer, to_tokenizer_json
from flm_jax.tasks.tokenizers.reserved import RESERVED_NAMES, TEACHER_LABELS
from flm_jax.tasks.vocabulary import Vocabulary, train_tokenizer
from tests.prepared_data import chinese, english
from tests.tasks.test_vocabulary import HARD
from tests.tasks.tokenizers.test_round_trip import MARKS, TEXT

KINDS = ("unigram", "bpe", "cl100k", "byte_level_plain", "byte_fallback", "escaped")


def _texts() -> list[str]:
    draw = random.Random(2)
    return [make(draw, 40) for _ in range(150) for make in (english, chinese)]


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Vocabulary, Vocabulary]:
    """A vocabulary, and what it is after it left and entered."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in ("unigram", "bpe"):
        vocabulary = train_tokenizer(_texts(), folder / "tokenizer.model", 450, model_type=request.param)
    elif request.param == "escaped":
        vocabulary = _trained_elsewhere(folder / "tokenizer.model")
    elif request.param == "byte_level_plain":
        record = json.loads(request.getfixturevalue("byte_level").to_str())
        # The library cannot decode "éé", see below.
        record["added_tokens"] = record["added_tokens"][:4]
        (folder / "tokenizer.json").write_text(json.dumps(record), "utf-8")
        vocabulary = Vocabulary(folder / "tokenizer.json")
    else:
        vocabulary = request.getfixturevalue(request.param)
    files = export_tokenizer(vocabulary, folder / "out")
    return vocabulary, Vocabulary(files[0])


def _trained_elsewhere(path: Path, **options: Any) -> Vocabulary:
    """A sentencepiece model that writes spaces as U+2581, with a control symbol and a symbol of several characters."""
    defaults = {
        "vocab_size": 450,
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": 3,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<sep>"],
        "minloglevel": 2,
    }
    with path.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_texts()), model_writer=out, **{**defaults, **options}
        )
    return Vocabulary(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXT)
def test_the_same_ids(pair: tuple[Vocabulary, Vocabulary], text: str) -> None:
    before, after = pair
    ids = before.encode(text)
    assert after.encode(text) == ids
    assert after.decode(ids) == before.decode(ids)


def test_the_same_pieces(pair: tuple[Vocabulary, Vocabulary]) -> None:
    before, after = pair
    assert after.kind == "huggingface"
    assert after.pieces == before.pieces
    np.testing.assert_array_equal(after.piece_bytes, before.piece_bytes)


def test_text_of_some_length(pair: tuple[Vocabulary, Vocabulary]) -> None:
    before, after = pair
    names = [*RESERVED_NAMES, "".join(RESERVED_NAMES), "<0x41>", "<s>", "<sep>a<sep>", *TEACHER_LABELS]
    for text in [*_texts(), *CHECKED_TEXTS, *HARD, *MARKS, *names, " ".join(names)]:
        assert after.encode(text) == before.encode(text), text


def test_leaving_again_changes_nothing(pair: tuple[Vocabulary, Vocabulary]) -> None:
    assert to_tokenizer_json(pair[1]) == pair[1].path.read_bytes()


def test_the_library_alone_reads_it(pair: tuple[Vocabulary, Vocabulary]) -> None:
    """What others do with the file, without `Vocabulary`: id 0 in front, or only the text's own ids."""
    before, after = pair
    library = tokenizers.Tokenizer.from_file(str(after.path))
    for text in ["Kalo mi tan.", "天地 \n\n x1\t", *TEACHER_LABELS, "a" + " " * 200 + "é\u0301\0"]:
        ids = before.encode(text)
        assert library.encode(text, add_special_tokens=False).ids == ids
        assert library.encode(text).ids == [0, *ids]
        assert library.decode([0, *ids, 1]) == text
    assert [library.id_to_token(token) for token in range(3)] == list(RESERVED_NAMES)
    assert library.token_to_id(RESERVED_NAMES[1]) == 1


def test_transformers_reads_it(pair: tuple[Vocabulary, Vocabulary]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    before, after = pair
    theirs = transformers.AutoTokenizer.from_pretrained(after.path.parent)
    found = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id)
    assert found == (0, 1, 2, 2)
    for text in [*CHECKED_TEXTS, *RESERVED_NAMES, *MARKS]:
        ids = before.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs(text)["input_ids"] == [0, *ids]
        assert theirs.decode(ids) == before.decode(ids)
        assert theirs.decode([0, *ids, 1], skip_special_tokens=True) == before.decode(ids)


def test_the_teacher_labels_keep_their_ids(tmp_path: Path) -> None:
    vocabulary = train_tokenizer(_texts(), tmp_path / "tokenizer.model", 450)
    path = export_tokenizer(vocabulary, tmp_path / "out")[0]
    library = tokenizers.Tokenizer.from_file(str(path))
    assert [library.token_to_id(label) for label in TEACHER_LABELS] == [3, 4]
    assert library.encode(f"x{TEACHER_LABELS[1]}", add_special_tokens=False).ids[-1] == 4


def test_ties_between_scores_fall_as_in_sentencepiece(tmp_path: Path) -> None:
    """`...=` and `=...` are worth the same. Without rounding, some of these texts were cut in another way."""
    draw = random.Random(0)
    text = ["".join(draw.choices("=-.ab ", weights=[4, 3, 5, 1, 1, 2], k=60)) for _ in range(2000)]
    vocabulary = train_tokenizer(text, tmp_path / "tokenizer.model", 400)
    steps = [vocabulary._tokenizer._processor.get_score(token) * 64 for token in range(vocabulary.size)]
    assert steps == [round(step) for step in steps]
    after = Vocabulary(export_tokenizer(vocabulary, tmp_path / "out")[0])
    for _ in range(2000):
        sample = "".join(draw.choices("=-. ", k=draw.randint(1, 300)))
        assert after.encode(sample) == vocabulary.encode(sample)


@pytest.mark.parametrize(
    "options",
    [{"add_dummy_prefix": True}, {"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}],
)
def test_models_that_change_text(tmp_path: Path, options: dict[str, Any]) -> None:
    """`Vocabulary` refuses them already; one that only its rules give away is refused here."""
    with pytest.raises(ValueError, match=r"expected (text to come back|pieces of)"):
        _trained_elsewhere(tmp_path / "tokenizer.model", **options)


def test_a_rule_that_no_probe_finds(tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("2C80\t2C81\n")  # one Coptic letter to another
    vocabulary = _trained_elsewhere(
        tmp_path / "tokenizer.model", normalization_rule_tsv=str(rules), normalization_rule_name=""
    )
    with pytest.raises(ValueError, match="takes text as it is, found the normalisation"):
        to_tokenizer_json(vocabulary)


def test_a_model_of_characters(tmp_path: Path) -> None:
    vocabulary = _trained_elsewhere(tmp_path / "tokenizer.model", model_type="char", vocab_size=300)
    with pytest.raises(ValueError, match="expected a sentencepiece model of unigram or bpe"):
        to_tokenizer_json(vocabulary)


def test_what_the_library_reads_in_another_way_is_not_given_out(
    huggingface: Vocabulary, cl100k: Vocabulary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # It takes the characters of the added token "éé" for bytes of its byte level.
    with pytest.raises(ValueError, match=r"(?s)expected 'éé' back, found .*decodes this text in another way"):
        export_tokenizer(huggingface, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(export, "_in_oniguruma", lambda pattern: pattern)
    with pytest.raises(ValueError, match=r"found .*: the library tokenizers reads this text in another way"):
        to_tokenizer_json(cl100k)


def test_patterns_in_oniguruma() -> None:
    for rust, expected in [
        (r"\p{N}{1,3}+| ?x", r"(?>\p{N}{1,3})| ?x"),
        (r"[^\]\s]{2,}+a{3}+", r"(?>[^\]\s]{2,})(?>a{3})"),
        (r"\s++$|\$|[$]|b$", r"\s++\z|\$|[$]|b\z"),
        (r"\p{L}{1,2}|\p{L}++", r"\p{L}{1,2}|\p{L}++"),
    ]:
        assert export._in_oniguruma(rust) == expected


def test_tiktoken_with_gaps(tmp_path: Path) -> None:
    """Ranks that nobody has stay free, behind which ids are the same."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ka": 260, b"kaka": 261, b"aka": 300}
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tiktoken_ranks.dump("small", r"\w+|\W+", ranks))
    before = Vocabulary(path)
    after = Vocabulary(export_tokenizer(before, tmp_path / "out")[0])
    assert after.pieces == before.pieces
    for text in ("kaka", "akaka", "kakakaka aka ka", "xakay"):
        assert after.encode(text) == before.encode(text)


def test_a_file_that_changed(tmp_path: Path) -> None:
    vocabulary = train_tokenizer(_texts(), tmp_path / "tokenizer.model", 450)
    train_tokenizer(_texts(), tmp_path / "tokenizer.model", 460)
    with pytest.raises(ValueError, match="has changed since it was opened"):
        to_tokenizer_json(vocabulary)


def test_a_name_in_a_unigram_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which pieces reach across every place: the library could not tell it from text."""
    monkeypatch.setattr(sentencepiece_training, "TEACHER_LABELS", ("<|flm_eos|>",))
    vocabulary = train_tokenizer(_texts(), tmp_path / "tokenizer.model", 450)
    assert len(vocabulary.encode("<|flm_eos|>")) == 1
    with pytest.raises(ValueError, match=r"<\|flm_eos\|>"):
        to_tokenizer_json(vocabulary)


def test_the_verb(
    changed_json: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = train_tokenizer(_texts(), tmp_path / "tokenizer.model", 450)
    capsys.readouterr()
    command = ["tokenizer", "export", f"--tokenizer={vocabulary.path}", f"--out={tmp_path / 'out'}"]
    assert cli.main(command) == 0
    assert "450 pieces (sentencepiece) with their ids in:" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert config["split_special_tokens"] and config["padding_side"] == "left"
    names = [config[f"{name}_token"] for name in ("bos", "eos", "pad")]
    assert names == list(RESERVED_NAMES)  # ours is no other's: see `export.special_tokens_map`
